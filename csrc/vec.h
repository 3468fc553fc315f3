// Vectors of the width this build has, and the few operations on them that the kernels share.
// Every sum below has one fixed order, whatever the alignment: the same bits in any thread.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#error "hybridrec needs GCC 12 or newer, or clang: older ones lack __builtin_shufflevector"
#endif

namespace hybridrec {

#if defined(__AVX512F__)
constexpr int64_t kWidth = 16;
#elif defined(__AVX2__)
constexpr int64_t kWidth = 8;
#else
constexpr int64_t kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * sizeof(float))));
typedef int32_t VecMask __attribute__((vector_size(kWidth * sizeof(int32_t))));

// memcpy compiles to one unaligned load or store.
inline Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }
inline Vec broadcast(float x) { return x - Vec{}; }

inline int64_t padded(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }

// Zeroed floats on cache lines of their own.
class Buffer {
  public:
    explicit Buffer(int64_t size)
        : data_(static_cast<float*>(::operator new(bytes(size), std::align_val_t{64}))) {
        std::memset(data_.get(), 0, bytes(size));
    }
    float* get() const { return data_.get(); }

  private:
    struct Free {
        void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    static size_t bytes(int64_t size) { return static_cast<size_t>(size) * sizeof(float); }
    std::unique_ptr<float, Free> data_;
};

// A short copy: memcpy costs a call.
inline void copy(const float* from, float* to, int64_t n) {
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) store(to + i, load(from + i));
    for (; i < n; ++i) to[i] = from[i];
}

// visit(0), visit(1), ... visit(N - 1), each with a constant: a register tile that is indexed so
// never touches memory, which a compiler does not promise for a loop.
template <int64_t N, class Visit>
[[gnu::always_inline]] inline void unrolled(const Visit& visit) {
    [&]<int64_t... I>(std::integer_sequence<int64_t, I...>) __attribute__((always_inline)) {
        (visit(std::integral_constant<int64_t, I>()), ...);
    }(std::make_integer_sequence<int64_t, N>());
}

typedef float Four __attribute__((vector_size(16)));

// Four rows of four become the columns.
inline void turn(Four (&x)[4]) {
    const Four ab = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
    const Four cd = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
    const Four ef = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
    const Four gh = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
    x[0] = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    x[1] = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    x[2] = __builtin_shufflevector(ef, gh, 0, 1, 4, 5);
    x[3] = __builtin_shufflevector(ef, gh, 2, 3, 6, 7);
}

// Within every four lanes: {a[i], a[j], b[i], b[j]}.
template <int I, int J, int... Lane>
inline Vec picked(Vec a, Vec b, std::integer_sequence<int, Lane...>) {
    return __builtin_shufflevector(
        a, b, (Lane / 4 * 4 + (Lane % 2 ? J : I) + (Lane % 4 < 2 ? 0 : int{kWidth}))...);
}
template <int I, int J>
inline Vec picked(Vec a, Vec b) {
    return picked<I, J>(a, b, std::make_integer_sequence<int, kWidth>());
}

// out[r] = sum of v[r], four vectors at once.
inline void sums(Vec a, Vec b, Vec c, Vec d, float* out) {
    const Vec ab = picked<0, 2>(a, b) + picked<1, 3>(a, b);
    const Vec cd = picked<0, 2>(c, d) + picked<1, 3>(c, d);
    const Vec each = picked<0, 2>(ab, cd) + picked<1, 3>(ab, cd);
    Four parts[kWidth / 4];
    std::memcpy(parts, &each, sizeof each);
    for (int64_t half = kWidth / 8; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
    std::memcpy(out, parts, sizeof parts[0]);
}

inline float sum(Vec v) {
    float all[4];
    sums(v, v, v, v, all);
    return all[0];
}

inline float greatest(Vec v) {
    Four parts[kWidth / 4];
    std::memcpy(parts, &v, sizeof v);
    for (int64_t half = kWidth / 8; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i)
            parts[i] = parts[i] > parts[i + half] ? parts[i] : parts[i + half];
    const Four x = parts[0], y = __builtin_shufflevector(x, x, 2, 3, 0, 1);
    const Four z = x > y ? x : y;
    return z[0] > z[1] ? z[0] : z[1];
}

inline float dot(const float* a, const float* b, int64_t n) {
    Vec acc{};
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) acc += load(a + i) * load(b + i);
    float total = sum(acc);
    for (; i < n; ++i) total += a[i] * b[i];
    return total;
}

// y += s * x
inline void add_scaled(float* y, float s, const float* x, int64_t n) {
    const Vec vs = broadcast(s);
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) store(y + i, load(y + i) + vs * load(x + i));
    for (; i < n; ++i) y[i] += s * x[i];
}

}  // namespace hybridrec
