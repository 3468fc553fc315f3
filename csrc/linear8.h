// A linear layer of a network in 8-bit integers, where the CPU multiplies them (VNNI).
#pragma once

#include <cstdint>
#include <vector>

#include "vec.h"
#include "views.h"

namespace hybridrec {

#if defined(__AVX512VNNI__)
constexpr bool kHasLinear8 = true;
#else
constexpr bool kHasLinear8 = false;
#endif

enum class Activation { kNone, kGelu };

// y = activation(x W' + b). Weights are rounded to 255 steps an output, once; inputs to 256 steps a
// row, as they come. Sums are exact in int32, so a row has the same bits in any company.
class Linear8 {
  public:
    // weight is (N, K); bias is (N,) or null.
    Linear8(Matrix<const float> weight, const float* bias);

    int64_t inputs() const { return k_; }
    int64_t outputs() const { return n_; }

    // x (T, K) -> out (T, N). O(T N K) time, O(K) memory a thread.
    void apply(Matrix<const float> x, Matrix<float> out, Activation activation, int threads) const;

  private:
    int64_t n_, k_, steps_;
    std::vector<int8_t> packed_;  // (panels, steps, kPanel, kStep)
    std::vector<int32_t> sums_;   // (panels * kPanel) of an output's rounded weights
    Buffer scale_, bias_;         // (panels * kPanel)
};

}  // namespace hybridrec
