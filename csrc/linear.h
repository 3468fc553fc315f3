// A linear layer of a network in a format that the CPU multiplies, and what may follow it in one
// pass.
#pragma once

#include <cstdint>
#include <vector>

#include "vec.h"
#include "views.h"

namespace hybridrec {

// 8-bit integers (VNNI): weights are rounded to 255 steps an output, once; inputs to 256 steps a
// row, as they come. Sums are exact in int32.
struct Int8 {
    using Weight = int8_t;
    using Code = uint8_t;
    static constexpr int64_t kStep = 4;  // inputs that an instruction takes together

    static bool runs();  // whether this build and CPU multiply them
};

// bfloat16: sums are float32.
struct BFloat16 {
    using Weight = uint16_t;
    using Code = uint16_t;
    static constexpr int64_t kStep = 2;

    static bool runs();
};

// float32, where the registers are many enough for a tile.
struct Float32 {
    using Weight = float;
    using Code = float;
    static constexpr int64_t kStep = 1;

    static bool runs();
};

enum class Activation { kNone, kGelu };

// Layer normalisation of a row.
struct Norm {
    const float* gain;   // (N,)
    const float* shift;  // (N,)
    float epsilon;
};

template <class Format>
struct Coded;  // rows of a thread in the format

// y = activation(x W' + b). A row has the same bits in any company.
template <class Format>
class Linear {
  public:
    // weight is (N, K); bias is (N,) or null. Refused where Format::runs() is not.
    Linear(Matrix<const float> weight, const float* bias);

    int64_t inputs() const { return k_; }
    int64_t outputs() const { return n_; }

    // x (T, K) -> out (T, N). O(T N K) time, O(K) memory a thread.
    void apply(Matrix<const float> x, Matrix<float> out, Activation activation, int threads) const;

    // out (T, N) = norm(x W' + b + residual), with residual (T, N).
    void apply(Matrix<const float> x, Matrix<const float> residual, const Norm& norm,
               Matrix<float> out, int threads) const;

    // The first without the threads, for `count` rows that lie end to end.
    void rows(const float* x, int64_t count, Activation activation, float* out,
              Coded<Format>& coded) const;

  private:
    int64_t n_, k_, steps_;
    std::vector<typename Format::Weight> packed_;  // (panels, steps, kPanel, kStep)
    std::vector<int32_t> sums_;                    // (panels * kPanel) of an output's integers
    Buffer scale_, bias_;                          // (panels * kPanel)
};

// out (T, N) = norm(second(gelu(first(x))) + x), with x (T, N): what lies between is never written
// to memory.
template <class Format>
void feed_forward(const Linear<Format>& first, const Linear<Format>& second, Matrix<const float> x,
                  const Norm& norm, Matrix<float> out, int threads);

}  // namespace hybridrec
