// One half of alternating least squares: every row's factor with the other side held fixed.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "views.h"

namespace hybridrec {

class NotPositiveDefinite : public std::runtime_error {
  public:
    explicit NotPositiveDefinite(int64_t row)
        : std::runtime_error("the normal matrix of row " + std::to_string(row) +
                             " is not positive definite in float32") {}
};

// The normal equations of row u:  (gram + sum c y y' + ridge[u] I) x = sum c target y,
// over the row's events, c = alpha * weight, y the other side's factor of the event.
struct Problem {
    Ragged rows;
    Matrix<const float> other;  // (J, F)
    const float* gram;          // (F, F), symmetric: what every row shares
    const float* ridge;         // (rows,)
    float alpha;
    float target;
};

// m' m in float32, (F, F). O(n F^2) time, O(F^2) memory a block, at most 64 blocks.
void gram(Matrix<const float> m, float* out, int threads);

// Solves every row exactly into out (rows, F); a row with no events gets zeros.
// O(nnz F^2 + rows F^3) time, O(F^2) memory a thread. Throws NotPositiveDefinite.
void solve_cholesky(const Problem& problem, Matrix<float> out, int threads);

// `steps` conjugate-gradient steps from what out (rows, F) holds; a row with no events gets zeros.
// O((nnz F + rows F^2) steps) time, O(F) memory a thread.
void solve_cg(const Problem& problem, Matrix<float> out, int steps, int threads);

}  // namespace hybridrec
