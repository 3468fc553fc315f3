#include <algorithm>
#include <cmath>
#include <cstring>
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
          scale_(stride_),
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
        float *a = a_.get(), *right = right_.get(), *b = b_.get();
        std::fill_n(a, stride_ * stride_, 0.0f);
        std::fill_n(b, stride_, 0.0f);
        for (int64_t f = 0; f < n_; ++f)
            a[f * stride_ + f] = problem_.shared[f] + problem_.ridge[u];
        for_blocks(u, [&](int64_t, int64_t size) {
            for (int64_t i = 0; i < size; ++i) {
                const float c = std::sqrt(c_.get()[i]), wanted = c * problem_.target;
                float* row = right + i * stride_;
                for (int64_t f = 0; f < stride_; ++f) {
                    row[f] *= c;
                    b[f] += wanted * row[f];
                }
            }
            rank_update(a, stride_, 0, right, right, size);
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
        float *a = a_.get(), *columns = columns_.get(), *b = b_.get(), *scale = scale_.get();
        bool positive = true;
        for (int64_t f = 0; f < n_; ++f) {
            const float d = problem_.shared[f] + problem_.ridge[u];
            positive &= d > 0.0f;
            scale[f] = 1.0f / std::sqrt(d);
        }
        if (!positive) return false;
        // Only what stands behind the last event: the rest is about to be written.
        for (int64_t f = 0; f < n_; ++f) store(columns + (f + 1) * across - kWidth, Vec{});
        std::fill_n(b, across, 0.0f);
        for_blocks(u, [&](int64_t e, int64_t size) {
            float* c = c_.get();
            for (int64_t i = 0; i < size; ++i) {
                c[i] = std::sqrt(c[i]);
                b[e + i] = c[i] * problem_.target;
            }
            stand(right_.get(), c, scale, size, columns + e, across);
        });
        std::fill_n(a, across * across, 0.0f);
        for (int64_t e = 0; e < n; ++e) a[e * across + e] = 1.0f;
        rank_update(a, across, 0, columns, columns, n_);
        if (!factorise(a, n, across, scratch_.get())) return false;
        substitute(a, n, across, b);
        for (int64_t f = 0; f < n_; ++f) x[f] = scale[f] * dot(columns + f * across, b, across);
        return true;
    }

    // columns (F, across) = c scale rows, turned: rows is (size, stride_), a column an event.
    void stand(const float* rows, const float* c, const float* scale, int64_t size, float* columns,
               int64_t across) const {
        const auto one = [&](int64_t i, int64_t f) {
            columns[f * across + i] = c[i] * scale[f] * rows[i * stride_ + f];
        };
        int64_t i = 0;
        for (; i + 4 <= size; i += 4) {
            int64_t f = 0;
            for (; f + 4 <= n_; f += 4) {
                Four x[4], by;
                std::memcpy(&by, scale + f, sizeof by);
                for (int64_t r = 0; r < 4; ++r) {
                    std::memcpy(&x[r], rows + (i + r) * stride_ + f, sizeof x[r]);
                    x[r] *= c[i + r] * by;
                }
                turn(x);
                for (int64_t r = 0; r < 4; ++r)
                    std::memcpy(columns + (f + r) * across + i, &x[r], sizeof x[r]);
            }
            for (; f < n_; ++f)
                for (int64_t r = 0; r < 4; ++r) one(i + r, f);
        }
        for (; i < size; ++i)
            for (int64_t f = 0; f < n_; ++f) one(i, f);
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
    Buffer a_, right_, scale_, c_, columns_, b_, scratch_;
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
