// Rows of codes turned into the rows of each code.
#pragma once

#include <cstdint>

#include "views.h"

namespace hybridrec {

// Who holds each of n_items codes, in order of the rows; repeats are kept. Writes indptr
// (n_items + 1), codes (events,) and, where the rows have weights, weights (events,).
// O(events + n_items) time, no memory of its own.
void transpose(const Ragged& rows, int64_t n_items, int64_t* indptr, int32_t* codes,
               float* weights);

}  // namespace hybridrec
