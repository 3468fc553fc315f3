// Item vectors made ready for exact top-k in two passes: a cheap one over every item, whose error
// is bounded, and the float32 product of the few that may come in.
//
// Items lie by falling norm. So the threshold rises early, and once a whole group's largest norm
// cannot reach it (Cauchy-Schwarz), neither can what follows.
#pragma once

#include <cstdint>
#include <vector>

#include "vec.h"
#include "views.h"

namespace hybridrec {

constexpr int64_t kPanel = 64;          // items scored together: their hits are one 64-bit word
constexpr int64_t kWidest = 65536;      // factors: 255 * 127 times that is still an int32
constexpr int64_t kGroup = 4 * kPanel;  // items that share a scale and an error bound

#if defined(__AVX512VNNI__)
// First pass in 8-bit integers: four times the products of a float32 vector instruction.
using Code = uint8_t;           // of items: round(y / scale) + 128
using AskedCode = int8_t;       // of queries: round(x / scale)
using Limit = int32_t;          // what a first-pass score must reach
constexpr int64_t kStep = 4;    // factors that an instruction takes together
constexpr int64_t kLanes = 16;  // parts of a group whose best items are told apart
#else
using Code = float;
using AskedCode = float;
using Limit = float;
constexpr int64_t kStep = 1;
#endif

// Queries of a register tile: as many as leave no sum without a register.
#if defined(__x86_64__) && !defined(__AVX2__)
constexpr int64_t kAtOnce = 4;
#else
constexpr int64_t kAtOnce = 6;
#endif

// A query for both passes.
struct Asked {
    std::vector<float> vector;     // (stride), zeros behind the last factor
    std::vector<AskedCode> codes;  // (steps * kStep), zeros behind the last factor
    double scale = 0.0;            // vector is about scale * codes
    double norm = 0.0;             // of vector
    double rest = 0.0;             // norm of vector - scale * codes
    int64_t offset = 0;            // what the items' + 128 adds to every first-pass score
};

class Catalogue {
  public:
    Catalogue(Matrix<const float> items, int threads);

    int64_t size() const { return static_cast<int64_t>(codes_.size()); }
    int64_t width() const { return width_; }
    int64_t panels() const { return (size() + kPanel - 1) / kPanel; }
    int64_t groups() const { return static_cast<int64_t>(groups_.size()); }

    // Items have a code, which the caller knows, and a place, by falling norm.
    int32_t code(int64_t place) const { return codes_[static_cast<size_t>(place)]; }
    int64_t place(int32_t code) const { return places_[static_cast<size_t>(code)]; }

    // The vectors in order of their codes, (size, width).
    void vectors(float* out) const;

    void prepare(const float* query, Asked& asked) const;

    // Whether no item of the group or behind it can score `threshold` or more.
    bool beyond(const Asked& asked, int64_t group, float threshold) const;

    // The least first-pass score in this group of an item whose product may be `threshold` or more.
    Limit limit(const Asked& asked, int64_t group, float threshold) const;

    // First pass of `count` <= kAtOnce queries over a panel: bit i of hits[q] says that the item at
    // place panel * kPanel + i reaches limits[q]; behind the last item anything may be set.
    void reach(int64_t panel, const Asked* const* asked, const Limit* limits, int64_t count,
               uint64_t* hits) const;

#if defined(__AVX512VNNI__)
    // For `count` <= kAtOnce queries: what the best open item of each of kLanes parts of a group
    // scores at least, where that is above what least (count, kLanes) holds. Bit i of
    // closed[q][panel] closes an item.
    void peaks(int64_t group, const Asked* const* asked, const uint64_t* const* closed,
               int64_t count, float* least) const;
#endif

    // Second pass: the products of a query with the items at n <= 4 places, in float32. Each is one
    // sum in a fixed order, so it has the same bits in any company; beyond float32 it counts as the
    // largest finite float32 of its sign.
    void products(const Asked& asked, const int32_t* places, int64_t n, float* scores) const;
    void prefetch(int64_t place) const;

  private:
    struct Group {
        double scale;  // y is about scale * (code - 128)
        double norm;   // largest |y|
        double rest;   // largest |y - scale * (code - 128)|
        double coded;  // largest |scale * (code - 128)|
    };
    double error(const Asked& asked, const Group& group) const;
    double slack(const Asked& asked, const Group& group) const;
    void fill(int64_t group, Matrix<const float> items);

    int64_t width_, stride_, steps_;
    std::vector<int32_t> codes_, places_;
    std::vector<Group> groups_;
    Buffer rows_;               // (size, stride) in order of places
    std::vector<Code> packed_;  // (panels, steps, kPanel, kStep)
};

}  // namespace hybridrec
