#include "als.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"
#include "vec.h"

namespace hybridrec {
namespace {

constexpr int64_t kGather = 64;  // rows gathered at a time: 16 KB at 64 factors, within L1
constexpr int64_t kGrain = 64;   // rows of the problem a thread takes at a time
constexpr int64_t kTile = 4;     // rows of a register tile; divides kWidth

// a[i..i+4)[j..j+V vectors) += left' right, over k rows of both.
template <int V>
inline void tile_update(float* a, const float* left, const float* right, int64_t stride,
                        int64_t k) {
    Vec acc[kTile][V];
    for (int64_t r = 0; r < kTile; ++r)
        for (int v = 0; v < V; ++v) acc[r][v] = load(a + r * stride + v * kWidth);
    for (int64_t e = 0; e < k; ++e) {
        Vec y[V];
        for (int v = 0; v < V; ++v) y[v] = load(right + e * stride + v * kWidth);
        for (int64_t r = 0; r < kTile; ++r)
            for (int v = 0; v < V; ++v) acc[r][v] += left[e * stride + r] * y[v];
    }
    for (int64_t r = 0; r < kTile; ++r)
        for (int v = 0; v < V; ++v) store(a + r * stride + v * kWidth, acc[r][v]);
}

// The upper triangle of a (stride, stride) += left' right, from row `first` on; left and right are
// (k, stride). `first` is a multiple of kTile. Entries just below the diagonal are written too.
void rank_update(float* a, int64_t stride, int64_t first, const float* left, const float* right,
                 int64_t k) {
    for (int64_t i = first; i < stride; i += kTile) {
        int64_t j = i / kWidth * kWidth;
        for (; j + 2 * kWidth <= stride; j += 2 * kWidth)
            tile_update<2>(a + i * stride + j, left + i, right + j, stride, k);
        if (j < stride) tile_update<1>(a + i * stride + j, left + i, right + j, stride, k);
    }
}

// The upper Cholesky factor of a, in place, panel by panel: a = u' u. `scratch` holds
// (kWidth, stride). False where a pivot is lost in the rounding of its diagonal.
bool factorise(float* a, int64_t n, int64_t stride, float* scratch) {
    constexpr float kLost = std::numeric_limits<float>::epsilon();
    std::vector<float> diagonal(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) diagonal[static_cast<size_t>(i)] = a[i * stride + i];
    for (int64_t start = 0; start < n; start += kWidth) {
        const int64_t end = std::min(n, start + kWidth);
        for (int64_t k = start; k < end; ++k) {
            float* row = a + k * stride;
            const float pivot = row[k];
            if (!(pivot > kLost * diagonal[static_cast<size_t>(k)]) || !std::isfinite(pivot))
                return false;
            const float scale = 1.0f / std::sqrt(pivot);
            for (int64_t j = k; j < stride; ++j) row[j] *= scale;
            for (int64_t i = k + 1; i < end; ++i)
                add_scaled(a + i * stride + i, -row[i], row + i, stride - i);
        }
        if (end == n) break;
        for (int64_t j = 0; j < (end - start) * stride; ++j) scratch[j] = -a[start * stride + j];
        rank_update(a, stride, end, scratch, a + start * stride, end - start);
    }
    return true;
}

// x = (u' u)^-1 x
void substitute(const float* u, int64_t n, int64_t stride, float* x) {
    for (int64_t k = 0; k < n; ++k) {
        x[k] /= u[k * stride + k];
        add_scaled(x + k + 1, -x[k], u + k * stride + k + 1, n - k - 1);
    }
    for (int64_t k = n - 1; k >= 0; --k) {
        const float known = dot(u + k * stride + k + 1, x + k + 1, n - k - 1);
        x[k] = (x[k] - known) / u[k * stride + k];
    }
}

// What a thread needs to solve rows exactly.
class Cholesky {
  public:
    explicit Cholesky(const Problem& problem)
        : problem_(problem),
          n_(problem.other.columns),
          stride_(padded(n_)),
          a_(stride_ * stride_),
          left_(kGather * stride_),
          right_(kGather * stride_) {}

    void solve(int64_t u, float* x) {
        float* a = a_.get();
        for (int64_t i = 0; i < n_; ++i) {
            std::copy_n(problem_.gram + i * n_, n_, a + i * stride_);
            a[i * stride_ + i] += problem_.ridge[u];
        }
        std::fill_n(x, n_, 0.0f);
        const int64_t end = problem_.rows.indptr[u + 1];
        for (int64_t e = problem_.rows.indptr[u]; e < end; e += kGather) {
            const int64_t k = std::min(kGather, end - e);
            gather(e, k, x);
            rank_update(a, stride_, 0, left_.get(), right_.get(), k);
        }
        if (!factorise(a, n_, stride_, left_.get())) throw NotPositiveDefinite(u);
        substitute(a, n_, stride_, x);
    }

