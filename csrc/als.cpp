#include "als.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dense.h"
#include "parallel.h"
#include "vec.h"

namespace hybridrec {
namespace {

constexpr int64_t kBlock = 16;  // events worked on at a time: their rows stay in L1
constexpr int64_t kRows = 8;    // events whose products are summed at a time
constexpr int64_t kAhead = 12;
constexpr int64_t kKept = int64_t{1} << 17;  // floats of a row's events kept gathered: half of L2
constexpr int64_t kWork = 4096;              // events a thread takes at a time

// Some of a row's events: their factors, rows `stride` apart, and their c. Both go on with zeros up
// to a multiple of kRows events.
struct Block {
    const float* rows;
    const float* c;
    int64_t size;  // with the zeros
};

// One row's events, block by block. A row whose events fit is gathered once and read from L2 then.
class Events {
  public:
    explicit Events(const Problem& problem)
        : problem_(problem),
          n_(problem.other.columns),
          stride_(padded(n_)),
          end_(problem.rows.indptr[problem.rows.rows]),
          kept_(std::max(kBlock, kKept / std::max(stride_, int64_t{1}) / kBlock * kBlock)),
          rows_(kept_ * stride_),
          c_(kept_) {}

    void start(int64_t u) {
        first_ = problem_.rows.indptr[u];
        size_ = problem_.rows.length(u);
        gathered_ = 0;
    }
    int64_t size() const { return size_; }

    // The events from e on, a multiple of kBlock.
    Block block(int64_t e) {
        const bool stays = size_ <= kept_;
        const int64_t at = stays ? e : 0, size = std::min(kBlock, size_ - e);
        const Block block{rows_.get() + at * stride_, c_.get() + at,
                          (size + kRows - 1) / kRows * kRows};
        if (!stays || e >= gathered_) gather(e, size, rows_.get() + at * stride_, c_.get() + at);
        return block;
    }

  private:
    void gather(int64_t e, int64_t size, float* rows, float* c) {
        for (int64_t i = 0; i < size; ++i) {
            // The next rows of the problem follow in memory: what is ahead may be theirs.
            if (first_ + e + i + kAhead < end_) prefetch(row(e + i + kAhead));
            copy(row(e + i), rows + i * stride_, n_);
        }
        for (int64_t i = 0; i < size; ++i)
            c[i] = problem_.alpha * problem_.rows.weight(first_ + e + i);
        for (int64_t i = size; i % kRows != 0; ++i) {
            std::fill_n(rows + i * stride_, n_, 0.0f);
            c[i] = 0.0f;
        }
        gathered_ = e + size;
    }

    const float* row(int64_t e) const {
        return problem_.other.row(problem_.rows.items[first_ + e]);
    }
    void prefetch(const float* row) const {
        for (int64_t f = 0; f < n_; f += 16) __builtin_prefetch(row + f);
    }

    const Problem& problem_;
    int64_t n_, stride_, end_, kept_;
    int64_t first_ = 0, size_ = 0, gathered_ = 0;
    Buffer rows_, c_;
};

// out[i] = rows[i] . v
void block_dots(const Block& block, const float* v, int64_t stride, float* out) {
    for (int64_t i = 0; i < block.size; i += kRows) {
        const float* rows = block.rows + i * stride;
        Vec acc[kRows] = {};
        for (int64_t f = 0; f < stride; f += kWidth) {
            const Vec x = load(v + f);
            for (int64_t r = 0; r < kRows; ++r) acc[r] += x * load(rows + r * stride + f);
        }
        sums(acc[0], acc[1], acc[2], acc[3], out + i);
        sums(acc[4], acc[5], acc[6], acc[7], out + i + 4);
    }
}

// out += sum of s[i] rows[i], V vectors wide
template <int64_t V>
inline void strip_add(const Block& block, const float* s, int64_t stride, int64_t f, float* out) {
    Vec acc[V];
    for (int64_t v = 0; v < V; ++v) acc[v] = load(out + f + v * kWidth);
    for (int64_t i = 0; i < block.size; ++i) {
        const Vec c = broadcast(s[i]);
        const float* row = block.rows + i * stride + f;
        for (int64_t v = 0; v < V; ++v) acc[v] += c * load(row + v * kWidth);
    }
    for (int64_t v = 0; v < V; ++v) store(out + f + v * kWidth, acc[v]);
}

// out += sum of s[i] rows[i]
void block_add(const Block& block, const float* s, int64_t stride, float* out) {
    int64_t f = 0;
    for (; f + 4 * kWidth <= stride; f += 4 * kWidth) strip_add<4>(block, s, stride, f, out);
    for (; f < stride; f += kWidth) strip_add<1>(block, s, stride, f, out);
}

// What a thread needs to take conjugate-gradient steps. Vectors are padded with zeros.
class ConjugateGradient {
  public:
    explicit ConjugateGradient(const Problem& problem)
        : problem_(problem),
          n_(problem.other.columns),
          stride_(padded(n_)),
          events_(problem),
          x_(stride_),
          d_(stride_),
          inverse_(stride_),
          r_(stride_),
          p_(stride_),
          ap_(stride_) {}

