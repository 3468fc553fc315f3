// The events of a row, as the solvers read them: their factors gathered a few at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "als.h"
#include "parallel.h"
#include "vec.h"

namespace hybridrec {

constexpr int64_t kBlock = 16;               // events worked on at a time: their factors stay in L1
constexpr int64_t kRows = 8;                 // events whose products are summed at a time
constexpr int64_t kKept = int64_t{1} << 17;  // floats of factors that stay in half of an L2 cache

// How many rows of factors, `stride` floats each, stay in cache; a multiple of kBlock.
inline int64_t kept_rows(int64_t stride) {
    return std::max(kBlock, kKept / std::max(stride, int64_t{1}) / kBlock * kBlock);
}

// Some events of a row: their factors, rows `stride` apart, and their c. Both go on with zeros up
// to a multiple of kRows events.
struct Block {
    const float* rows;
    const float* c;
    int64_t size;  // with the zeros
};

// Gathers events [first, first + size) of a problem, size <= kBlock, into rows and c; those before
// `stop` are fetched ahead. Columns behind the last factor are left as they are: zero.
Block gather(const Problem& problem, int64_t first, int64_t size, int64_t stop, float* rows,
             float* c);

// out[i] = rows[i] . v
void block_dots(const Block& block, const float* v, int64_t stride, float* out);

// out += sum of s[i] rows[i]
void block_add(const Block& block, const float* s, int64_t stride, float* out);

// One row's events, block by block. A row whose events fit is gathered once and read from L2 then.
class Events {
  public:
    explicit Events(const Problem& problem)
        : problem_(problem),
          stride_(padded(problem.other.columns)),
          end_(problem.rows.indptr[problem.rows.rows]),
          kept_(kept_rows(stride_)),
          rows_(kept_ * stride_),
          c_(kept_) {}

    void start(int64_t u) {
        first_ = problem_.rows.indptr[u];
        size_ = problem_.rows.length(u);
        gathered_ = 0;
    }
    int64_t size() const { return size_; }

    // The events from e on, a multiple of kBlock.
    Block block(int64_t e) {
        const bool stays = size_ <= kept_;
        const int64_t at = stays ? e : 0, size = std::min(kBlock, size_ - e);
        float *rows = rows_.get() + at * stride_, *c = c_.get() + at;
        if (stays && e < gathered_) return {rows, c, (size + kRows - 1) / kRows * kRows};
        gathered_ = e + size;
        // The next rows of the problem follow in memory: what is fetched ahead may be theirs.
        return gather(problem_, first_ + e, size, end_, rows, c);
    }

  private:
    const Problem& problem_;
    int64_t stride_, end_, kept_;
    int64_t first_ = 0, size_ = 0, gathered_ = 0;
    Buffer rows_, c_;
};

// Rows of a problem in blocks of about equal work, the same for any thread count:
// [starts[b], starts[b + 1]).
std::vector<int64_t> even_blocks(const Ragged& rows);

}  // namespace hybridrec
