#include "topk.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "parallel.h"
#include "vec.h"

namespace hybridrec {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMost = std::numeric_limits<float>::max();

// A score and an item in one number that ranks as they do: score descending, then item ascending,
// is falling keys.
using Key = uint64_t;

Key key_of(float score, int32_t item) {
    // Zero has one sign here; negative floats rank against their bits.
    const auto bits = std::bit_cast<uint32_t>(score + 0.0f);
    const uint32_t rank = bits >> 31 ? ~bits : bits | uint32_t{1} << 31;
    return Key{rank} << 32 | ~static_cast<uint32_t>(item);
}
int32_t item_of(Key key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }
float score_of(Key key) {
    const auto rank = static_cast<uint32_t>(key >> 32);
    return std::bit_cast<float>(rank >> 31 ? rank & ~(uint32_t{1} << 31) : ~rank);
}

// The k best of the keys offered so far.
class Selection {
  public:
    void start(int64_t k) {
        k_ = static_cast<size_t>(k);
        kept_.clear();
        last_ = 0;
        threshold_ = -kInfinity;
    }

    // What a score must at least be to come in.
    float threshold() const { return threshold_; }

    // Says that k items are known to score at least `least`, whether or not they are kept yet.
    void expect(float least) { threshold_ = std::max(threshold_, least); }

    void offer(Key key) {
        if (key <= last_) return;
        kept_.push_back(key);
        // Twice k, so that a cut costs O(1) an entry kept.
        if (kept_.size() >= 2 * k_) cut();
    }

    // Drops what is not among the k best: the threshold is then the k-th score.
    void cut() {
        if (kept_.size() < k_) return;
        const auto last = kept_.begin() + static_cast<std::ptrdiff_t>(k_) - 1;
        std::nth_element(kept_.begin(), last, kept_.end(), std::greater<>());
        last_ = *last;
        kept_.resize(k_);
        expect(score_of(last_));
    }

    const std::vector<Key>& kept() const { return kept_; }

    void finish(int32_t* items, float* scores, int64_t width) {
        cut();
        std::sort(kept_.begin(), kept_.end(), std::greater<>());
        for (size_t i = 0; i < kept_.size(); ++i) {
            items[i] = item_of(kept_[i]);
            scores[i] = score_of(kept_[i]);
        }
        std::fill(items + kept_.size(), items + width, -1);
        std::fill(scores + kept_.size(), scores + width, -kInfinity);
    }

  private:
    size_t k_ = 0;
    Key last_ = 0;
    float threshold_ = -kInfinity;
    std::vector<Key> kept_;
};

// A bit for each item, 64 to a word.
using Bits = std::vector<uint64_t>;

Bits no_bits(int64_t n) { return Bits(static_cast<size_t>((n + 63) / 64), 0); }

void set_bit(Bits& bits, int64_t i) {
    bits[static_cast<size_t>(i / 64)] |= uint64_t{1} << (i % 64);
}

// A bit set at every place that nobody may be answered, and behind the last item.
Bits closed_places(const Catalogue& items, const uint8_t* allow) {
    Bits closed = no_bits(items.size());
    if (allow)
        for (int64_t p = 0; p < items.size(); ++p)
            if (!allow[items.code(p)]) set_bit(closed, p);
    for (int64_t p = items.size(); p < items.panels() * kPanel; ++p) set_bit(closed, p);
    return closed;
}

// One query on its way through the catalogue.
class Search {
  public:
    void start(const Catalogue& items, const float* query, int64_t row, int64_t k,
               const Bits& closed, const Ragged* exclude) {
        items_ = &items;
        items.prepare(query, asked_);
        best_.start(k);
        waiting_.clear();
        if (closed_.empty()) closed_ = closed;
        if (!exclude) return;
        for (int64_t e = exclude->indptr[row]; e < exclude->indptr[row + 1]; ++e)
            set_bit(closed_, items.place(exclude->items[e]));
    }

    const Asked& asked() const { return asked_; }
    const uint64_t* closed() const { return closed_.data(); }
    float threshold() const { return best_.threshold(); }
    void expect(float least) { best_.expect(least); }

    // Takes the items of a panel that the first pass lets through.
    void take(int64_t panel, uint64_t hits) {
        constexpr size_t kPatience = 16;  // few at a time keep the threshold near
        for (hits &= ~closed_[static_cast<size_t>(panel)]; hits; hits &= hits - 1) {
            const int64_t place = panel * kPanel + std::countr_zero(hits);
            items_->prefetch(place);
            waiting_.push_back(static_cast<int32_t>(place));
        }
        if (waiting_.size() >= kPatience) settle();
    }

