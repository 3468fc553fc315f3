#include "attention.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "curves.h"
#include "parallel.h"
#include "vec.h"

namespace hybridrec {
namespace {

constexpr int64_t kRows = 4;    // query rows of a register tile
constexpr int64_t kLine = 16;   // floats of a cache line
constexpr int64_t kAhead = 12;  // rows that are asked for before they are taken
constexpr int64_t kRun = 256;   // query rows of the texts that share a packed prefix, about

// Neighbouring texts that see the same keys: [first, last).
struct Run {
    int64_t first, last;
};

std::vector<Run> runs_of(const Texts& texts) {
    std::vector<Run> runs;
    for (int64_t s = 0; s < texts.count; ++s) {
        const bool same = !runs.empty() && texts.seen[2 * s] == texts.seen[2 * s - 2] &&
                          texts.seen[2 * s + 1] == texts.seen[2 * s - 1] &&
                          texts.asks[s + 1] - texts.asks[runs.back().first] <= kRun;
        if (same)
            runs.back().last = s + 1;
        else
            runs.push_back({s, s + 1});
    }
    return runs;
}

// acc (kRows, V vectors) += sum over k of left(r, k) right(k, :), rows of right `stride` apart
template <int64_t V>
inline void multiply(Vec (&acc)[kRows][V], const float* left, int64_t row, const float* right,
                     int64_t stride, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        Vec y[V];
        unrolled<V>([&](auto v) { y[v] = load(right + i * stride + v * kWidth); });
        unrolled<kRows>([&](auto r) {
            const Vec x = broadcast(left[r * row + i]);
            unrolled<V>([&](auto v) { acc[r][v] += x * y[v]; });
        });
    }
}

// to (kRows, V vectors of columns, rows `to_row` apart) = left right
template <int64_t V>
inline void product(const float* left, int64_t row, const float* right, int64_t stride, int64_t n,
                    float* to, int64_t to_row) {
    Vec acc[kRows][V] = {};
    multiply<V>(acc, left, row, right, stride, n);
    unrolled<kRows>([&](auto r) {
        unrolled<V>([&](auto v) { store(to + r * to_row + v * kWidth, acc[r][v]); });
    });
}

// What a thread needs for one head of a run.
class Worker {
  public:
    Worker(const Texts& texts, const Heads& heads)
        : width_(heads.width),
          across_(padded(heads.width)),
          longest_(longest(texts)),
          keys_(width_ * longest_),
          values_(longest_ * across_),
          q_(kRows * width_),
          weights_(kRows * longest_),
          mixed_(kRows * across_) {}

    // Keys `first` to `last` as columns of keys_ and rows of values_, from `at` on.
    void take(const Rows& k, const Rows& v, int64_t head, int64_t first, int64_t last, int64_t at) {
        for (int64_t j = first; j < last; ++j) {
            if (j + kAhead < last) {
                fetch(k.row(j + kAhead) + head * width_);
                fetch(v.row(j + kAhead) + head * width_);
            }
            copy(v.row(j) + head * width_, values_.get() + (at + j - first) * across_, width_);
        }
        int64_t j = first;
        for (; j + 4 <= last; j += 4) stand(k, head, j, at + j - first);
        for (; j < last; ++j)
            for (int64_t d = 0; d < width_; ++d)
                keys_.get()[d * longest_ + at + j - first] = k.row(j)[head * width_ + d];
    }

    // Asks for what row `at` of a head has: the CPU does not foresee rows so far apart.
    void fetch(const float* at) const {
        for (int64_t d = 0; d < width_; d += kLine) __builtin_prefetch(at + d);
    }
    void fetch_to_write(float* at) const {
        for (int64_t d = 0; d < width_; d += kLine) __builtin_prefetch(at + d, 1);
    }

