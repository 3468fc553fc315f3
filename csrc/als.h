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

// The normal equations of row u:  (diag(shared + ridge[u]) + sum c y y') x = sum c target y,
// over the row's events, c = alpha * weight, y the other side's factor of the event.
//
// What every row shares is the Gramian of the other side. It is diagonal here because both sides
// are turned to its principal axes first: inner products do not change, and a row pays nothing for
// it.
struct Problem {
    Ragged rows;
    Matrix<const float> other;  // (J, F) in principal axes
    const float* shared;        // (F,) >= 0
    const float* ridge;         // (rows,)
    float alpha;
    float target;
};

// Solves every row exactly into out (rows, F); a row with no events gets zeros.
// O(min(n, F) n F + min(n, F)^3) time for a row of n events, O(F^2) memory a thread.
// Throws NotPositiveDefinite.
void solve_exact(const Problem& problem, Matrix<float> out, int threads);

// `steps` conjugate-gradient steps from what x (rows, F) holds, preconditioned by the diagonal that
// is there without events, and `relaxation` times as far as they lead: over-relaxation, which a row
// that starts from zeros is spared. A row with no events gets zeros.
// O((nnz F + rows F) steps) time; 6 F floats a thread, and for every row that is solved side by
// side with others. Throws overflow_error where a row's equations are beyond float32.
void solve_cg(const Problem& problem, Matrix<float> x, int steps, float relaxation, int threads);

}  // namespace hybridrec