    void solve(int64_t u, float* out, int steps) {
        events_.start(u);
        float *x = x_.get(), *d = d_.get(), *inverse = inverse_.get();
        float *r = r_.get(), *p = p_.get(), *ap = ap_.get();
        std::copy_n(out, n_, x);
        for (int64_t f = 0; f < n_; ++f) {
            d[f] = problem_.shared[f] + problem_.ridge[u];
            // An axis that nothing holds moves by its events alone.
            inverse[f] = d[f] > 0.0f ? 1.0f / d[f] : 1.0f;
            r[f] = -d[f] * x[f];
        }
        residual(x, r);
        float rz = 0.0f;
        for (int64_t f = 0; f < stride_; ++f) p[f] = inverse[f] * r[f];
        rz = dot(r, p, stride_);
        for (int step = 1; step <= steps; ++step) {
            const bool last = step == steps;
            for (int64_t f = 0; f < stride_; ++f) ap[f] = d[f] * p[f];
            const float curvature = dot(p, ap, stride_) + apply(p, last ? nullptr : ap);
            const float along = rz / curvature;
            // Solved, as far as float32 can tell.
            if (!(curvature > 0.0f) || !std::isfinite(along)) break;
            add_scaled(x, along, p, stride_);
            if (last) break;
            add_scaled(r, -along, ap, stride_);
            for (int64_t f = 0; f < stride_; ++f) ap[f] = inverse[f] * r[f];
            const float next = dot(r, ap, stride_);
            if (!(next > 0.0f)) break;
            const float keep = next / rz;
            for (int64_t f = 0; f < stride_; ++f) p[f] = ap[f] + keep * p[f];
            rz = next;
        }
        std::copy_n(x, n_, out);
    }

  private:
    // r += sum of c (target - y.x) y
    void residual(const float* x, float* r) {
        float s[kBlock];
        for (int64_t e = 0; e < events_.size(); e += kBlock) {
            const Block block = events_.block(e);
            block_dots(block, x, stride_, s);
            for (int64_t i = 0; i < block.size; ++i) s[i] = block.c[i] * (problem_.target - s[i]);
            block_add(block, s, stride_, r);
        }
    }

    // The sum of c (y.p)^2, and into out, where it is wanted: += sum of c (y.p) y
    float apply(const float* p, float* out) {
        float s[kBlock], along[kRows] = {};
        for (int64_t e = 0; e < events_.size(); e += kBlock) {
            const Block block = events_.block(e);
            block_dots(block, p, stride_, s);
            for (int64_t i = 0; i < block.size; i += kRows)
                for (int64_t j = 0; j < kRows; ++j) {
                    const float y_p = s[i + j];
                    s[i + j] *= block.c[i + j];
                    along[j] += s[i + j] * y_p;
                }
            if (out) block_add(block, s, stride_, out);
        }
        return ((along[0] + along[1]) + (along[2] + along[3])) +
               ((along[4] + along[5]) + (along[6] + along[7]));
    }

    const Problem& problem_;
    int64_t n_, stride_;
    Events events_;
    Buffer x_, d_, inverse_, r_, p_, ap_;
};

// What a thread needs to solve rows exactly.
class Exact {
  public:
    explicit Exact(const Problem& problem)
        : problem_(problem),
          n_(problem.other.columns),
          stride_(padded(n_)),
          events_(problem),
          a_(stride_ * stride_),
          left_(std::max(kBlock, kWidth) * stride_ + stride_),
          rows_(stride_ * stride_),
          b_(stride_) {}

    void solve(int64_t u, float* x) {
        events_.start(u);
        // The same system in two forms: as many unknowns as factors, or as events.
        if (events_.size() < n_ && by_events(u, x)) return;
        by_factors(u, x);
    }

