#include "catalogue.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#include "parallel.h"

namespace hybridrec {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double norm_of(const float* x, int64_t n) {
    double sum = 0.0;
    for (int64_t f = 0; f < n; ++f) sum += static_cast<double>(x[f]) * x[f];
    // Values that are no numbers come first: everything is compared with them, and nothing sorted.
    return std::isfinite(sum) ? std::sqrt(sum) : double{kInfinity};
}

#if defined(__AVX512VNNI__)
constexpr int32_t kZero = 128;   // the code of 0
constexpr float kLargest = 127;  // codes reach from -kLargest to kLargest, before kZero is added

float scale_of(float largest) { return largest / kLargest; }

// round(x / scale), and its remainder.
int32_t coded(float x, float scale) {
    if (!(scale > 0.0f)) return 0;
    return static_cast<int32_t>(std::lrint(std::clamp(x / scale, -kLargest, kLargest)));
}
#endif

#if defined(__AVX512VNNI__)
constexpr int64_t kVecs = kPanel / 16;

// sums (R, kVecs) = the first-pass scores of R queries over a panel
template <int64_t R>
[[gnu::always_inline]] inline void panel_scores(const Code* panel, int64_t steps,
                                                const Asked* const* asked,
                                                VecMask (&sums)[R][kVecs]) {
    const AskedCode* queries[R];
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
        queries[r] = asked[r]->codes.data();
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) { sums[r][v] = VecMask{}; });
    });
    for (int64_t s = 0; s < steps; ++s) {
        __m512i items[kVecs];
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
            items[v] = _mm512_loadu_si512(panel + (s * kVecs + v) * 64);
        });
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            int32_t four;
            std::memcpy(&four, queries[r] + s * kStep, sizeof four);
            const __m512i query = _mm512_set1_epi32(four);
            unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
                // Lanes of int32 on both sides: where types differ, GCC 12 keeps a copy in memory.
                sums[r][v] = reinterpret_cast<VecMask>(
                    _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums[r][v]), items[v], query));
            });
        });
    }
}

template <int64_t R>
void panel_reach(const Code* panel, int64_t steps, const Asked* const* asked, const Limit* limits,
                 uint64_t* hits) {
    VecMask sums[R][kVecs];
    panel_scores<R>(panel, steps, asked, sums);
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
        const __m512i limit = _mm512_set1_epi32(limits[r]);
        uint64_t word = 0;
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
            word |= uint64_t{_mm512_cmpge_epi32_mask(reinterpret_cast<__m512i>(sums[r][v]), limit)}
                    << (16 * v);
        });
        hits[r] = word;
    });
}

// peaks[r] (16 lanes) = max(peaks[r], the open items' scores)
template <int64_t R>
void panel_peaks(const Code* panel, int64_t steps, const Asked* const* asked, const uint64_t* open,
                 int32_t* peaks) {
    VecMask sums[R][kVecs];
    panel_scores<R>(panel, steps, asked, sums);
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
        __m512i peak = _mm512_loadu_si512(peaks + r * 16);
        unrolled<kVecs>([&](auto v) __attribute__((always_inline)) {
            peak = _mm512_mask_max_epi32(peak, static_cast<__mmask16>(open[r] >> (16 * v)), peak,
                                         reinterpret_cast<__m512i>(sums[r][v]));
        });
        _mm512_storeu_si512(peaks + r * 16, peak);
    });
}
#else
template <int64_t R>
void panel_reach(const Code* panel, int64_t steps, const Asked* const* asked, const Limit* limits,
                 uint64_t* hits) {
    constexpr int64_t kVecs = 2;
    std::fill_n(hits, R, uint64_t{0});
    for (int64_t part = 0; part < kPanel; part += kVecs * kWidth) {
        Vec sums[R][kVecs] = {};
        for (int64_t s = 0; s < steps; ++s) {
            Vec items[kVecs];
            for (int64_t v = 0; v < kVecs; ++v)
                items[v] = load(panel + s * kPanel + part + v * kWidth);
            for (int64_t r = 0; r < R; ++r) {
                const Vec query = broadcast(asked[r]->codes[static_cast<size_t>(s)]);
                for (int64_t v = 0; v < kVecs; ++v) sums[r][v] += query * items[v];
            }
        }
        for (int64_t r = 0; r < R; ++r) {
            const Vec limit = broadcast(limits[r]);
            // Not "at least": this way NaN, which is infinity less infinity, is looked at too.
            const VecMask reached[kVecs] = {~(sums[r][0] < limit), ~(sums[r][1] < limit)};
            const VecMask either = reached[0] | reached[1];
            int32_t any = 0;
            for (int64_t i = 0; i < kWidth; ++i) any |= either[i];
            if (!any) continue;
            for (int64_t v = 0; v < kVecs; ++v)
                for (int64_t i = 0; i < kWidth; ++i)
                    hits[r] |= uint64_t{reached[v][i] != 0} << (part + v * kWidth + i);
        }
    }
}
#endif

}  // namespace

