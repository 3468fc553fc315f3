// Vectors of the width this build has, and the few operations on them that the kernels share.
// Every sum below has one fixed order, whatever the alignment: the same bits in any thread.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

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

inline float sum(Vec v) {
    float total = 0.0f;
    for (int64_t i = 0; i < kWidth; ++i) total += v[i];
    return total;
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
