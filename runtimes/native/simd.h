// Vectors of 16 columns on any machine: compiler vectors, and the one instruction they cannot spell, a dot product of
// four bytes. Every other file is written in these; PLAIN leaves the instruction to the compiler, too.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(PLAIN) && (defined(__AVX512VNNI__) || defined(__AVX2__))
#include <immintrin.h>
#elif !defined(PLAIN) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace simd {

#if !defined(PLAIN) && defined(__AVX512VNNI__)
constexpr int WIDTH = 64;  // bytes of one register
#elif !defined(PLAIN) && defined(__AVX2__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;
#endif
constexpr int LANES = 16, PARTS = 4 * LANES / WIDTH;

typedef uint8_t U8 __attribute__((vector_size(WIDTH)));
typedef uint16_t U16 __attribute__((vector_size(WIDTH / 2)));
typedef int32_t I32 __attribute__((vector_size(WIDTH)));
typedef float F32 __attribute__((vector_size(WIDTH)));

// What is added to signed weights when they are stored, because x86 multiplies unsigned bytes by signed ones.
#if !defined(PLAIN) && defined(__AVX512VNNI__)
constexpr int OFFSET = 128;
#else
constexpr int OFFSET = 0;
#endif

// acc + the products of four bytes of each column with the four activations in `a`. `nibbles`: w is below 16.
template <bool nibbles>
inline I32 dot(I32 acc, U8 w, int32_t a) {
#if !defined(PLAIN) && defined(__AVX512VNNI__)
    return (I32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#elif !defined(PLAIN) && defined(__AVX2__)
    __m256i weights = (__m256i)w, factors = _mm256_set1_epi32(a);
    if (!nibbles) factors = _mm256_sign_epi8(factors, weights), weights = _mm256_abs_epi8(weights);
    const __m256i pairs = _mm256_maddubs_epi16(weights, factors);  // at most 2 * 128 * 127: no overflow
    return acc + (I32)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif !defined(PLAIN) && defined(__ARM_FEATURE_DOTPROD)
    return (I32)vdotq_s32((int32x4_t)acc, (int8x16_t)w, vreinterpretq_s8_s32(vdupq_n_s32(a)));
#else
    int8_t factors[4];
    std::memcpy(factors, &a, 4);
    for (int i = 0; i < WIDTH; i++) acc[i / 4] += int8_t(w[i]) * factors[i % 4];
    return acc;
#endif
}

// Registers that together hold 16 columns: halves of halves, because compilers keep arrays of registers in memory.
template <class V, int COUNT>
struct Many {
    Many<V, COUNT / 2> first, second;
};
template <class V>
struct Many<V, 1> {
    V all;
};
using Bytes = Many<U8, PARTS>;
using Ints = Many<I32, PARTS>;
using Floats = Many<F32, PARTS>;

// f of each register of the others, as T.
template <class T, class F, class... X>
inline T each(F f, const X&... x) {
    if constexpr (sizeof(T) == WIDTH) return {f(x.all...)};
    else return {each<decltype(T::first)>(f, x.first...), each<decltype(T::second)>(f, x.second...)};
}

template <class T>
inline T load(const void* from) {
    T made;
    std::memcpy(&made, from, sizeof made);
    return made;
}

// Registers one after the other, each made of the bytes at its place, where a register's worth is `bytes` long.
template <class T, class F>
inline T made(F f, const char* from, int bytes) {
    if constexpr (sizeof(T) == WIDTH) return {f(from)};
    else {
        const int half = int(sizeof(T) / WIDTH / 2) * bytes;
        return {made<decltype(T::first)>(f, from, bytes), made<decltype(T::second)>(f, from + half, bytes)};
    }
}
inline Bytes bytes(const char* from) { return made<Bytes>(load<U8>, from, WIDTH); }
inline Floats floats(const float* from) { return made<Floats>(load<F32>, reinterpret_cast<const char*>(from), WIDTH); }

template <class V>
inline void store(float* to, const Many<V, 1>& x) {
    std::memcpy(to, &x, sizeof x);
}
template <class V, int COUNT>
inline void store(float* to, const Many<V, COUNT>& x) {
    store(to, x.first);
    store(to + sizeof x.first / sizeof(float), x.second);
}

inline Floats all(float x) {
    return each<Floats>([x](F32 zero) { return x - zero; }, Floats{});
}
inline Ints all(int32_t x) {
    return each<Ints>([x](I32 zero) { return x - zero; }, Ints{});
}

inline Bytes low(const Bytes& x) {
    return each<Bytes>([](U8 part) { return part & 15; }, x);
}
inline Bytes high(const Bytes& x) {
    return each<Bytes>([](U8 part) { return part >> 4; }, x);
}

template <bool nibbles>
inline Ints dot(const Ints& acc, const Bytes& w, int32_t a) {
    return each<Ints>([a](I32 acc, U8 w) { return dot<nibbles>(acc, w, a); }, acc, w);
}

inline Floats floats(const Ints& x) {
    return each<Floats>([](I32 part) { return __builtin_convertvector(part, F32); }, x);
}
inline Floats operator*(const Floats& x, const Floats& y) {
    return each<Floats>([](F32 x, F32 y) { return x * y; }, x, y);
}
inline Floats operator+(const Floats& x, const Floats& y) {
    return each<Floats>([](F32 x, F32 y) { return x + y; }, x, y);
}
inline Floats operator*(const Floats& x, float y) {
    return each<Floats>([y](F32 x) { return x * y; }, x);
}

// 16 numbers of half precision, none of them infinite.
inline Floats halves(const char* from) {
    const auto widened = [](const char* at) {
#if !defined(PLAIN) && defined(__AVX512VNNI__)
        return (F32)_mm512_cvtph_ps(load<__m256i>(at));
#elif !defined(PLAIN) && defined(__F16C__)
        return (F32)_mm256_cvtph_ps(load<__m128i>(at));
#else
        const I32 bits = __builtin_convertvector(load<U16>(at), I32);
        return (F32)((bits & 0x7fff) << 13 | (bits & 0x8000) << 16) * 0x1p112f;
#endif
    };
    return made<Floats>(widened, from, WIDTH / 2);
}

inline uint16_t half(float x) {  // to the nearest; |x| at most 2^15
    const float moved = x * 0x1p-112f;
    uint32_t bits;
    std::memcpy(&bits, &moved, 4);
    const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    return uint16_t(sign | (rest + 0xfff + (rest >> 13 & 1)) >> 13);
}

inline Floats counts(const char* from) {  // 16 bytes
    const auto widened = [](const char* at) {
#if !defined(PLAIN) && defined(__AVX512VNNI__)
        return (I32)_mm512_cvtepu8_epi32(load<__m128i>(at));
#elif !defined(PLAIN) && defined(__AVX2__)
        return (I32)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
#else
        typedef uint8_t U8s __attribute__((vector_size(WIDTH / 4)));
        return __builtin_convertvector(load<U8s>(at), I32);
#endif
    };
    return floats(made<Ints>(widened, from, WIDTH / 4));
}

inline float sum(const Floats& x) {
#if !defined(PLAIN) && defined(__AVX512VNNI__)
    return _mm512_reduce_add_ps((__m512)x.all);
#else
    float each[LANES], total[4];
    store(each, x);
    for (int i = 0; i < 4; i++) total[i] = (each[i] + each[i + 4]) + (each[i + 8] + each[i + 12]);
    return (total[0] + total[2]) + (total[1] + total[3]);
#endif
}

}  // namespace simd