Catalogue::Catalogue(Matrix<const float> items, int threads)
    : width_(items.columns),
      stride_(padded(items.columns)),
      steps_((items.columns + kStep - 1) / kStep),
      codes_(static_cast<size_t>(items.rows)),
      places_(static_cast<size_t>(items.rows)),
      groups_(static_cast<size_t>((items.rows + kGroup - 1) / kGroup)),
      rows_(items.rows * stride_),
      packed_(static_cast<size_t>(panels() * kPanel * steps_ * kStep)) {
    std::vector<double> norms(static_cast<size_t>(items.rows));
    parallel_for(items.rows, kGroup, threads, [&] {
        return [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                norms[static_cast<size_t>(i)] = norm_of(items.row(i), width_);
        };
    });
    std::iota(codes_.begin(), codes_.end(), 0);
    std::sort(codes_.begin(), codes_.end(), [&](int32_t a, int32_t b) {
        const double first = norms[static_cast<size_t>(a)], second = norms[static_cast<size_t>(b)];
        return first > second || (first == second && a < b);
    });
    for (int64_t p = 0; p < size(); ++p)
        places_[static_cast<size_t>(code(p))] = static_cast<int32_t>(p);
    parallel_for(groups(), 1, threads,
                 [&] { return [&](int64_t group, int64_t) { fill(group, items); }; });
}

void Catalogue::fill(int64_t group, Matrix<const float> items) {
    const int64_t begin = group * kGroup, end = std::min(size(), begin + kGroup);
    Group& g = groups_[static_cast<size_t>(group)];
    g = {1.0, 0.0, 0.0, 0.0};
    for (int64_t p = begin; p < end; ++p) {
        std::copy_n(items.row(code(p)), width_, rows_.get() + p * stride_);
        g.norm = std::max(g.norm, norm_of(items.row(code(p)), width_));
    }
    const auto slot = [&](int64_t p, int64_t f) -> Code& {
        const int64_t step = p / kPanel * steps_ + f / kStep;
        return packed_[static_cast<size_t>((step * kPanel + p % kPanel) * kStep + f % kStep)];
    };
#if defined(__AVX512VNNI__)
    float largest = 0.0f;
    for (int64_t p = begin; p < end; ++p)
        for (int64_t f = 0; f < width_; ++f)
            largest = std::max(largest, std::abs(rows_.get()[p * stride_ + f]));
    const float scale = scale_of(largest);
    g.scale = scale;
    for (int64_t p = begin; p < end; ++p) {
        double rest = 0.0, whole = 0.0;
        for (int64_t f = 0; f < width_; ++f) {
            const float y = rows_.get()[p * stride_ + f];
            const int32_t c = coded(y, scale);
            slot(p, f) = static_cast<Code>(c + kZero);
            const double shown = g.scale * c, left = y - shown;
            whole += shown * shown;
            rest += left * left;
        }
        g.rest = std::max(g.rest, std::sqrt(rest));
        g.coded = std::max(g.coded, std::sqrt(whole));
    }
#else
    for (int64_t p = begin; p < end; ++p)
        for (int64_t f = 0; f < width_; ++f) slot(p, f) = rows_.get()[p * stride_ + f];
    g.coded = g.norm;
#endif
}

void Catalogue::vectors(float* out) const {
    for (int64_t p = 0; p < size(); ++p)
        std::copy_n(rows_.get() + p * stride_, width_, out + code(p) * width_);
}

void Catalogue::prepare(const float* query, Asked& asked) const {
    asked.vector.assign(static_cast<size_t>(stride_), 0.0f);
    std::copy_n(query, width_, asked.vector.begin());
    asked.codes.assign(static_cast<size_t>(steps_ * kStep), 0);
    asked.norm = norm_of(query, width_);
#if defined(__AVX512VNNI__)
    float largest = 0.0f;
    for (int64_t f = 0; f < width_; ++f) largest = std::max(largest, std::abs(query[f]));
    const float scale = scale_of(largest);
    asked.scale = scale;
    double rest = 0.0;
    int64_t sum = 0;
    for (int64_t f = 0; f < width_; ++f) {
        const int32_t c = coded(query[f], scale);
        asked.codes[static_cast<size_t>(f)] = static_cast<int8_t>(c);
        const double left = query[f] - asked.scale * c;
        rest += left * left;
        sum += c;
    }
    asked.rest = std::sqrt(rest);
    asked.offset = kZero * sum;
#else
    std::copy_n(query, width_, asked.codes.begin());
    asked.scale = 1.0;
#endif
}

// The rounding of a float32 product of two vectors, as a bound: every sum adds at most half a unit
// in its last place (twice that here, to be far from the edge), or one below the smallest float32.
double Catalogue::slack(const Asked& asked, const Group& group) const {
    constexpr double kUnit = std::numeric_limits<float>::epsilon();
    constexpr double kSmallest = std::numeric_limits<float>::denorm_min();
    // A sum may leave float32 on its way and come back: then nothing is known before it is made.
    if (asked.norm * group.norm > std::numeric_limits<float>::max()) return double{kInfinity};
    return static_cast<double>(width_ + 8) * (kUnit * asked.norm * group.norm + 2 * kSmallest);
}

