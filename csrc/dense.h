// Small dense algebra in float32: what BLAS is slow at, because the matrices are many and small.
// Rows lie `stride` apart, a multiple of kWidth; what stands behind the last column is zero.
#pragma once

#include <cstdint>

#include "vec.h"
#include "views.h"

namespace hybridrec {

constexpr int64_t kTile = 4;  // rows of a register tile; divides kWidth

// The upper triangle of a (stride, stride) += left' right, from row `first` on; left and right are
// (k, stride). `first` is a multiple of kTile. Entries just below the diagonal are written too.
void rank_update(float* a, int64_t stride, int64_t first, const float* left, const float* right,
                 int64_t k);

// The upper Cholesky factor of the upper triangle of a (n, n), in place: a = u' u, zero left of the
// diagonal as far as a vector from a multiple of kWidth may reach. `scratch` holds
// (kWidth, stride) + n. False where a pivot is lost in the rounding of its diagonal.
bool factorise(float* a, int64_t n, int64_t stride, float* scratch);

// x = (u' u)^-1 x, with u of factorise; x goes on with zeros up to `stride`.
void substitute(const float* u, int64_t n, int64_t stride, float* x);

// m' m in float32, (F, F). O(n F^2) time, O(F^2) memory a block, at most 64 blocks.
void gram(Matrix<const float> m, float* out, int threads);

// m = m axes, in place; axes is (F, F). O(n F^2) time, O(F) memory a thread and F^2 once.
void rotate(Matrix<float> m, const float* axes, int threads);

}  // namespace hybridrec
