#include "events.h"

namespace hybridrec {

void gather(const Problem& problem, int64_t first, int64_t size, int64_t stop, float* rows,
            float* c) {
    const int64_t n = problem.other.columns, stride = padded(n);
    const int32_t* items = problem.rows.items;
    for (int64_t i = 0; i < size; ++i) {
        if (const int64_t ahead = first + i + kAhead; ahead < stop) {
            const float* next = problem.other.row(items[ahead]);
            for (int64_t f = 0; f < n; f += 16) __builtin_prefetch(next + f);
        }
        copy(problem.other.row(items[first + i]), rows + i * stride, n);
        c[i] = problem.alpha * problem.rows.weight(first + i);
    }
}

std::vector<int64_t> even_blocks(const Ragged& rows) {
    constexpr int64_t kWork = 4096;  // events
    constexpr int64_t kRow = 16;     // what a row costs beside its events, in events
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

}  // namespace hybridrec
