#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "curves.h"
#include "parallel.h"

namespace hybridrec {
namespace {

constexpr int64_t kPanel = 64;  // outputs made together
constexpr int64_t kVecs = kPanel / kWidth;
constexpr int64_t kRows = 48;   // rows rounded together: they stay in L1 while the weights pass
constexpr int64_t kAtOnce = 6;  // rows of a register tile; divides kRows
constexpr float kLargest = 127.0f;

int64_t panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

// Up to kAtOnce rows and one panel of weights.
template <class Format>
struct Product {
    const typename Format::Code* codes;  // (rows, steps * kStep)
    const float* row_scale;              // x is about row_scale * (code - zero)
    const int32_t* zero;
    const typename Format::Weight* panel;  // (steps, kPanel, kStep)
    int64_t steps;
    const int32_t* sums;
    const float *scale, *bias;
    Activation activation;
    float* out;  // (rows, kPanel), rows `stride` apart
    int64_t stride;
};

template <class Format>
using Tile = void (*)(const Product<Format>&);

#if defined(__AVX512VNNI__)
// scale and zero such that 0 is met exactly, and the codes; `codes` goes on with what it holds.
void encode(const float* x, int64_t n, uint8_t* codes, float* scale, int32_t* zero) {
    Vec low{}, high{};
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
        const Vec v = load(x + i);
        low = v < low ? v : low;
        high = v > high ? v : high;
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

template <int64_t R>
void tile(const Product<Int8>& p) {
    VecMask acc[R][kVecs];
    const uint8_t* rows[R];
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
        rows[r] = p.codes + r * p.steps * Int8::kStep;
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) { acc[r][v] = VecMask{}; });
    });
    for (int64_t s = 0; s < p.steps; ++s) {
        __m512i weights[kVecs];
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
            weights[v] = _mm512_loadu_si512(p.panel + (s * kVecs + v) * 64);
        });
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            int32_t four;
            std::memcpy(&four, rows[r] + s * Int8::kStep, sizeof four);
            const __m512i codes = _mm512_set1_epi32(four);
            unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
                acc[r][v] = reinterpret_cast<VecMask>(
                    _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc[r][v]), codes, weights[v]));
            });
        });
    }
    unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
        VecMask sum;
        std::memcpy(&sum, p.sums + v * kWidth, sizeof sum);
        const Vec by = load(p.scale + v * kWidth), add = load(p.bias + v * kWidth);
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            const VecMask exact = acc[r][v] - sum * p.zero[r];
            Vec y = _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(exact));
            y = y * (by * p.row_scale[r]) + add;
            if (p.activation == Activation::kGelu) y = gelu(y);
            store(p.out + r * p.stride + v * kWidth, y);
        });
    });
}

void encode(const float* x, int64_t n, uint16_t* codes, float*, int32_t*) {
    for (int64_t i = 0; i < n; i += kWidth) {
        const auto left = static_cast<unsigned>(std::min(kWidth, n - i));
        const auto some = static_cast<__mmask16>((1u << left) - 1u);
        const __m256bh low = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, x + i));
        _mm256_mask_storeu_epi16(codes + i, some, reinterpret_cast<__m256i>(low));
    }
}

template <int64_t R>
void tile(const Product<BFloat16>& p) {
    __m512 acc[R][kVecs];
    const uint16_t* rows[R];
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
        rows[r] = p.codes + r * p.steps * BFloat16::kStep;
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) { acc[r][v] = __m512{}; });
    });
    for (int64_t s = 0; s < p.steps; ++s) {
        __m512bh weights[kVecs];
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
            std::memcpy(&weights[v], p.panel + (s * kVecs + v) * 32, sizeof weights[v]);
        });
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            int32_t two;
            std::memcpy(&two, rows[r] + s * BFloat16::kStep, sizeof two);
            const auto codes = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
            unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
                acc[r][v] = _mm512_dpbf16_ps(acc[r][v], codes, weights[v]);
            });
        });
    }
    unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
        const Vec add = load(p.bias + v * kWidth);
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            Vec y = acc[r][v] + add;
            if (p.activation == Activation::kGelu) y = gelu(y);
            store(p.out + r * p.stride + v * kWidth, y);
        });
    });
}

