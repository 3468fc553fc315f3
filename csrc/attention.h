// Attention over a pack: texts laid end to end, each of which looks at itself and at one shared
// prefix.
#pragma once

#include <cstdint>

#include "views.h"

namespace hybridrec {

// Text s asks with query rows [asks[s], asks[s + 1]). It looks at key rows [seen[2 s], seen[2 s +
// 1]) and behind them [own[2 s], own[2 s + 1]): place 0, 1, ... of what it looks at. The last of
// its query rows stands at the last place, the others before it.
struct Texts {
    const int64_t* asks;  // (count + 1)
    const int64_t* own;   // (count, 2)
    const int64_t* seen;  // (count, 2)
    int64_t count;
};

// Rows that lie in two places: those kept from an earlier call, then the others.
struct Rows {
    Matrix<const float> kept, others;

    const float* row(int64_t r) const {
        return r < kept.rows ? kept.row(r) : others.row(r - kept.rows);
    }
};

struct Heads {
    int64_t query;  // a multiple of `key`: neighbouring query heads share a key head
    int64_t key;
    int64_t width;  // D
};

// What a query row looks at, of the places of its text.
struct Sight {
    bool causal;     // none behind its own
    int64_t window;  // only places less than `window` away; 0 is all
};

// out (T, query heads * D) = softmax(scale q k') v of every text and head, where q is
// (T, query heads * D), k and v have J rows of key heads * D. A text without keys gets zeros.
// O(sum of n L) times query heads * D time, for texts of n queries and L keys; O(L (D + 1)) memory
// a thread.
void attend(Matrix<const float> q, const Rows& k, const Rows& v, const Texts& texts,
            const Heads& heads, float scale, const Sight& sight, Matrix<float> out, int threads);

}  // namespace hybridrec
