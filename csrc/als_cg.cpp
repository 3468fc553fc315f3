#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "als.h"
#include "events.h"
#include "parallel.h"
#include "vec.h"

namespace hybridrec {
namespace {

// How many rows of n factors stay in half of an L2 cache.
int64_t part_rows(int64_t n) {
    constexpr int64_t kPart = int64_t{1} << 17;  // floats
    return std::max<int64_t>(1, kPart / std::max<int64_t>(n, 1));
}

// Where the conjugate gradients of one row stand. Vectors are padded with zeros.
class Row {
  public:
    explicit Row(int64_t n)
        : n_(n),
          stride_(padded(n)),
          x_(stride_),
          d_(stride_),
          inverse_(stride_),
          r_(stride_),
          p_(stride_),
          ap_(stride_) {}

    // From x = start: r = -(diagonal x), to which the events are still to be added.
    void start(const Problem& problem, int64_t u, const float* start) {
        float *x = x_.get(), *d = d_.get(), *inverse = inverse_.get(), *r = r_.get();
        std::copy_n(start, n_, x);
        float largest = 0.0f;
        for (int64_t f = 0; f < n_; ++f) {
            largest = std::max(largest, std::abs(x[f]));
            d[f] = problem.shared[f] + problem.ridge[u];
            // An axis that nothing holds moves by its events alone.
            inverse[f] = d[f] > 0.0f ? 1.0f / d[f] : 1.0f;
            r[f] = -d[f] * x[f];
        }
        std::fill_n(p_.get(), stride_, 0.0f);  // another row's may not be finite
        u_ = u;
        rz_ = 0.0f;
        moves_ = true;
        warm_ = largest > 0.0f;
    }

    // r += sum of c (target - y.x) y
    void add_residual(const Group& events, float target) {
        float s[kEvents];
        group_dots<true>(events, x_.get(), n_, s);
        for (int64_t i = 0; i < kEvents; ++i) s[i] = events.c[i] * (target - s[i]);
        group_add(events, s, n_, r_.get());
    }

    // A new direction p from the residual, and ap = diagonal p, to which the events are still to be
    // added.
    void turn() {
        if (!moves_) return;
        float *p = p_.get(), *ap = ap_.get(), *r = r_.get();
        const float *inverse = inverse_.get(), *d = d_.get();
        for (int64_t f = 0; f < stride_; ++f) ap[f] = inverse[f] * r[f];
        const float next = dot(r, ap, stride_);
        check(next);
        moves_ = next > 0.0f;  // or solved, as far as float32 can tell
        const float keep = rz_ > 0.0f ? next / rz_ : 0.0f;
        for (int64_t f = 0; f < stride_; ++f) p[f] = ap[f] + keep * p[f];
        for (int64_t f = 0; f < stride_; ++f) ap[f] = d[f] * p[f];
        rz_ = next;
        std::fill_n(curvature_, kEvents, 0.0f);
    }

    // ap += sum of c (y.p) y, and the curvature along p. The last step wants the curvature alone.
    template <bool kFetch>
    void add_product(const Group& events, bool last) {
        if (!moves_) return;
        float s[kEvents];
        group_dots<kFetch>(events, p_.get(), n_, s);
        for (int64_t i = 0; i < kEvents; ++i) {
            const float along = s[i];
            s[i] *= events.c[i];
            curvature_[i] += s[i] * along;
        }
        if (!last) group_add(events, s, n_, ap_.get());
    }

    // x and r after the step along p.
    void step(bool last) {
        if (!moves_) return;
        Vec held{};
        for (int64_t f = 0; f < stride_; f += kWidth) {
            const Vec p = load(p_.get() + f);
            held += load(d_.get() + f) * p * p;
        }
        const float* c = curvature_;
        const float curvature =
            sum(held) + (((c[0] + c[1]) + (c[2] + c[3])) + ((c[4] + c[5]) + (c[6] + c[7])));
        check(curvature);
        const float along = rz_ / curvature;
        moves_ = curvature > 0.0f && std::isfinite(along);
        if (!moves_) return;
        add_scaled(x_.get(), along, p_.get(), stride_);
        if (!last) add_scaled(r_.get(), -along, ap_.get(), stride_);
    }

    // `out` holds the start.
    void finish(float* out, float relaxation) const {
        const float far = warm_ ? relaxation : 1.0f;
        for (int64_t f = 0; f < n_; ++f) out[f] += far * (x_.get()[f] - out[f]);
    }

  private:
    void check(float x) const {
        if (!std::isfinite(x))
            throw std::overflow_error("the equations of row " + std::to_string(u_) +
                                      " are beyond float32");
    }

    int64_t n_, stride_, u_ = 0;
    float rz_ = 0.0f;  // r.z, where z is the preconditioned residual that p was made of
    bool moves_ = false, warm_ = false;
    float curvature_[kEvents] = {};
    Buffer x_, d_, inverse_, r_, p_, ap_;
};

// Rows whose events do not stay in cache, solved side by side: every pass goes once through the
// other side, a part that stays in cache at a time, and through all their events of that part.
class Together {
  public:
    explicit Together(const Problem& problem)
        : problem_(problem), part_(part_rows(problem.other.columns)) {}