void encode(const float* x, int64_t n, float* codes, float*, int32_t*) { copy(x, codes, n); }

template <int64_t R>
void tile(const Product<Float32>& p) {
    Vec acc[R][kVecs];
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
        unrolled<kVecs>(
            [&](auto v) __attribute__((always_inline)) { acc[r][v] = load(p.bias + v * kWidth); });
    });
    for (int64_t s = 0; s < p.steps; ++s) {
        Vec weights[kVecs];
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
            weights[v] = load(p.panel + (s * kVecs + v) * kWidth);
        });
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            const Vec x = broadcast(p.codes[r * p.steps + s]);
            unrolled<kVecs>([&](auto v)
                                __attribute__((always_inline)) { acc[r][v] += x * weights[v]; });
        });
    }
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
            const Vec y = p.activation == Activation::kGelu ? gelu(acc[r][v]) : acc[r][v];
            store(p.out + r * p.stride + v * kWidth, y);
        });
    });
}

template <class Format>
constexpr Tile<Format> kTiles[kAtOnce] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
#else
// Never reached: no layer can be made.
template <class Code>
void encode(const float*, int64_t, Code*, float*, int32_t*) {}
template <class Format>
constexpr Tile<Format> kTiles[kAtOnce] = {};
#endif

// An output's weights as codes; their scale and, of integers, their sum.
void round(const float* row, int64_t n, int8_t* codes, float* scale, int32_t* total) {
    float largest = 0.0f;
    for (int64_t k = 0; k < n; ++k) largest = std::max(largest, std::abs(row[k]));
    *scale = largest > 0.0f ? largest / kLargest : 1.0f;
    for (int64_t k = 0; k < n; ++k) {
        codes[k] = static_cast<int8_t>(std::lrint(row[k] / *scale));
        *total += codes[k];
    }
}

void round(const float* row, int64_t n, uint16_t* codes, float*, int32_t*) {
    for (int64_t k = 0; k < n; ++k) {
        uint32_t bits;
        std::memcpy(&bits, row + k, sizeof bits);
        codes[k] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to even
    }
}

void round(const float* row, int64_t n, float* codes, float*, int32_t*) { copy(row, codes, n); }

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
    for (i = 0; i + kWidth <= n; i += kWidth) {
        const Vec even = (load(row + i) - mean) * inverse;
        store(row + i, even * load(norm.gain + i) + load(norm.shift + i));
    }
    for (; i < n; ++i) row[i] = (row[i] - mean) * inverse * norm.gain[i] + norm.shift[i];
}

}  // namespace

bool Int8::runs() {
#if defined(__AVX512VNNI__)
    return true;
#else
    return false;
#endif
}

bool BFloat16::runs() {
#if defined(__AVX512VNNI__)
    return __builtin_cpu_supports("avx512bf16");  // more than the rest of this build asks for
#else
    return false;
#endif
}

bool Float32::runs() { return Int8::runs(); }

template <class Format>
struct Coded {
    explicit Coded(int64_t inputs)
        : codes(static_cast<size_t>(kRows * (inputs + Format::kStep))), edge(kAtOnce * kPanel) {}

    std::vector<typename Format::Code> codes;  // (kRows, steps * kStep)
    float scale[kRows];
    int32_t zero[kRows];
    Buffer edge;  // the last panel, where it is not whole
};

template <class Format>
Linear<Format>::Linear(Matrix<const float> weight, const float* bias)
    : n_(weight.rows),
      k_(weight.columns),
      steps_((weight.columns + Format::kStep - 1) / Format::kStep),
      packed_(static_cast<size_t>(panels(n_) * kPanel * steps_ * Format::kStep)),
      sums_(static_cast<size_t>(panels(n_) * kPanel)),
      scale_(panels(n_) * kPanel),
      bias_(panels(n_) * kPanel) {
    if (!Format::runs()) refuse("this CPU has no instructions for such products");
    std::vector<typename Format::Weight> codes(static_cast<size_t>(k_));
    for (int64_t n = 0; n < n_; ++n) {
        round(weight.row(n), k_, codes.data(), scale_.get() + n, &sums_[static_cast<size_t>(n)]);
        if (bias) bias_.get()[n] = bias[n];
        auto* panel = packed_.data() + n / kPanel * kPanel * steps_ * Format::kStep;
        for (int64_t k = 0; k < k_; ++k)
            panel[(k / Format::kStep * kPanel + n % kPanel) * Format::kStep + k % Format::kStep] =
                codes[static_cast<size_t>(k)];
    }
}