// x.y = (scale codes of x).(scale codes of y) + x.(rest of y) + (rest of x).(scale codes of y)
double Catalogue::error(const Asked& asked, const Group& group) const {
    return asked.norm * group.rest + asked.rest * group.coded + slack(asked, group);
}

bool Catalogue::beyond(const Asked& asked, int64_t group, float threshold) const {
    const Group& g = groups_[static_cast<size_t>(group)];
    return asked.norm * g.norm + slack(asked, g) < threshold;
}

Limit Catalogue::limit(const Asked& asked, int64_t group, float threshold) const {
    constexpr Limit kNone = std::numeric_limits<Limit>::has_infinity
                                ? -std::numeric_limits<Limit>::infinity()
                                : std::numeric_limits<Limit>::lowest();
    const Group& g = groups_[static_cast<size_t>(group)];
    const double least = (threshold - error(asked, g)) / (asked.scale * g.scale);
    if (!(least > -1e30)) return kNone;  // no threshold yet, or a scale that is nothing
#if defined(__AVX512VNNI__)
    // One below, for the rounding of this line.
    const double shifted = std::floor(least) - 1.0 + static_cast<double>(asked.offset);
    constexpr double kMost = std::numeric_limits<int32_t>::max();
    return shifted < -kMost ? kNone : static_cast<Limit>(std::min(shifted, kMost));
#else
    return std::nextafter(static_cast<float>(least), kNone);
#endif
}

// call(R) with the constant R = count.
template <int64_t R = kAtOnce, class Call>
void with_count(int64_t count, const Call& call) {
    if constexpr (R > 1)
        if (count < R) return with_count<R - 1>(count, call);
    call(std::integral_constant<int64_t, R>());
}

void Catalogue::reach(int64_t panel, const Asked* const* asked, const Limit* limits, int64_t count,
                      uint64_t* hits) const {
    const Code* codes = packed_.data() + panel * steps_ * kPanel * kStep;
    with_count(count, [&](auto r) { panel_reach<r>(codes, steps_, asked, limits, hits); });
}

#if defined(__AVX512VNNI__)
void Catalogue::peaks(int64_t group, const Asked* const* asked, const uint64_t* const* closed,
                      int64_t count, float* least) const {
    constexpr int32_t kNone = std::numeric_limits<int32_t>::min();
    int32_t peaks[kAtOnce * kLanes];
    std::fill_n(peaks, count * kLanes, kNone);
    const int64_t first = group * (kGroup / kPanel);
    for (int64_t panel = first; panel < std::min(panels(), first + kGroup / kPanel); ++panel) {
        uint64_t open[kAtOnce];
        for (int64_t q = 0; q < count; ++q) open[q] = ~closed[q][panel];
        const Code* codes = packed_.data() + panel * steps_ * kPanel * kStep;
        with_count(count, [&](auto r) { panel_peaks<r>(codes, steps_, asked, open, peaks); });
    }
    const Group& g = groups_[static_cast<size_t>(group)];
    for (int64_t q = 0; q < count; ++q) {
        const double scale = asked[q]->scale * g.scale, below = error(*asked[q], g);
        for (int64_t i = 0; i < kLanes; ++i) {
            const int32_t peak = peaks[q * kLanes + i];
            const double score =
                scale * (static_cast<double>(peak) - static_cast<double>(asked[q]->offset)) - below;
            float& to = least[q * kLanes + i];
            // Rounded down; a peak of nothing, and what is no number, promises nothing.
            if (peak != kNone && score > to)
                to = std::max(to, std::nextafter(static_cast<float>(score), -kInfinity));
        }
    }
}
#endif

void Catalogue::products(const Asked& asked, const int32_t* places, int64_t n,
                         float* scores) const {
    const float* query = asked.vector.data();
    const float* rows[4];
    for (int64_t i = 0; i < 4; ++i) rows[i] = rows_.get() + places[i < n ? i : 0] * stride_;
    Vec acc[4] = {};
    for (int64_t f = 0; f < stride_; f += kWidth) {
        const Vec x = load(query + f);
        for (int64_t i = 0; i < 4; ++i) acc[i] += x * load(rows[i] + f);
    }
    float four[4];
    sums(acc[0], acc[1], acc[2], acc[3], four);
    constexpr float kMost = std::numeric_limits<float>::max();
    for (int64_t i = 0; i < n; ++i) {
        // Not "above": one infinity less another is as good as either.
        const float s = four[i] < kMost ? four[i] : kMost;
        scores[i] = s > -kMost ? s : -kMost;
    }
}

void Catalogue::prefetch(int64_t place) const {
    for (int64_t f = 0; f < stride_; f += 16) __builtin_prefetch(rows_.get() + place * stride_ + f);
}

}  // namespace hybridrec