    // The k best. What was excluded is open again, for the next start.
    Selection& finish(int64_t row, const Bits& closed, const Ragged* exclude) {
        settle();
        if (exclude)
            for (int64_t e = exclude->indptr[row]; e < exclude->indptr[row + 1]; ++e) {
                const auto word = static_cast<size_t>(items_->place(exclude->items[e]) / kPanel);
                closed_[word] = closed[word];
            }
        return best_;
    }

  private:
    // Scores what waits.
    void settle() {
        float scores[4];
        for (size_t i = 0; i < waiting_.size(); i += 4) {
            const int64_t n = std::min<int64_t>(4, static_cast<int64_t>(waiting_.size() - i));
            items_->products(asked_, waiting_.data() + i, n, scores);
            for (int64_t j = 0; j < n; ++j)
                best_.offer(key_of(scores[j], items_->code(waiting_[i + static_cast<size_t>(j)])));
        }
        waiting_.clear();
        if (best_.threshold() == -kInfinity) best_.cut();
    }

    const Catalogue* items_ = nullptr;
    Asked asked_;
    Selection best_;
    std::vector<int32_t> waiting_;
    Bits closed_;
};

#if defined(__AVX512VNNI__)
// Gives every search a threshold to begin with. The best items of disjoint parts are different
// items, so the k-th best of such peaks is a score that k items reach.
void raise_thresholds(const Catalogue& items, Search* searches, int64_t count, int64_t k,
                      int64_t first, int64_t stride) {
    // More parts than k make the bound near: of 2.5 k parts of 16 items, the k-th peak is about the
    // 1.2 k-th item. A share of the catalogue is looked at twice for it.
    constexpr int64_t kShare = 6;
    const int64_t buckets = (5 * k / 2 + kLanes - 1) / kLanes;
    const int64_t groups = (items.groups() - first + stride - 1) / stride;
    const int64_t sample = std::max(buckets, groups / kShare);
    if (2 * sample > groups) return;
    std::vector<float> least(static_cast<size_t>(buckets * kAtOnce * kLanes));
    std::vector<float> peaks(static_cast<size_t>(buckets * kLanes));
    for (int64_t start = 0; start < count; start += kAtOnce) {
        const int64_t n = std::min(kAtOnce, count - start);
        const Asked* asked[kAtOnce];
        const uint64_t* closed[kAtOnce];
        for (int64_t q = 0; q < n; ++q) {
            asked[q] = &searches[start + q].asked();
            closed[q] = searches[start + q].closed();
        }
        std::fill(least.begin(), least.end(), -kInfinity);
        for (int64_t g = 0; g < sample; ++g)
            items.peaks(first + g * stride, asked, closed, n,
                        least.data() + g % buckets * kAtOnce * kLanes);
        for (int64_t q = 0; q < n; ++q) {
            for (int64_t b = 0; b < buckets; ++b)
                std::copy_n(least.data() + (b * kAtOnce + q) * kLanes, kLanes,
                            peaks.data() + b * kLanes);
            std::nth_element(peaks.begin(), peaks.begin() + (k - 1), peaks.end(), std::greater<>());
            searches[start + q].expect(peaks[static_cast<size_t>(k - 1)]);
        }
    }
}
#endif

// Takes `count` searches through groups first, first + stride, ... of the catalogue.
void walk(const Catalogue& items, Search* searches, int64_t count, int64_t first, int64_t stride) {
    constexpr int64_t kPanels = kGroup / kPanel;
    for (int64_t group = first; group < items.groups(); group += stride) {
        bool open = false;
        for (int64_t start = 0; start < count; start += kAtOnce) {
            const int64_t n = std::min(kAtOnce, count - start);
            const Asked* asked[kAtOnce];
            Limit limits[kAtOnce];
            bool any = false;
            for (int64_t q = 0; q < n; ++q) {
                const Search& search = searches[start + q];
                asked[q] = &search.asked();
                limits[q] = items.limit(search.asked(), group, search.threshold());
                any |= !items.beyond(search.asked(), group, search.threshold());
            }
            open |= any;
            if (!any) continue;
            const int64_t last = std::min(items.panels(), (group + 1) * kPanels);
            for (int64_t panel = group * kPanels; panel < last; ++panel) {
                uint64_t hits[kAtOnce];
                items.reach(panel, asked, limits, n, hits);
                for (int64_t q = 0; q < n; ++q)
                    if (hits[q]) searches[start + q].take(panel, hits[q]);
            }
        }
        if (!open) return;  // norms only fall from here
    }
}

}  // namespace

