#include "linear8.h"

#include <algorithm>
#include <cmath>

#if defined(__AVX512VNNI__)
#if !defined(__clang__)
// GCC takes the "undefined" operands of its own intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "curves.h"
#include "parallel.h"

namespace hybridrec {
namespace {

constexpr int64_t kPanel = 64;  // outputs made together
constexpr int64_t kStep = 4;    // inputs that an instruction takes together
constexpr int64_t kRows = 48;   // rows rounded together: they stay in L1 while the weights pass
constexpr int64_t kAtOnce = 6;  // rows of a register tile; divides kRows
constexpr float kLargest = 127.0f;

int64_t panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

#if defined(__AVX512VNNI__)
constexpr int64_t kVecs = kPanel / kWidth;

// Rows of x as steps: x is about scale * (code - zero).
struct Coded {
    const uint8_t* codes;  // (rows, steps * kStep)
    const float* scale;
    const int32_t* zero;
};

// scale and zero such that 0 is met exactly, and the codes; `codes` goes on with what it holds.
void encode(const float* x, int64_t n, uint8_t* codes, float* scale, int32_t* zero) {
    Vec low{}, high{};
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
        const Vec v = load(x + i);
        low = chosen(v < low, v, low);
        high = chosen(v > high, v, high);
    }
    float least = 0.0f, most = 0.0f;
    for (int64_t lane = 0; lane < kWidth; ++lane) {
        least = std::min(least, low[lane]);
        most = std::max(most, high[lane]);
    }
    for (int64_t j = i; j < n; ++j) {
        least = std::min(least, x[j]);
        most = std::max(most, x[j]);
    }
    const float range = most - least;
    *scale = range > 0.0f ? range / 255.0f : 1.0f;
    const float inverse = 1.0f / *scale;
    *zero = static_cast<int32_t>(std::lrint(-least * inverse));
    const __m512i offset = _mm512_set1_epi32(*zero);
    for (i = 0; i + kWidth <= n; i += kWidth) {
        const __m512i rounded = _mm512_cvtps_epi32(load(x + i) * inverse);
        // Saturating: what rounds to 256 is 255.
        const __m512i code = _mm512_max_epi32(_mm512_add_epi32(rounded, offset), __m512i{});
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtusepi32_epi8(code));
    }
    for (; i < n; ++i)
        codes[i] =
            static_cast<uint8_t>(std::clamp<int64_t>(std::lrint(x[i] * inverse) + *zero, 0, 255));
}

// out (R, kPanel) of R rows and one panel of weights
template <int64_t R>
void tile(const Coded& x, const int8_t* panel, int64_t steps, const int32_t* sums,
          const float* scale, const float* bias, Activation activation, float* out,
          int64_t stride) {
    VecMask acc[R][kVecs];
    const uint8_t* rows[R];
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
        rows[r] = x.codes + r * steps * kStep;
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) { acc[r][v] = VecMask{}; });
    });
    for (int64_t s = 0; s < steps; ++s) {
        __m512i weights[kVecs];
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
            weights[v] = _mm512_loadu_si512(panel + (s * kVecs + v) * 64);
        });
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            int32_t four;
            std::memcpy(&four, rows[r] + s * kStep, sizeof four);
            const __m512i codes = _mm512_set1_epi32(four);
            unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
                acc[r][v] = reinterpret_cast<VecMask>(
                    _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc[r][v]), codes, weights[v]));
            });
        });
    }
    unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
        VecMask sum;
        std::memcpy(&sum, sums + v * kWidth, sizeof sum);
        const Vec by = load(scale + v * kWidth), add = load(bias + v * kWidth);
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            const VecMask exact = acc[r][v] - sum * x.zero[r];
            Vec y = _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(exact));
            y = y * (by * x.scale[r]) + add;
            if (activation == Activation::kGelu) y = gelu(y);
            store(out + r * stride + v * kWidth, y);
        });
    });
}

using Tile = void (*)(const Coded&, const int8_t*, int64_t, const int32_t*, const float*,
                      const float*, Activation, float*, int64_t);
constexpr Tile kTiles[kAtOnce] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
#endif

}  // namespace

Linear8::Linear8(Matrix<const float> weight, const float* bias)
    : n_(weight.rows),
      k_(weight.columns),
      steps_((weight.columns + kStep - 1) / kStep),
      packed_(static_cast<size_t>(panels(n_) * kPanel * steps_ * kStep)),
      sums_(static_cast<size_t>(panels(n_) * kPanel)),
      scale_(panels(n_) * kPanel),
      bias_(panels(n_) * kPanel) {
    for (int64_t n = 0; n < n_; ++n) {
        const float* row = weight.row(n);
        float largest = 0.0f;
        for (int64_t k = 0; k < k_; ++k) largest = std::max(largest, std::abs(row[k]));
        const float scale = largest > 0.0f ? largest / kLargest : 1.0f;
        scale_.get()[n] = scale;
        if (bias) bias_.get()[n] = bias[n];
        int8_t* panel = packed_.data() + n / kPanel * kPanel * steps_ * kStep;
        for (int64_t k = 0; k < k_; ++k) {
            const auto code = static_cast<int8_t>(std::lrint(row[k] / scale));
            panel[(k / kStep * kPanel + n % kPanel) * kStep + k % kStep] = code;
            sums_[static_cast<size_t>(n)] += code;
        }
    }
}

#if defined(__AVX512VNNI__)
void Linear8::apply(Matrix<const float> x, Matrix<float> out, Activation activation,
                    int threads) const {
    const int64_t coded = steps_ * kStep;
    parallel_for(x.rows, kRows, threads, [&] {
        return [&, codes = std::vector<uint8_t>(static_cast<size_t>(kRows * coded)),
                edge = Buffer(kAtOnce * kPanel)](int64_t begin, int64_t end) mutable {
            float scale[kRows];
            int32_t zero[kRows];
            for (int64_t r = begin; r < end; ++r)
                encode(x.row(r), k_, codes.data() + (r - begin) * coded, scale + r - begin,
                       zero + r - begin);
            for (int64_t n = 0; n < n_; n += kPanel) {
                const int8_t* panel = packed_.data() + n * coded;
                const bool whole = n + kPanel <= n_;
                for (int64_t r = begin; r < end; r += kAtOnce) {
                    const int64_t at = r - begin, rows = std::min(kAtOnce, end - r);
                    const Coded group{codes.data() + at * coded, scale + at, zero + at};
                    kTiles[rows - 1](group, panel, steps_, sums_.data() + n, scale_.get() + n,
                                     bias_.get() + n, activation,
                                     whole ? out.row(r) + n : edge.get(), whole ? n_ : kPanel);
                    for (int64_t i = 0; !whole && i < rows; ++i)
                        std::copy_n(edge.get() + i * kPanel, n_ - n, out.row(r + i) + n);
                }
            }
        };
    });
}
#else
void Linear8::apply(Matrix<const float>, Matrix<float>, Activation, int) const {
    refuse("this build of the core has no 8-bit products; wanted a CPU with AVX-512 VNNI");
}
#endif

}  // namespace hybridrec