    // Query rows [first, last) of a head over `seen` + `own` keys that were taken.
    void answer(Matrix<const float> q, int64_t head, int64_t first, int64_t last, int64_t seen,
                int64_t own, float scale, const Sight& sight, Matrix<float> out) {
        const int64_t n = seen + own;
        for (int64_t t = first; t < last; t += kRows) {
            const int64_t rows = std::min(kRows, last - t);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t d = 0; d < width_; ++d)
                    q_.get()[r * width_ + d] = scale * q.row(t + r)[head * width_ + d];
            scores(n);
            float inverse[kRows] = {};
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t place = n - (last - t - r), window = sight.window;
                const int64_t begin = window ? place - window + 1 : 0;
                const int64_t end = sight.causal ? place + 1 : window ? place + window : n;
                inverse[r] = soften(weights_.get() + r * longest_, std::clamp<int64_t>(begin, 0, n),
                                    std::clamp<int64_t>(end, 0, n), n);
            }
            mix(n);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t d = 0; d < width_; ++d)
                    out.row(t + r)[head * width_ + d] = inverse[r] * mixed_.get()[r * across_ + d];
        }
    }

  private:
    static int64_t longest(const Texts& texts) {
        int64_t most = 0;
        for (int64_t s = 0; s < texts.count; ++s) {
            const int64_t *own = texts.own + 2 * s, *seen = texts.seen + 2 * s;
            most = std::max(most, own[1] - own[0] + seen[1] - seen[0]);
        }
        // Not a power of two apart: columns of keys would evict each other.
        return padded(std::max<int64_t>(most, 1)) + kWidth;
    }

    // Keys j to j + 3 as columns `at` to `at` + 3.
    void stand(const Rows& k, int64_t head, int64_t j, int64_t at) {
        const float* from[4];
        for (int64_t r = 0; r < 4; ++r) from[r] = k.row(j + r) + head * width_;
        int64_t d = 0;
        for (; d + 4 <= width_; d += 4) {
            Four x[4];
            for (int64_t r = 0; r < 4; ++r) std::memcpy(&x[r], from[r] + d, sizeof x[r]);
            turn(x);
            for (int64_t r = 0; r < 4; ++r)
                std::memcpy(keys_.get() + (d + r) * longest_ + at, &x[r], sizeof x[r]);
        }
        for (; d < width_; ++d)
            for (int64_t r = 0; r < 4; ++r) keys_.get()[d * longest_ + at + r] = from[r][d];
    }

    void scores(int64_t n) {
        int64_t j = 0;
        for (; j + 3 * kWidth < n; j += 4 * kWidth)
            product<4>(q_.get(), width_, keys_.get() + j, longest_, width_, weights_.get() + j,
                       longest_);
        for (; j < n; j += kWidth)
            product<1>(q_.get(), width_, keys_.get() + j, longest_, width_, weights_.get() + j,
                       longest_);
    }

    // e^(s - largest) of scores [begin, end) of n, 0 elsewhere; 1 / their sum.
    static float soften(float* s, int64_t begin, int64_t end, int64_t n) {
        if (begin >= end) {
            std::fill(s, s + padded(n), 0.0f);
            return 0.0f;
        }
        const float least = -std::numeric_limits<float>::infinity();
        std::fill(s, s + begin, least);
        std::fill(s + end, s + padded(n), least);
        Vec largest = broadcast(least);
        for (int64_t j = 0; j < end; j += kWidth) {
            const Vec v = load(s + j);
            largest = v > largest ? v : largest;
        }
        const float most = greatest(largest);
        Vec total{};
        for (int64_t j = 0; j < padded(n); j += kWidth) {
            const Vec e = exp(load(s + j) - broadcast(most));
            store(s + j, e);
            total += e;
        }
        const float all = sum(total);
        return 1.0f / all;
    }

    void mix(int64_t n) {
        int64_t d = 0;
        for (; d + 2 * kWidth <= across_; d += 2 * kWidth)
            product<2>(weights_.get(), longest_, values_.get() + d, across_, n, mixed_.get() + d,
                       across_);
        for (; d < across_; d += kWidth)
            product<1>(weights_.get(), longest_, values_.get() + d, across_, n, mixed_.get() + d,
                       across_);
    }

    int64_t width_, across_, longest_;
    Buffer keys_;     // (D, longest), a key a column
    Buffer values_;   // (longest, across)
    Buffer q_;        // (kRows, D), scaled
    Buffer weights_;  // (kRows, longest)
    Buffer mixed_;    // (kRows, across)
};

}  // namespace

void attend(Matrix<const float> q, const Rows& k, const Rows& v, const Texts& texts,
            const Heads& heads, float scale, const Sight& sight, Matrix<float> out, int threads) {
    const std::vector<Run> runs = runs_of(texts);
    const int64_t share = heads.query / heads.key, width = heads.width;
    parallel_for(static_cast<int64_t>(runs.size()) * heads.key, 1, threads, [&] {
        return [&, worker = Worker(texts, heads)](int64_t task, int64_t) mutable {
            const Run run = runs[static_cast<size_t>(task / heads.key)];
            const int64_t head = task % heads.key;
            const int64_t* seen = texts.seen + 2 * run.first;
            const int64_t before = seen[1] - seen[0];
            worker.take(k, v, head, seen[0], seen[1], 0);
            for (int64_t s = run.first; s < run.last; ++s) {
                const int64_t* own = texts.own + 2 * s;
                if (s + 1 < run.last) {
                    for (int64_t j = own[2]; j < own[3]; ++j) {
                        worker.fetch(k.row(j) + head * width);
                        worker.fetch(v.row(j) + head * width);
                    }
                    for (int64_t t = texts.asks[s + 1]; t < texts.asks[s + 2]; ++t)
                        for (int64_t h = head * share; h < (head + 1) * share; ++h) {
                            worker.fetch(q.row(t) + h * width);
                            worker.fetch_to_write(out.row(t) + h * width);
                        }
                }
                worker.take(k, v, head, own[0], own[1], before);
                for (int64_t h = head * share; h < (head + 1) * share; ++h)
                    worker.answer(q, h, texts.asks[s], texts.asks[s + 1], before, own[1] - own[0],
                                  scale, sight, out);
            }
        };
    });
}

}  // namespace hybridrec