void top_k(Matrix<const float> queries, const Catalogue& items, Filter filter, Best best,
           int threads) {
    constexpr int64_t kQueries = 4 * kAtOnce;  // searched together, while a group is in cache
    constexpr double kWork = 1 << 24;          // products worth a thread: starting one takes 20 us
    const int64_t k = best.items.columns;
    const double work = static_cast<double>(queries.rows) * static_cast<double>(items.size()) *
                        static_cast<double>(items.width());
    const int64_t workers = std::clamp<int64_t>(static_cast<int64_t>(work / kWork), 1, threads);
    const int64_t blocks = (queries.rows + kQueries - 1) / kQueries;
    // Few queries share the threads by items: every answer is exact, however the items are split.
    const int64_t shares = blocks == 0 || blocks >= workers ? 1 : (workers + blocks - 1) / blocks;
    const Bits closed = closed_places(items, filter.allow);
    std::vector<std::vector<Key>> parts(
        static_cast<size_t>(shares == 1 ? 0 : shares * queries.rows));
    parallel_for(blocks * shares, 1, static_cast<int>(workers), [&] {
        return [&, searches = std::vector<Search>(kQueries)](int64_t task, int64_t) mutable {
            const int64_t begin = task / shares * kQueries, share = task % shares;
            const int64_t count = std::min(kQueries, queries.rows - begin);
            for (int64_t q = 0; q < count; ++q)
                searches[static_cast<size_t>(q)].start(items, queries.row(begin + q), begin + q, k,
                                                       closed, filter.exclude);
#if defined(__AVX512VNNI__)
            raise_thresholds(items, searches.data(), count, k, share, shares);
#endif
            walk(items, searches.data(), count, share, shares);
            for (int64_t q = 0; q < count; ++q) {
                const int64_t row = begin + q;
                Selection& found =
                    searches[static_cast<size_t>(q)].finish(row, closed, filter.exclude);
                if (shares == 1)
                    found.finish(best.items.row(row), best.scores.row(row), k);
                else
                    parts[static_cast<size_t>(row * shares + share)] = found.kept();
            }
        };
    });
    if (shares == 1) return;
    Selection all;
    for (int64_t row = 0; row < queries.rows; ++row) {
        all.start(k);
        for (int64_t s = 0; s < shares; ++s)
            for (const Key key : parts[static_cast<size_t>(row * shares + s)]) all.offer(key);
        all.finish(best.items.row(row), best.scores.row(row), k);
    }
}

void select_top_k(Matrix<const float> scores, Filter filter, Best best, int threads) {
    constexpr int64_t kRows = 16;   // rows a thread takes at a time
    constexpr int64_t kCells = 64;  // scores looked at together, a word of bits
    const int64_t n_items = scores.columns;
    parallel_for(scores.rows, kRows, threads, [&] {
        return [&, best_of = Selection(), blocked = no_bits(n_items)](int64_t begin,
                                                                      int64_t end) mutable {
            for (int64_t b = begin; b < end; ++b) {
                std::fill(blocked.begin(), blocked.end(), 0);
                if (filter.exclude)
                    for (int64_t e = filter.exclude->indptr[b]; e < filter.exclude->indptr[b + 1];
                         ++e)
                        set_bit(blocked, filter.exclude->items[e]);
                best_of.start(best.items.columns);
                const float* row = scores.row(b);
                for (int64_t start = 0; start < n_items; start += kCells) {
                    const int64_t last = std::min(n_items, start + kCells);
                    // Codes rise, so an equal score ranks behind: only what is above comes in.
                    const float threshold = best_of.threshold();
                    int32_t hit = 0;
                    // Not "above": this way NaN is seen as well, and refused below.
                    for (int64_t i = start; i < last; ++i) hit |= !(row[i] <= threshold);
                    if (!hit) continue;
                    for (int64_t i = start; i < last; ++i) {
                        if (row[i] <= threshold) continue;
                        if (blocked[static_cast<size_t>(i / 64)] >> (i % 64) & 1) continue;
                        if (filter.allow && !filter.allow[i]) continue;
                        if (!(row[i] <= kMost))
                            refuse("scores[" + std::to_string(b) + ", " + std::to_string(i) +
                                   "] is NaN or infinite; wanted a finite score, or -inf to leave "
                                   "the item out");
                        best_of.offer(key_of(row[i], static_cast<int32_t>(i)));
                    }
                }
                best_of.finish(best.items.row(b), best.scores.row(b), best.items.columns);
            }
        };
    });
}

}  // namespace hybridrec
