// The events of a row, as the solvers read them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "als.h"
#include "vec.h"

namespace hybridrec {

constexpr int64_t kAhead = 16;  // events whose factors are on their way from memory
constexpr int64_t kEvents = 8;  // events of a group: one register of sums for each

// A few events of a row, read where their factors lie: a row's are in cache after the first pass,
// and a copy would cost more than it saves. Behind the last event the last is repeated with c = 0.
struct Group {
    const float* factors[kEvents];
    const float* next[kEvents];  // those kAhead events later, to be fetched
    float c[kEvents];            // alpha * weight
};

// Events [first, first + kEvents) of a problem, those before `stop`.
inline Group group(const Problem& problem, int64_t first, int64_t stop) {
    const auto& [indptr, items, weights, n_rows] = problem.rows;
    const int64_t last = stop - 1, end = indptr[n_rows] - 1;
    Group events;
    if (first + kEvents <= stop && first + kAhead + kEvents <= end) {
        for (int64_t i = 0; i < kEvents; ++i) {
            events.factors[i] = problem.other.row(items[first + i]);
            events.next[i] = problem.other.row(items[first + kAhead + i]);
            events.c[i] = problem.alpha * problem.rows.weight(first + i);
        }
        return events;
    }
    for (int64_t i = 0; i < kEvents; ++i) {
        const int64_t e = first + i;
        events.factors[i] = problem.other.row(items[std::min(e, last)]);
        // The next rows of the problem follow in memory: what is fetched may be theirs.
        events.next[i] = problem.other.row(items[std::min(e + kAhead, end)]);
        events.c[i] = e < stop ? problem.alpha * problem.rows.weight(e) : 0.0f;
    }
    return events;
}

// out[i] = y[i] . v, and fetches what comes next meanwhile, if wanted: spread over the products,
// so that memory never has more to do than it can keep in flight.
template <bool kFetch>
inline void group_dots(const Group& events, const float* v, int64_t n, float* out) {
    Vec acc[kEvents] = {};
    int64_t f = 0;
    for (; f + kWidth <= n; f += kWidth) {
        const Vec x = load(v + f);
        unrolled<kEvents>([&](auto i) {
            if (kFetch && f % 16 == 0) __builtin_prefetch(events.next[i] + f);
            acc[i] += x * load(events.factors[i] + f);
        });
    }
    sums(acc[0], acc[1], acc[2], acc[3], out);
    sums(acc[4], acc[5], acc[6], acc[7], out + 4);
    for (; f < n; ++f)
        for (int64_t i = 0; i < kEvents; ++i) out[i] += v[f] * events.factors[i][f];
}

// out += sum of s[i] y[i]
inline void group_add(const Group& events, const float* s, int64_t n, float* out) {
    Vec each[kEvents];
    unrolled<kEvents>([&](auto i) { each[i] = broadcast(s[i]); });
    int64_t f = 0;
    for (; f + kWidth <= n; f += kWidth) {
        Vec even = load(out + f), odd{};
        unrolled<kEvents / 2>([&](auto i) {
            even += each[2 * i] * load(events.factors[2 * i] + f);
            odd += each[2 * i + 1] * load(events.factors[2 * i + 1] + f);
        });
        store(out + f, even + odd);
    }
    for (; f < n; ++f)
        for (int64_t i = 0; i < kEvents; ++i) out[f] += s[i] * events.factors[i][f];
}

// Copies the factors of events [first, first + size) into rows, `stride` = padded(F) apart, and
// their c; those before `stop` are fetched ahead. Columns behind the last factor are left as they
// are: zero.
void gather(const Problem& problem, int64_t first, int64_t size, int64_t stop, float* rows,
            float* c);

// Rows of a problem in blocks of about equal work, the same for any thread count:
// [starts[b], starts[b + 1]).
std::vector<int64_t> even_blocks(const Ragged& rows);

}  // namespace hybridrec
