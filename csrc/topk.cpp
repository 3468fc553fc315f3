#include "topk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "parallel.h"
#include "vec.h"

namespace hybridrec {
namespace {

static_assert(kPanel == 32, "a panel's blocked items are one 32-bit word");
constexpr int64_t kVecs = kPanel / kWidth;
// Queries of a register tile: as many accumulators as the build has registers for.
constexpr int64_t kTile = kWidth == 16 ? 8 : kWidth == 8 ? 2 : 1;
constexpr int64_t kBlock = 16;  // queries a thread takes at a time, while a panel is in cache
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMost = std::numeric_limits<float>::max();

struct Entry {
    float score;
    int32_t item;
};

bool before(const Entry& a, const Entry& b) {
    return a.score > b.score || (a.score == b.score && a.item < b.item);
}

int64_t panels_of(int64_t n_items) { return (n_items + kPanel - 1) / kPanel; }

// One bit an item, set where it may not be answered; set behind the last item as well.
std::vector<uint32_t> forbidden(const uint8_t* allow, int64_t n_items) {
    std::vector<uint32_t> words(static_cast<size_t>(panels_of(n_items)), 0);
    for (int64_t i = 0; i < panels_of(n_items) * kPanel; ++i)
        if (i >= n_items || (allow && !allow[i]))
            words[static_cast<size_t>(i / kPanel)] |= uint32_t{1} << (i % kPanel);
    return words;
}

// The k best of the items offered so far, in rising order of their codes.
class Selection {
  public:
    void start(int64_t k, int64_t row, const std::vector<uint32_t>& forbidden,
               const Ragged* exclude) {
        k_ = static_cast<size_t>(k);
        row_ = row;
        kept_.clear();
        threshold_ = -kInfinity;
        blocked_ = forbidden;
        if (!exclude) return;
        for (int64_t e = exclude->indptr[row]; e < exclude->indptr[row + 1]; ++e)
            blocked_[static_cast<size_t>(exclude->items[e] / kPanel)] |=
                uint32_t{1} << (exclude->items[e] % kPanel);
    }

    // Looks at the kPanel scores of one panel.
    void offer(int64_t panel, const float* scores) {
        VecMask any{};
        const Vec threshold = broadcast(threshold_);
        // Not "above": this way NaN is seen as well, and refused below.
        for (int64_t v = 0; v < kVecs; ++v) any |= ~(load(scores + v * kWidth) <= threshold);
        int32_t hit = 0;
        for (int64_t i = 0; i < kWidth; ++i) hit |= any[i];
        if (!hit) return;
        const uint32_t blocked = blocked_[static_cast<size_t>(panel)];
        for (int64_t i = 0; i < kPanel; ++i)
            // An equal score with a later code ranks behind: only what is above can come in.
            if (!(scores[i] <= threshold_) && !(blocked >> i & 1))
                keep(scores[i], panel * kPanel + i);
    }

    void finish(int32_t* items, float* scores, int64_t width) {
        const size_t n = std::min(k_, kept_.size());
        std::partial_sort(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(n),
                          kept_.end(), before);
        for (size_t i = 0; i < n; ++i) {
            items[i] = kept_[i].item;
            scores[i] = kept_[i].score;
        }
        std::fill(items + n, items + width, -1);
        std::fill(scores + n, scores + width, -kInfinity);
    }

  private:
    void keep(float score, int64_t item) {
        if (!(score <= kMost))
            refuse("scores[" + std::to_string(row_) + ", " + std::to_string(item) +
                   "] is NaN or infinite; wanted a finite score, or -inf to leave the item out");
        kept_.push_back({score, static_cast<int32_t>(item)});
        // Twice k, so that a cut costs O(1) an entry kept.
        if (kept_.size() < 2 * k_) return;
        const auto last = kept_.begin() + static_cast<std::ptrdiff_t>(k_) - 1;
        std::nth_element(kept_.begin(), last, kept_.end(), before);
        threshold_ = last->score;
        kept_.resize(k_);
    }

