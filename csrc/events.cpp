#include "events.h"

namespace hybridrec {

Block gather(const Problem& problem, int64_t first, int64_t size, int64_t stop, float* rows,
             float* c) {
    constexpr int64_t kAhead = 16;  // events whose factors are on their way from memory
    const int64_t n = problem.other.columns, stride = padded(n);
    const int32_t* items = problem.rows.items;
    for (int64_t i = 0; i < size; ++i) {
        if (const int64_t ahead = first + i + kAhead; ahead < stop) {
            const float* next = problem.other.row(items[ahead]);
            for (int64_t f = 0; f < n; f += 16) __builtin_prefetch(next + f);
        }
        copy(problem.other.row(items[first + i]), rows + i * stride, n);
    }
    for (int64_t i = 0; i < size; ++i) c[i] = problem.alpha * problem.rows.weight(first + i);
    int64_t i = size;
    for (; i % kRows != 0; ++i) {
        std::fill_n(rows + i * stride, n, 0.0f);
        c[i] = 0.0f;
    }
    return {rows, c, i};
}

void block_dots(const Block& block, const float* v, int64_t stride, float* out) {
    for (int64_t i = 0; i < block.size; i += kRows) {
        const float* rows = block.rows + i * stride;
        Vec acc[kRows] = {};
        for (int64_t f = 0; f < stride; f += kWidth) {
            const Vec x = load(v + f);
            for (int64_t r = 0; r < kRows; ++r) acc[r] += x * load(rows + r * stride + f);
        }
        sums(acc[0], acc[1], acc[2], acc[3], out + i);
        sums(acc[4], acc[5], acc[6], acc[7], out + i + 4);
    }
}

namespace {

// out += sum of s[i] rows[i], V vectors wide
template <int64_t V>
inline void strip_add(const Block& block, const float* s, int64_t stride, int64_t f, float* out) {
    Vec acc[V];
    for (int64_t v = 0; v < V; ++v) acc[v] = load(out + f + v * kWidth);
    for (int64_t i = 0; i < block.size; ++i) {
        const Vec c = broadcast(s[i]);
        const float* row = block.rows + i * stride + f;
        for (int64_t v = 0; v < V; ++v) acc[v] += c * load(row + v * kWidth);
    }
    for (int64_t v = 0; v < V; ++v) store(out + f + v * kWidth, acc[v]);
}

}  // namespace

void block_add(const Block& block, const float* s, int64_t stride, float* out) {
    int64_t f = 0;
    for (; f + 4 * kWidth <= stride; f += 4 * kWidth) strip_add<4>(block, s, stride, f, out);
    for (; f < stride; f += kWidth) strip_add<1>(block, s, stride, f, out);
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
