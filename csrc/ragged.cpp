#include "ragged.h"

#include <algorithm>

namespace hybridrec {

void transpose(const Ragged& rows, int64_t n_items, int64_t* indptr, int32_t* codes,
               float* weights) {
    const int64_t events = rows.indptr[rows.rows];
    // Counted one place up, so that after the sums indptr[i] is where item i is written next; each
    // write moves it on, which leaves every start one place down.
    std::fill_n(indptr, n_items + 1, 0);
    for (int64_t e = 0; e < events; ++e) ++indptr[rows.items[e] + 1];
    for (int64_t i = 0; i < n_items; ++i) indptr[i + 1] += indptr[i];
    for (int64_t r = 0; r < rows.rows; ++r)
        for (int64_t e = rows.indptr[r]; e < rows.indptr[r + 1]; ++e) {
            const int64_t to = indptr[rows.items[e]]++;
            codes[to] = static_cast<int32_t>(r);
            if (weights) weights[to] = rows.weights[e];
        }
    std::copy_backward(indptr, indptr + n_items, indptr + n_items + 1);
    indptr[0] = 0;
}

}  // namespace hybridrec
