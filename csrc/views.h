// Checked, borrowed arrays: what the kernels read. Nothing here owns memory or knows Python.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace hybridrec {

// Row-major (rows, columns), contiguous.
template <class T>
struct Matrix {
    T* data;
    int64_t rows;
    int64_t columns;

    T* row(int64_t r) const { return data + r * columns; }
};

// Rows of item codes of any length: row r is items[indptr[r] .. indptr[r + 1]).
struct Ragged {
    const int64_t* indptr;
    const int32_t* items;
    const float* weights;  // null: 1 everywhere
    int64_t rows;

    int64_t length(int64_t r) const { return indptr[r + 1] - indptr[r]; }
    float weight(int64_t event) const { return weights ? weights[event] : 1.0f; }
};

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument(what); }

// Proves that every row of (indptr, items) lies inside its array and every code in [0, n_items).
inline void check_ragged(const std::string& name, const int64_t* indptr, int64_t n_indptr,
                         const int32_t* items, int64_t n_events, int64_t n_items) {
    if (n_indptr < 1 || indptr[0] != 0 || indptr[n_indptr - 1] != n_events)
        refuse(name + " indptr must run from 0 to the number of its items, " +
               std::to_string(n_events));
    for (int64_t r = 1; r < n_indptr; ++r)
        if (indptr[r] < indptr[r - 1])
            refuse(name + " indptr[" + std::to_string(r) + "] is below the entry before it");
    for (int64_t e = 0; e < n_events; ++e)
        if (items[e] < 0 || items[e] >= n_items)
            refuse(name + " items[" + std::to_string(e) + "] is " + std::to_string(items[e]) +
                   "; wanted a code from 0 to " + std::to_string(n_items - 1));
}

}  // namespace hybridrec
