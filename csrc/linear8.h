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

// Layer normalisation of a row.
struct Norm {
    const float* gain;   // (N,)
    const float* shift;  // (N,)
    float epsilon;
};

struct Rounded;  // rows of a thread in 8 bits

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

    // out (T, N) = norm(x W' + b + residual), with residual (T, N).
    void apply(Matrix<const float> x, Matrix<const float> residual, const Norm& norm,
               Matrix<float> out, int threads) const;

    // The same without the threads, for rows that lie end to end.
    void rows(const float* x, int64_t count, Activation activation, float* out,
              Rounded& rounded) const;

  private:
    int64_t n_, k_, steps_;
    std::vector<int8_t> packed_;  // (panels, steps, kPanel, kStep)
    std::vector<int32_t> sums_;   // (panels * kPanel) of an output's rounded weights
    Buffer scale_, bias_;         // (panels * kPanel)
};

// out (T, N) = norm(second(gelu(first(x))) + x), with x (T, N): what lies between is never written
// to memory.
void feed_forward(const Linear8& first, const Linear8& second, Matrix<const float> x,
                  const Norm& norm, Matrix<float> out, int threads);

}  // namespace hybridrec
