#include "dense.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.h"

namespace hybridrec {
namespace {

constexpr int64_t kRows = 64;           // rows of a factor matrix taken at a time
constexpr int64_t kStrip = 2 * kWidth;  // columns of a product made at a time

// acc (R, V vectors) += sum over k of left(r, k) right(k, :). left(r, k) = left[r * row + k *
// step].
template <int64_t R, int64_t V>
inline void multiply_add(Vec (&acc)[R][V], const float* left, int64_t row, int64_t step,
                         const float* right, int64_t stride, int64_t k) {
    for (int64_t e = 0; e < k; ++e) {
        Vec y[V];
        for (int64_t v = 0; v < V; ++v) y[v] = load(right + e * stride + v * kWidth);
        for (int64_t r = 0; r < R; ++r) {
            const Vec x = broadcast(left[r * row + e * step]);
            for (int64_t v = 0; v < V; ++v) acc[r][v] += x * y[v];
        }
    }
}

// a[i..i+kTile)[j..j+V vectors) += left' right, over k rows of both.
template <int64_t V>
inline void tile_update(float* a, const float* left, const float* right, int64_t stride,
                        int64_t k) {
    Vec acc[kTile][V];
    for (int64_t r = 0; r < kTile; ++r)
        for (int64_t v = 0; v < V; ++v) acc[r][v] = load(a + r * stride + v * kWidth);
    multiply_add<kTile, V>(acc, left, 1, stride, right, stride, k);
    for (int64_t r = 0; r < kTile; ++r)
        for (int64_t v = 0; v < V; ++v) store(a + r * stride + v * kWidth, acc[r][v]);
}

// out (R, kStrip) = in (R, n) strip (n, kStrip), out's rows `stride` apart. Each entry is one sum
// in the order of n, so it has the same bits whatever R.
template <int64_t R>
inline void strip_product(const float* in, int64_t n, const float* strip, float* out,
                          int64_t stride) {
    Vec acc[R][2] = {};
    multiply_add<R, 2>(acc, in, n, 1, strip, kStrip, n);
    for (int64_t r = 0; r < R; ++r)
        for (int64_t v = 0; v < 2; ++v) store(out + r * stride + v * kWidth, acc[r][v]);
}

}  // namespace

void rank_update(float* a, int64_t stride, int64_t first, const float* left, const float* right,
                 int64_t k) {
    for (int64_t i = first; i < stride; i += kTile) {
        int64_t j = i / kWidth * kWidth;
        for (; j + 2 * kWidth <= stride; j += 2 * kWidth)
            tile_update<2>(a + i * stride + j, left + i, right + j, stride, k);
        if (j < stride) tile_update<1>(a + i * stride + j, left + i, right + j, stride, k);
    }
}

bool factorise(float* a, int64_t n, int64_t stride, float* scratch) {
    constexpr float kLost = std::numeric_limits<float>::epsilon();
    float* diagonal = scratch + kWidth * stride;
    for (int64_t i = 0; i < n; ++i) diagonal[i] = a[i * stride + i];
    for (int64_t start = 0; start < n; start += kWidth) {
        const int64_t end = std::min(n, start + kWidth);
        for (int64_t k = start; k < end; ++k) {
            float* row = a + k * stride;
            const float pivot = row[k];
            if (!(pivot > kLost * diagonal[k]) || !std::isfinite(pivot)) return false;
            const float scale = 1.0f / std::sqrt(pivot);
            // Whole vectors, from `start` on: zeros left of the diagonal change nothing, and what
            // a later row gets there is cleared when its turn comes.
            std::fill(row + start, row + k, 0.0f);
            for (int64_t j = start; j < stride; ++j) row[j] *= scale;
            for (int64_t i = k + 1; i < end; ++i)
                add_scaled(a + i * stride + start, -row[i], row + start, stride - start);
        }
        if (end == n) break;
        for (int64_t j = 0; j < (end - start) * stride; ++j) scratch[j] = -a[start * stride + j];
        rank_update(a, stride, end, scratch, a + start * stride, end - start);
    }
    return true;
}

void substitute(const float* u, int64_t n, int64_t stride, float* x) {
    for (int64_t k = 0; k < n; ++k) {
        const int64_t start = k / kWidth * kWidth;
        const float* row = u + k * stride;
        const float solved = x[k] / row[k];
        add_scaled(x + start, -solved, row + start, stride - start);
        x[k] = solved;
    }
    for (int64_t k = n - 1; k >= 0; --k) {
        const int64_t start = k / kWidth * kWidth;
        const float* row = u + k * stride;
        const float right = x[k];
        x[k] = 0.0f;
        x[k] = (right - dot(row + start, x + start, stride - start)) / row[k];
    }
}

void gram(Matrix<const float> m, float* out, int threads) {
    constexpr int64_t kPartial = int64_t{1} << 24;  // floats of the blocks' sums, about
    const int64_t n = m.columns, stride = padded(n);
    const int64_t most =
        std::clamp<int64_t>(kPartial / std::max<int64_t>(1, stride * stride), 4, 64);
    const int64_t block = std::max(kRows, (m.rows + most - 1) / most);
    const int64_t blocks = (m.rows + block - 1) / block;
    const Buffer partial(std::max<int64_t>(1, blocks) * stride * stride);
    parallel_for(m.rows, block, threads, [&] {
        return [&, rows = Buffer(kRows * stride)](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; r += kRows) {
                const int64_t k = std::min(kRows, end - r);
                for (int64_t e = 0; e < k; ++e)
                    std::copy_n(m.row(r + e), n, rows.get() + e * stride);
                rank_update(partial.get() + begin / block * stride * stride, stride, 0, rows.get(),
                            rows.get(), k);
            }
        };
    });
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i; j < n; ++j) {
            double total = 0.0;
            for (int64_t b = 0; b < blocks; ++b)
                total += partial.get()[(b * stride + i) * stride + j];
            out[i * n + j] = out[j * n + i] = static_cast<float>(total);
        }
}

void rotate(Matrix<float> m, const float* axes, int threads) {
    constexpr int64_t kAtOnce = 8;
    const int64_t n = m.columns, strips = (n + kStrip - 1) / kStrip, stride = strips * kStrip;
    // Strip by strip: columns of a wide matrix lie a power of two apart and evict each other.
    const Buffer packed(n * stride);
    for (int64_t f = 0; f < n; ++f)
        for (int64_t j = 0; j < n; ++j)
            packed.get()[(j / kStrip * n + f) * kStrip + j % kStrip] = axes[f * n + j];
    parallel_for(m.rows, kRows, threads, [&] {
        return [&, out = Buffer(kRows * stride)](int64_t begin, int64_t end) {
            for (int64_t s = 0; s < strips; ++s) {
                const float* strip = packed.get() + s * n * kStrip;
                float* to = out.get() + s * kStrip;
                int64_t r = 0;
                for (; r + kAtOnce <= end - begin; r += kAtOnce)
                    strip_product<kAtOnce>(m.row(begin + r), n, strip, to + r * stride, stride);
                for (; r < end - begin; ++r)
                    strip_product<1>(m.row(begin + r), n, strip, to + r * stride, stride);
            }
            for (int64_t r = 0; r < end - begin; ++r)
                std::copy_n(out.get() + r * stride, n, m.row(begin + r));
        };
    });
}

}  // namespace hybridrec