  private:
    void by_factors(int64_t u, float* x) {
        float *a = a_.get(), *left = left_.get(), *b = b_.get();
        std::fill_n(a, stride_ * stride_, 0.0f);
        std::fill_n(b, stride_, 0.0f);
        for (int64_t f = 0; f < n_; ++f)
            a[f * stride_ + f] = problem_.shared[f] + problem_.ridge[u];
        for (int64_t e = 0; e < events_.size(); e += kBlock) {
            const Block block = events_.block(e);
            float s[kBlock];
            for (int64_t i = 0; i < block.size; ++i) {
                for (int64_t f = 0; f < stride_; ++f)
                    left[i * stride_ + f] = block.c[i] * block.rows[i * stride_ + f];
                s[i] = block.c[i] * problem_.target;
            }
            block_add(block, s, stride_, b);
            rank_update(a, stride_, 0, left, block.rows, block.size);
        }
        if (!factorise(a, n_, stride_, left)) throw NotPositiveDefinite(u);
        substitute(a, n_, stride_, b);
        std::copy_n(b, n_, x);
    }

    // With d = shared + ridge and B the events' rows, each sqrt(c) y / sqrt(d): the solution is
    // x = B' z / sqrt(d) with (I + B B') z = sqrt(c) target (Woodbury). False where some d is not
    // positive or the matrix is not positive definite in float32.
    bool by_events(int64_t u, float* x) {
        const int64_t n = events_.size(), across = padded(n);
        float *a = a_.get(), *columns = rows_.get(), *b = b_.get();
        float* scale = left_.get();
        for (int64_t f = 0; f < n_; ++f) {
            const float d = problem_.shared[f] + problem_.ridge[u];
            if (!(d > 0.0f)) return false;
            scale[f] = 1.0f / std::sqrt(d);
        }
        std::fill_n(columns, stride_ * across, 0.0f);
        std::fill_n(b, across, 0.0f);
        for (int64_t e = 0; e < n; e += kBlock) {
            const Block block = events_.block(e);
            for (int64_t i = 0; i < std::min(kBlock, n - e); ++i) {
                const float c = std::sqrt(block.c[i]);
                b[e + i] = c * problem_.target;
                for (int64_t f = 0; f < n_; ++f)
                    columns[f * across + e + i] = c * scale[f] * block.rows[i * stride_ + f];
            }
        }
        std::fill_n(a, across * across, 0.0f);
        for (int64_t e = 0; e < n; ++e) a[e * across + e] = 1.0f;
        rank_update(a, across, 0, columns, columns, n_);
        float* scratch = events_scratch();
        if (!factorise(a, n, across, scratch)) return false;
        substitute(a, n, across, b);
        for (int64_t f = 0; f < n_; ++f) x[f] = scale[f] * dot(columns + f * across, b, across);
        return true;
    }

    float* events_scratch() { return scratch2_.get(); }

    const Problem& problem_;
    int64_t n_;
    int64_t stride_;
    Events events_;
    Buffer a_, left_, rows_, b_;
    Buffer scratch2_{(kWidth + 1) * padded(n_)};
};

// Rows in blocks of about kWork events, the same for any thread count: [starts[b], starts[b + 1]).
std::vector<int64_t> even_blocks(const Ragged& rows) {
    constexpr int64_t kRow = 16;  // what a row costs beside its events, in events
    std::vector<int64_t> starts{0};
    int64_t work = 0;
    for (int64_t r = 0; r < rows.rows; ++r) {
        work += rows.length(r) + kRow;
        if (work >= kWork || r + 1 == rows.rows) {
            starts.push_back(r + 1);
            work = 0;
        }
    }
    return starts;
}

// out[u] from solve(u, out[u]), rows with no events set to zero.
template <class Solver, class Solve>
void sweep(const Problem& problem, Matrix<float> out, int threads, const Solve& solve) {
    const std::vector<int64_t> starts = even_blocks(problem.rows);
    parallel_for(static_cast<int64_t>(starts.size()) - 1, 1, threads, [&] {
        return [&, solver = Solver(problem)](int64_t block, int64_t) mutable {
            const auto b = static_cast<size_t>(block);
            for (int64_t u = starts[b]; u < starts[b + 1]; ++u) {
                if (problem.rows.length(u) == 0)
                    std::fill_n(out.row(u), out.columns, 0.0f);
                else
                    solve(solver, u, out.row(u));
            }
        };
    });
}

}  // namespace

void solve_exact(const Problem& problem, Matrix<float> out, int threads) {
    sweep<Exact>(problem, out, threads,
                 [](Exact& solver, int64_t u, float* x) { solver.solve(u, x); });
}

void solve_cg(const Problem& problem, Matrix<float> x, int steps, int threads) {
    sweep<ConjugateGradient>(
        problem, x, threads,
        [steps](ConjugateGradient& solver, int64_t u, float* row) { solver.solve(u, row, steps); });
}

}  // namespace hybridrec
