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

// row = norm(row + other)
void add_and_norm(float* row, const float* other, int64_t n, const Norm& norm) {
    const float share = 1.0f / static_cast<float>(n);
    int64_t i = 0;
    Vec sums{};
    for (; i + kWidth <= n; i += kWidth) {
        const Vec v = load(row + i) + load(other + i);
        store(row + i, v);
        sums += v;
    }
    float total = sum(sums);
    for (; i < n; ++i) total += row[i] += other[i];
    const float mean = total * share;
    Vec squares{};
    for (i = 0; i + kWidth <= n; i += kWidth) {
        const Vec away = load(row + i) - mean;
        squares += away * away;
    }
    float spread = sum(squares);
    for (; i < n; ++i) spread += (row[i] - mean) * (row[i] - mean);
    const float inverse = 1.0f / std::sqrt(spread * share + norm.epsilon);
    for (i = 0; i + kWidth <= n; i += kWidth)
        store(row + i,
              (load(row + i) - mean) * inverse * load(norm.gain + i) + load(norm.shift + i));
    for (; i < n; ++i) row[i] = (row[i] - mean) * inverse * norm.gain[i] + norm.shift[i];
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
struct Rounded {
    explicit Rounded(int64_t inputs)
        : codes(static_cast<size_t>(kRows * ((inputs + kStep - 1) / kStep * kStep))),
          edge(kAtOnce * kPanel) {}

    std::vector<uint8_t> codes;  // (kRows, steps * kStep)
    float scale[kRows];
    int32_t zero[kRows];
    Buffer edge;  // the last panel, where it is not whole
};

void Linear8::rows(const float* x, int64_t count, Activation activation, float* out,
                   Rounded& rounded) const {
    const int64_t coded = steps_ * kStep;
    for (int64_t r = 0; r < count; ++r)
        encode(x + r * k_, k_, rounded.codes.data() + r * coded, rounded.scale + r,
               rounded.zero + r);
    float* edge = rounded.edge.get();
    for (int64_t n = 0; n < n_; n += kPanel) {
        const int8_t* panel = packed_.data() + n * coded;
        const bool whole = n + kPanel <= n_;
        for (int64_t r = 0; r < count; r += kAtOnce) {
            const int64_t some = std::min(kAtOnce, count - r);
            const Coded group{rounded.codes.data() + r * coded, rounded.scale + r,
                              rounded.zero + r};
            kTiles[some - 1](group, panel, steps_, sums_.data() + n, scale_.get() + n,
                             bias_.get() + n, activation, whole ? out + r * n_ + n : edge,
                             whole ? n_ : kPanel);
            for (int64_t i = 0; !whole && i < some; ++i)
                std::copy_n(edge + i * kPanel, n_ - n, out + (r + i) * n_ + n);
        }
    }
}

void Linear8::apply(Matrix<const float> x, Matrix<float> out, Activation activation,
                    int threads) const {
    parallel_for(x.rows, kRows, threads, [&] {
        return [&, rounded = Rounded(k_)](int64_t begin, int64_t end) mutable {
            rows(x.row(begin), end - begin, activation, out.row(begin), rounded);
        };
    });
}

void Linear8::apply(Matrix<const float> x, Matrix<const float> residual, const Norm& norm,
                    Matrix<float> out, int threads) const {
    parallel_for(x.rows, kRows, threads, [&] {
        return [&, rounded = Rounded(k_)](int64_t begin, int64_t end) mutable {
            rows(x.row(begin), end - begin, Activation::kNone, out.row(begin), rounded);
            for (int64_t r = begin; r < end; ++r)
                add_and_norm(out.row(r), residual.row(r), n_, norm);
        };
    });
}

void feed_forward(const Linear8& first, const Linear8& second, Matrix<const float> x,
                  const Norm& norm, Matrix<float> out, int threads) {
    const int64_t between = first.outputs();
    parallel_for(x.rows, kRows, threads, [&] {
        return [&, rounded = Rounded(std::max(first.inputs(), between)),
                wide = Buffer(kRows * between)](int64_t begin, int64_t end) mutable {
            const int64_t count = end - begin;
            first.rows(x.row(begin), count, Activation::kGelu, wide.get(), rounded);
            second.rows(wide.get(), count, Activation::kNone, out.row(begin), rounded);
            for (int64_t r = begin; r < end; ++r)
                add_and_norm(out.row(r), x.row(r), out.columns, norm);
        };
    });
}
#else
namespace {
[[noreturn]] void refuse_all() {
    refuse("this build of the core has no 8-bit products; wanted a CPU with AVX-512 VNNI");
}
}  // namespace

struct Rounded {};

void Linear8::rows(const float*, int64_t, Activation, float*, Rounded&) const { refuse_all(); }
void Linear8::apply(Matrix<const float>, Matrix<float>, Activation, int) const { refuse_all(); }
void Linear8::apply(Matrix<const float>, Matrix<const float>, const Norm&, Matrix<float>,
                    int) const {
    refuse_all();
}
void feed_forward(const Linear8&, const Linear8&, Matrix<const float>, const Norm&, Matrix<float>,
                  int) {
    refuse_all();
}
#endif

}  // namespace hybridrec
