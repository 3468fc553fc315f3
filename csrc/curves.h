// exp and GELU for whole vectors, to about 1e-7 of their size: no library call, the same bits in
// any lane and thread.
#pragma once

#include <cstring>

#include "vec.h"

namespace hybridrec {

inline VecMask bits(Vec x) {
    VecMask v;
    std::memcpy(&v, &x, sizeof v);
    return v;
}
inline Vec from_bits(VecMask x) {
    Vec v;
    std::memcpy(&v, &x, sizeof v);
    return v;
}
// where ? a : b, with `where` as comparisons give it
inline Vec chosen(VecMask where, Vec a, Vec b) {
    return from_bits((bits(a) & where) | (bits(b) & ~where));
}

// e^x: 2^n times a polynomial of what is left. 0 for x below -87, and no NaN for any x <= 88.
inline Vec exp(Vec x) {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Vec least = broadcast(-87.0f), most = broadcast(88.0f);
    const VecMask vanishes = x < least;
    x = chosen(x > most, most, chosen(vanishes, least, x));
    const Vec shifted = x * 1.44269504f + kMagic;
    const Vec n = shifted - kMagic;
    const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    Vec p = broadcast(1.9875691500e-4f);  // Cephes, expf
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const VecMask power = (bits(shifted) - bits(broadcast(kMagic)) + 127) << 23;
    return chosen(vanishes, Vec{}, p * from_bits(power));
}

// x Phi(x), with erf after Abramowitz & Stegun 7.1.26: within 2e-7 |x|.
inline Vec gelu(Vec x) {
    const Vec z = x * 0.70710678f;
    const Vec size = from_bits(bits(z) & 0x7fffffff);
    const Vec t = 1.0f / (1.0f + 0.3275911f * size);
    Vec p = broadcast(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vec tail = p * t * exp(-size * size);  // 1 - erf(size)
    const Vec upper = 2.0f - tail;
    return 0.5f * x * chosen(z < Vec{}, tail, upper);
}

}  // namespace hybridrec
