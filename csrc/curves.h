// exp and GELU for whole vectors, to about 1e-7 of their size: no library call, the same bits in
// any lane and thread.
#pragma once

#include <cstring>

#if defined(__AVX512F__)
#if !defined(__clang__)
// GCC takes the "undefined" operands of its own intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "vec.h"

namespace hybridrec {

// p 2^n, n whole
inline Vec scaled(Vec p, Vec n) {
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, n);
#else
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the low bits of n + kMagic are n's
    const Vec moved = n + kMagic;
    VecMask power;
    std::memcpy(&power, &moved, sizeof power);
    power = (power - 0x4B400000 + 127) << 23;
    Vec factor;
    std::memcpy(&factor, &power, sizeof factor);
    return p * factor;
#endif
}

// e^x: 2^n times a polynomial of what is left. 0 for x below -87, and no NaN for any x <= 88.
inline Vec exp(Vec x) {
    constexpr float kMagic = 12582912.0f;  // adding it rounds to an integer
    const Vec least = broadcast(-87.0f), most = broadcast(88.0f);
    const Vec y = x > most ? most : x < least ? least : x;
    const Vec n = (y * 1.44269504f + kMagic) - kMagic;
    const Vec r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
    Vec p = broadcast(1.9875691500e-4f);  // Cephes, expf
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return x < least ? Vec{} : scaled(p, n);
}

// 1 / x for x that is neither tiny nor huge, to about 1e-7 of its size.
inline Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
    const Vec guess = _mm512_rcp14_ps(x);
    return guess * (2.0f - x * guess);  // Newton's step: 14 good bits become 28
#else
    return 1.0f / x;
#endif
}

// x Phi(x), with erf(z) as z times a quotient of polynomials in z * z on [-4, 4], where it reaches
// 1 (the one of Eigen): within 2e-7 |x|.
inline Vec gelu(Vec x) {
    const Vec most = broadcast(4.0f);
    Vec z = x * 0.70710678f;
    z = z > most ? most : z < -most ? -most : z;
    const Vec y = z * z;
    Vec p = broadcast(-2.72614225801306e-10f);
    p = p * y + 2.77068142495902e-08f;
    p = p * y - 2.10102402082508e-06f;
    p = p * y - 5.69250639462346e-05f;
    p = p * y - 7.34990630326855e-04f;
    p = p * y - 2.95459980854025e-03f;
    p = p * y - 1.60960333262415e-02f;
    Vec q = broadcast(-1.45660718464996e-05f);
    q = q * y - 2.13374055278905e-04f;
    q = q * y - 1.68282697438203e-03f;
    q = q * y - 7.37332916720468e-03f;
    q = q * y - 1.42647390514189e-02f;
    const Vec half = 0.5f * x;
    return half + half * (z * p * reciprocal(q));
}

}  // namespace hybridrec