template <class Format>
void Linear<Format>::rows(const float* x, int64_t count, Activation activation, float* out,
                          Coded<Format>& coded) const {
    const int64_t width = steps_ * Format::kStep;
    for (int64_t r = 0; r < count; ++r) {
        auto* codes = coded.codes.data() + r * width;
        encode(x + r * k_, k_, codes, coded.scale + r, coded.zero + r);
        // What another layer left there might not be a number, and 0 times that is none either.
        std::fill(codes + k_, codes + width, typename Format::Code{});
    }
    float* edge = coded.edge.get();
    for (int64_t n = 0; n < n_; n += kPanel) {
        const bool whole = n + kPanel <= n_;
        for (int64_t r = 0; r < count; r += kAtOnce) {
            const int64_t some = std::min(kAtOnce, count - r);
            kTiles<Format>[some - 1]({coded.codes.data() + r * width, coded.scale + r,
                                      coded.zero + r, packed_.data() + n * width, steps_,
                                      sums_.data() + n, scale_.get() + n, bias_.get() + n,
                                      activation, whole ? out + r * n_ + n : edge,
                                      whole ? n_ : kPanel});
            for (int64_t i = 0; !whole && i < some; ++i)
                std::copy_n(edge + i * kPanel, n_ - n, out + (r + i) * n_ + n);
        }
    }
}

template <class Format>
void Linear<Format>::apply(Matrix<const float> x, Matrix<float> out, Activation activation,
                           int threads) const {
    parallel_for(x.rows, kRows, threads, [&] {
        return [&, coded = Coded<Format>(k_)](int64_t begin, int64_t end) mutable {
            rows(x.row(begin), end - begin, activation, out.row(begin), coded);
        };
    });
}

template <class Format>
void Linear<Format>::apply(Matrix<const float> x, Matrix<const float> residual, const Norm& norm,
                           Matrix<float> out, int threads) const {
    parallel_for(x.rows, kRows, threads, [&] {
        return [&, coded = Coded<Format>(k_)](int64_t begin, int64_t end) mutable {
            rows(x.row(begin), end - begin, Activation::kNone, out.row(begin), coded);
            for (int64_t r = begin; r < end; ++r)
                add_and_norm(out.row(r), residual.row(r), n_, norm);
        };
    });
}

template <class Format>
void feed_forward(const Linear<Format>& first, const Linear<Format>& second, Matrix<const float> x,
                  const Norm& norm, Matrix<float> out, int threads) {
    const int64_t between = first.outputs();
    parallel_for(x.rows, kRows, threads, [&] {
        return [&, coded = Coded<Format>(std::max(first.inputs(), between)),
                wide = Buffer(kRows * between)](int64_t begin, int64_t end) mutable {
            const int64_t count = end - begin;
            first.rows(x.row(begin), count, Activation::kGelu, wide.get(), coded);
            second.rows(wide.get(), count, Activation::kNone, out.row(begin), coded);
            for (int64_t r = begin; r < end; ++r)
                add_and_norm(out.row(r), x.row(r), out.columns, norm);
        };
    });
}

template class Linear<Int8>;
template class Linear<BFloat16>;
template class Linear<Float32>;
template void feed_forward(const Linear<Int8>&, const Linear<Int8>&, Matrix<const float>,
                           const Norm&, Matrix<float>, int);
template void feed_forward(const Linear<BFloat16>&, const Linear<BFloat16>&, Matrix<const float>,
                           const Norm&, Matrix<float>, int);
template void feed_forward(const Linear<Float32>&, const Linear<Float32>&, Matrix<const float>,
                           const Norm&, Matrix<float>, int);

}  // namespace hybridrec
