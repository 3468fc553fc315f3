// Exact top-k: score descending, then item ascending; -1 / -inf where a row has no more items.
#pragma once

#include <cstdint>

#include "catalogue.h"
#include "views.h"

namespace hybridrec {

// Which items a row may answer.
struct Filter {
    const Ragged* exclude;  // null: nothing is excluded
    const uint8_t* allow;   // (n_items,), null: everything is allowed
};

// The k best of each row.
struct Best {
    Matrix<int32_t> items;
    Matrix<float> scores;
};

// The best inner products of queries (B, d) with the catalogue's items. A product beyond float32
// counts as the largest finite float32 of its sign; one that overflows both ways as either.
// O(B I d) time, O(I / 8 + k) memory a query in flight.
void top_k(Matrix<const float> queries, const Catalogue& items, Filter filter, Best best,
           int threads);

// The best of ready scores (B, I). -inf leaves an item out; NaN and +inf throw invalid_argument.
void select_top_k(Matrix<const float> scores, Filter filter, Best best, int threads);

}  // namespace hybridrec