    size_t k_ = 0;
    int64_t row_ = 0;
    float threshold_ = -kInfinity;
    std::vector<Entry> kept_;
    std::vector<uint32_t> blocked_;
};

// scores (R, kPanel) = R rows of queries (stride d) times one panel. Each score is one sum in the
// order of the factors, so it has the same bits whatever R and wherever the query stands.
template <int64_t R>
void panel_scores(const float* queries, const float* panel, int64_t d, float* scores) {
    Vec acc[R][kVecs] = {};
    for (int64_t f = 0; f < d; ++f)
        for (int64_t v = 0; v < kVecs; ++v) {
            const Vec y = load(panel + f * kPanel + v * kWidth);
            for (int64_t r = 0; r < R; ++r) acc[r][v] += queries[r * d + f] * y;
        }
    const Vec most = broadcast(kMost), least = broadcast(-kMost);
    for (int64_t r = 0; r < R; ++r)
        for (int64_t v = 0; v < kVecs; ++v) {
            Vec s = acc[r][v];
            s = s > most ? most : s;
            s = s >= least ? s : least;  // NaN too
            store(scores + r * kPanel + v * kWidth, s);
        }
}

}  // namespace

void top_k(Matrix<const float> queries, const float* packed, int64_t n_items, Filter filter,
           Best best, int threads) {
    const int64_t d = queries.columns;
    const std::vector<uint32_t> closed = forbidden(filter.allow, n_items);
    parallel_for(queries.rows, kBlock, threads, [&] {
        return [&, rows = std::vector<Selection>(kBlock), scores = Buffer(kTile * kPanel)](
                   int64_t begin, int64_t end) mutable {
            const int64_t n = end - begin;
            for (int64_t q = 0; q < n; ++q)
                rows[static_cast<size_t>(q)].start(best.items.columns, begin + q, closed,
                                                   filter.exclude);
            for (int64_t p = 0; p < panels_of(n_items); ++p) {
                const float* panel = packed + p * d * kPanel;
                int64_t q = 0;
                const auto offer = [&](int64_t count) {
                    for (int64_t r = 0; r < count; ++r)
                        rows[static_cast<size_t>(q + r)].offer(p, scores.get() + r * kPanel);
                    q += count;
                };
                while (q + kTile <= n) {
                    panel_scores<kTile>(queries.row(begin + q), panel, d, scores.get());
                    offer(kTile);
                }
                while (q < n) {
                    panel_scores<1>(queries.row(begin + q), panel, d, scores.get());
                    offer(1);
                }
            }
            for (int64_t q = 0; q < n; ++q)
                rows[static_cast<size_t>(q)].finish(best.items.row(begin + q),
                                                    best.scores.row(begin + q), best.items.columns);
        };
    });
}

void select_top_k(Matrix<const float> scores, Filter filter, Best best, int threads) {
    const int64_t n_items = scores.columns;
    const std::vector<uint32_t> closed = forbidden(filter.allow, n_items);
    parallel_for(scores.rows, kBlock, threads, [&] {
        return [&, selection = Selection(), tail = Buffer(kPanel)](int64_t begin,
                                                                   int64_t end) mutable {
            for (int64_t b = begin; b < end; ++b) {
                selection.start(best.items.columns, b, closed, filter.exclude);
                const float* row = scores.row(b);
                const int64_t whole = n_items / kPanel;
                for (int64_t p = 0; p < whole; ++p) selection.offer(p, row + p * kPanel);
                if (whole < panels_of(n_items)) {
                    std::copy(row + whole * kPanel, row + n_items, tail.get());
                    selection.offer(whole, tail.get());
                }
                selection.finish(best.items.row(b), best.scores.row(b), best.items.columns);
            }
        };
    });
}

}  // namespace hybridrec
