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
          end_(problem.rows.indptr[problem.rows.rows]),
          a_(stride_ * stride_),
          right_(kBlock * stride_),
          left_(kBlock * stride_),
          c_(kBlock),
          columns_(stride_ * stride_),
          b_(stride_),
          scratch_((kWidth + 1) * stride_) {}

    void solve(int64_t u, float* x) {
        // The same system in two forms: as many unknowns as factors, or as events.
        if (problem_.rows.length(u) < n_ && by_events(u, x)) return;
        by_factors(u, x);
    }

  private:
    void by_factors(int64_t u, float* x) {
        float *a = a_.get(), *right = right_.get(), *left = left_.get(), *b = b_.get();
        std::fill_n(a, stride_ * stride_, 0.0f);
        std::fill_n(b, stride_, 0.0f);
        for (int64_t f = 0; f < n_; ++f)
            a[f * stride_ + f] = problem_.shared[f] + problem_.ridge[u];
        for_blocks(u, [&](int64_t, int64_t size) {
            for (int64_t i = 0; i < size; ++i)
                for (int64_t f = 0; f < stride_; ++f) {
                    const float scaled = c_.get()[i] * right[i * stride_ + f];
                    left[i * stride_ + f] = scaled;
                    b[f] += problem_.target * scaled;
                }
            rank_update(a, stride_, 0, left, right, size);
        });
        if (!factorise(a, n_, stride_, scratch_.get())) throw NotPositiveDefinite(u);
        substitute(a, n_, stride_, b);
        std::copy_n(b, n_, x);
    }

    // With d = shared + ridge and B the events' rows, each sqrt(c) y / sqrt(d): the solution is
    // x = B' z / sqrt(d) with (I + B B') z = sqrt(c) target (Woodbury). False where some d is not
    // positive or the matrix is not positive definite in float32.
    bool by_events(int64_t u, float* x) {
        const int64_t n = problem_.rows.length(u), across = padded(n);
        float *a = a_.get(), *columns = columns_.get(), *b = b_.get(), *scale = left_.get();
        for (int64_t f = 0; f < n_; ++f) {
            const float d = problem_.shared[f] + problem_.ridge[u];
            if (!(d > 0.0f)) return false;
            scale[f] = 1.0f / std::sqrt(d);
        }
        std::fill_n(columns, stride_ * across, 0.0f);
        std::fill_n(b, across, 0.0f);
        for_blocks(u, [&](int64_t e, int64_t size) {
            for (int64_t i = 0; i < size; ++i) {
                const float c = std::sqrt(c_.get()[i]);
                b[e + i] = c * problem_.target;
                for (int64_t f = 0; f < n_; ++f)
                    columns[f * across + e + i] = c * scale[f] * right_.get()[i * stride_ + f];
            }
        });
        std::fill_n(a, across * across, 0.0f);
        for (int64_t e = 0; e < n; ++e) a[e * across + e] = 1.0f;
        rank_update(a, across, 0, columns, columns, n_);
        if (!factorise(a, n, across, scratch_.get())) return false;
        substitute(a, n, across, b);
        for (int64_t f = 0; f < n_; ++f) x[f] = scale[f] * dot(columns + f * across, b, across);
        return true;
    }

    // Gathers the events of row u into right_ and c_, and calls visit(the first's place, how many).
    template <class Visit>
    void for_blocks(int64_t u, const Visit& visit) {
        const int64_t first = problem_.rows.indptr[u], n = problem_.rows.length(u);
        for (int64_t e = 0; e < n; e += kBlock) {
            const int64_t size = std::min(kBlock, n - e);
            // The next rows of the problem follow in memory: what is fetched may be theirs.
            gather(problem_, first + e, size, end_, right_.get(), c_.get());
            visit(e, size);
        }
    }

    static constexpr int64_t kBlock = 64;  // events whose products are added up at a time

    const Problem& problem_;
    int64_t n_, stride_, end_;
    Buffer a_, right_, left_, c_, columns_, b_, scratch_;
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