    void solve(const int64_t* users, int64_t count, Matrix<float> x, int steps, float relaxation) {
        while (static_cast<int64_t>(rows_.size()) < count)
            rows_.push_back(std::make_unique<Row>(problem_.other.columns));
        users_ = users;
        count_ = count;
        for (int64_t i = 0; i < count; ++i) row(i).start(problem_, users[i], x.row(users[i]));
        pass([&](Row& row, const Group& g) { row.add_residual(g, problem_.target); });
        for (int step = 1; step <= steps; ++step) {
            const bool last = step == steps;
            for (int64_t i = 0; i < count; ++i) row(i).turn();
            pass([last](Row& row, const Group& g) { row.add_product<true>(g, last); });
            for (int64_t i = 0; i < count; ++i) row(i).step(last);
        }
        for (int64_t i = 0; i < count; ++i) row(i).finish(x.row(users[i]), relaxation);
    }

  private:
    Row& row(int64_t i) { return *rows_[static_cast<size_t>(i)]; }

    template <class Visit>
    void pass(const Visit& visit) {
        const Ragged& rows = problem_.rows;
        next_.resize(static_cast<size_t>(count_));
        for (int64_t i = 0; i < count_; ++i) next_[static_cast<size_t>(i)] = rows.indptr[users_[i]];
        for (int64_t end = part_;; end += part_) {
            for (int64_t i = 0; i < count_; ++i) {
                int64_t& first = next_[static_cast<size_t>(i)];
                const int64_t stop =
                    std::lower_bound(rows.items + first, rows.items + rows.indptr[users_[i] + 1],
                                     end) -
                    rows.items;
                for (; first < stop; first = std::min(first + kEvents, stop))
                    visit(row(i), group(problem_, first, stop));
            }
            if (end >= problem_.other.rows) return;
        }
    }

    const Problem& problem_;
    int64_t part_;
    const int64_t* users_ = nullptr;
    int64_t count_ = 0;
    std::vector<int64_t> next_;  // the event of each row that comes next
    std::vector<std::unique_ptr<Row>> rows_;
};

// Rows that are worth solving together, in groups: [starts[g], starts[g + 1]) of rows.
struct Groups {
    std::vector<int64_t> rows;
    std::vector<int64_t> starts{0};
    std::vector<bool> chosen;  // of every row of the problem
};

Groups long_rows(const Problem& problem, int threads) {
    constexpr int64_t kDense = 8;  // events in a part, on average, that are worth a visit
    constexpr int64_t kShare = 4;  // events of a group, at least, for every row of the other side
    const int64_t part = part_rows(problem.other.columns);
    Groups groups;
    groups.chosen.resize(static_cast<size_t>(problem.rows.rows));
    int64_t total = 0;
    for (int64_t u = 0; u < problem.rows.rows; ++u) {
        const int64_t n = problem.rows.length(u);
        const int32_t* items = problem.rows.items + problem.rows.indptr[u];
        if (n <= part || n * part < kDense * problem.other.rows ||
            !std::is_sorted(items, items + n))
            continue;
        groups.rows.push_back(u);
        groups.chosen[static_cast<size_t>(u)] = true;
        total += n;
    }
    // Who is in a group with whom changes no bit of a row: large groups are quick, two for each
    // thread keep all of them busy.
    const int64_t most = std::max(kShare * problem.other.rows, total / (2 * int64_t{threads}));
    int64_t events = 0;
    for (size_t i = 0; i < groups.rows.size(); ++i) {
        events += problem.rows.length(groups.rows[i]);
        if (events < most && i + 1 < groups.rows.size()) continue;
        groups.starts.push_back(static_cast<int64_t>(i) + 1);
        events = 0;
    }
    return groups;
}

// What a thread needs to solve one row after the other.
class Alone {
  public:
    explicit Alone(const Problem& problem) : problem_(problem), row_(problem.other.columns) {}

    void solve(int64_t u, float* x, int steps, float relaxation) {
        row_.start(problem_, u, x);
        pass(u, [&](const Group& g) { row_.add_residual(g, problem_.target); });
        for (int step = 1; step <= steps; ++step) {
            const bool last = step == steps;
            row_.turn();
            pass(u, [&](const Group& g) { row_.add_product<false>(g, last); });
            row_.step(last);
        }
        row_.finish(x, relaxation);
    }

  private:
    template <class Visit>
    void pass(int64_t u, const Visit& visit) {
        const int64_t* bounds = problem_.rows.indptr + u;
        for (int64_t e = bounds[0]; e < bounds[1]; e += kEvents)
            visit(group(problem_, e, bounds[1]));
    }

    const Problem& problem_;
    Row row_;
};

}  // namespace

void solve_cg(const Problem& problem, Matrix<float> x, int steps, float relaxation, int threads) {
    const Groups groups = long_rows(problem, threads);
    const auto n_groups = static_cast<int64_t>(groups.starts.size()) - 1;
    const std::vector<int64_t> starts = even_blocks(problem.rows);
    // The groups first: they are the longest tasks.
    parallel_for(n_groups + static_cast<int64_t>(starts.size()) - 1, 1, threads, [&] {
        return [&, alone = Alone(problem), together = Together(problem)](int64_t task,
                                                                         int64_t) mutable {
            if (task < n_groups) {
                const int64_t *bound = groups.starts.data() + task, begin = bound[0];
                together.solve(groups.rows.data() + begin, bound[1] - begin, x, steps, relaxation);
                return;
            }
            const auto b = static_cast<size_t>(task - n_groups);
            for (int64_t u = starts[b]; u < starts[b + 1]; ++u) {
                if (problem.rows.length(u) == 0)
                    std::fill_n(x.row(u), x.columns, 0.0f);
                else if (!groups.chosen[static_cast<size_t>(u)])
                    alone.solve(u, x.row(u), steps, relaxation);
            }
        };
    });
}

}  // namespace hybridrec
