#include <algorithm>
#include <cmath>
#include <vector>

#include "als.h"
#include "dense.h"
#include "events.h"
#include "parallel.h"
#include "vec.h"

namespace hybridrec {
namespace {

// What a thread needs to solve rows exactly.
class Exact {
  public:
    explicit Exact(const Problem& problem)
        : problem_(problem),
          n_(problem.other.columns),
          stride_(padded(n_)),
          events_(problem),
          a_(stride_ * stride_),
          left_(kBlock * stride_),
          columns_(stride_ * stride_),
          b_(stride_),
          scratch_((kWidth + 1) * stride_) {}

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
        if (!factorise(a, n_, stride_, scratch_.get())) throw NotPositiveDefinite(u);
        substitute(a, n_, stride_, b);
        std::copy_n(b, n_, x);
    }

    // With d = shared + ridge and B the events' rows, each sqrt(c) y / sqrt(d): the solution is
    // x = B' z / sqrt(d) with (I + B B') z = sqrt(c) target (Woodbury). False where some d is not
    // positive or the matrix is not positive definite in float32.
    bool by_events(int64_t u, float* x) {
        const int64_t n = events_.size(), across = padded(n);
        float *a = a_.get(), *columns = columns_.get(), *b = b_.get(), *scale = left_.get();
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
        if (!factorise(a, n, across, scratch_.get())) return false;
        substitute(a, n, across, b);
        for (int64_t f = 0; f < n_; ++f) x[f] = scale[f] * dot(columns + f * across, b, across);
        return true;
    }

    const Problem& problem_;
    int64_t n_;
    int64_t stride_;
    Events events_;
    Buffer a_, left_, columns_, b_, scratch_;
};

}  // namespace

void solve_exact(const Problem& problem, Matrix<float> out, int threads) {
    const std::vector<int64_t> starts = even_blocks(problem.rows);
    parallel_for(static_cast<int64_t>(starts.size()) - 1, 1, threads, [&] {
        return [&, solver = Exact(problem)](int64_t block, int64_t) mutable {
            const auto b = static_cast<size_t>(block);
            for (int64_t u = starts[b]; u < starts[b + 1]; ++u) {
                if (problem.rows.length(u) == 0)
                    std::fill_n(out.row(u), out.columns, 0.0f);
                else
                    solver.solve(u, out.row(u));
            }
        };
    });
}

}  // namespace hybridrec