  private:
    void gather(int64_t first, int64_t k, float* x) {
        for (int64_t e = 0; e < k; ++e) {
            const float* y = problem_.other.row(problem_.rows.items[first + e]);
            const float c = problem_.alpha * problem_.rows.weight(first + e);
            std::copy_n(y, n_, right_.get() + e * stride_);
            float* left = left_.get() + e * stride_;
            for (int64_t i = 0; i < n_; ++i) left[i] = c * y[i];
            // The factorisation borrowed left_: its padding is not zero any more.
            std::fill(left + n_, left + stride_, 0.0f);
            add_scaled(x, c * problem_.target, y, n_);
        }
    }

    const Problem& problem_;
    int64_t n_;
    int64_t stride_;
    Buffer a_, left_, right_;
};

// What a thread needs to take conjugate-gradient steps.
class ConjugateGradient {
  public:
    explicit ConjugateGradient(const Problem& problem)
        : problem_(problem),
          n_(problem.other.columns),
          r_(padded(n_)),
          p_(padded(n_)),
          ap_(padded(n_)) {}

    void solve(int64_t u, float* x, int steps) {
        float *r = r_.get(), *p = p_.get(), *ap = ap_.get();
        shared_part(u, x, r);
        for (int64_t i = 0; i < n_; ++i) r[i] = -r[i];
        add_events(u, x, -1.0f, problem_.target, r);  // r = b - A x
        std::copy_n(r, n_, p);
        float rr = dot(r, r, n_);
        for (int step = 0; step < steps; ++step) {
            shared_part(u, p, ap);
            add_events(u, p, 1.0f, 0.0f, ap);
            const float curvature = dot(p, ap, n_);
            if (!(curvature > 0.0f)) return;  // solved, as far as float32 can tell
            const float along = rr / curvature;
            if (!std::isfinite(along)) return;
            add_scaled(x, along, p, n_);
            add_scaled(r, -along, ap, n_);
            const float next = dot(r, r, n_);
            if (!(next > 0.0f)) return;
            const float keep = next / rr;
            for (int64_t i = 0; i < n_; ++i) p[i] = r[i] + keep * p[i];
            rr = next;
        }
    }

  private:
    // out = (gram + ridge I) v
    void shared_part(int64_t u, const float* v, float* out) const {
        const float ridge = problem_.ridge[u];
        for (int64_t i = 0; i < n_; ++i) out[i] = ridge * v[i];
        for (int64_t i = 0; i < n_; ++i) add_scaled(out, v[i], problem_.gram + i * n_, n_);
    }

    // out += sum over events of c (sign y.v + target) y
    void add_events(int64_t u, const float* v, float sign, float target, float* out) const {
        const Ragged& rows = problem_.rows;
        for (int64_t e = rows.indptr[u]; e < rows.indptr[u + 1]; ++e) {
            const float* y = problem_.other.row(rows.items[e]);
            const float c = problem_.alpha * rows.weight(e);
            add_scaled(out, c * (sign * dot(y, v, n_) + target), y, n_);
        }
    }

    const Problem& problem_;
    int64_t n_;
    Buffer r_, p_, ap_;
};

// out[u] from solve(u, out[u]), rows with no events set to zero.
template <class Solver, class Solve>
void sweep(const Problem& problem, Matrix<float> out, int threads, const Solve& solve) {
    parallel_for(out.rows, kGrain, threads, [&] {
        return [&, solver = Solver(problem)](int64_t begin, int64_t end) mutable {
            for (int64_t u = begin; u < end; ++u) {
                if (problem.rows.length(u) == 0)
                    std::fill_n(out.row(u), out.columns, 0.0f);
                else
                    solve(solver, u, out.row(u));
            }
        };
    });
}

}  // namespace

void gram(Matrix<const float> m, float* out, int threads) {
    constexpr int64_t kBlocks = 64;
    const int64_t n = m.columns, stride = padded(n);
    const int64_t block = std::max<int64_t>(kGather, (m.rows + kBlocks - 1) / kBlocks);
    const int64_t blocks = (m.rows + block - 1) / block;
    const Buffer partial(std::max<int64_t>(1, blocks) * stride * stride);
    parallel_for(m.rows, block, threads, [&] {
        return [&, rows = Buffer(kGather * stride)](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; r += kGather) {
                const int64_t k = std::min(kGather, end - r);
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

void solve_cholesky(const Problem& problem, Matrix<float> out, int threads) {
    sweep<Cholesky>(problem, out, threads,
                    [](Cholesky& solver, int64_t u, float* x) { solver.solve(u, x); });
}

void solve_cg(const Problem& problem, Matrix<float> out, int steps, int threads) {
    sweep<ConjugateGradient>(
        problem, out, threads,
        [steps](ConjugateGradient& solver, int64_t u, float* x) { solver.solve(u, x, steps); });
}

}  // namespace hybridrec
