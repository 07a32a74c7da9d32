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

struct Bytes {
    U8 part[PARTS];
};
struct Ints {
    I32 part[PARTS];
};
struct Floats {
    F32 part[PARTS];
};

template <class T>
inline T load(const void* from) {
    T made;
    std::memcpy(&made, from, sizeof made);
    return made;
}
inline void store(float* to, const Floats& x) { std::memcpy(to, &x, sizeof x); }

inline Floats all(float x) {
    Floats made;
    for (F32& part : made.part) part = x - F32{};
    return made;
}
inline Ints all(int32_t x) {
    Ints made;
    for (I32& part : made.part) part = x - I32{};
    return made;
}

inline Bytes low(Bytes x) {
    for (U8& part : x.part) part = part & 15;
    return x;
}
inline Bytes high(Bytes x) {
    for (U8& part : x.part) part = part >> 4;
    return x;
}

template <bool nibbles>
inline void dot(Ints& acc, const Bytes& w, int32_t a) {
    for (int i = 0; i < PARTS; i++) acc.part[i] = dot<nibbles>(acc.part[i], w.part[i], a);
}

inline Floats floats(const Ints& x) {
    Floats made;
    for (int i = 0; i < PARTS; i++) made.part[i] = __builtin_convertvector(x.part[i], F32);
    return made;
}

// 16 numbers of half precision, none of them infinite.
inline Floats halves(const char* from) {
#if !defined(PLAIN) && defined(__AVX512VNNI__)
    return {{(F32)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))}};
#else
    Ints wide;
    for (int i = 0; i < LANES; i++) {
        const uint32_t bits = load<uint16_t>(from + 2 * i);
        wide.part[i * 4 / WIDTH][i % (WIDTH / 4)] = int32_t((bits & 0x7fff) << 13 | (bits & 0x8000) << 16);
    }
    Floats made;
    for (int i = 0; i < PARTS; i++) made.part[i] = (F32)wide.part[i] * 0x1p112f;
    return made;
#endif
}

// 16 nibbles in 8 bytes, all lower ones before the higher ones.
inline Floats nibbles(const char* from) {
    const auto packed = load<uint64_t>(from);
    const uint64_t bytes[2] = {packed & 0x0f0f0f0f0f0f0f0f, packed >> 4 & 0x0f0f0f0f0f0f0f0f};
#if !defined(PLAIN) && defined(__AVX512VNNI__)
    return floats(Ints{{(I32)_mm512_cvtepu8_epi32(_mm_set_epi64x(int64_t(bytes[1]), int64_t(bytes[0])))}});
#else
    uint8_t each[LANES];
    std::memcpy(each, bytes, sizeof each);
    Ints wide;
    for (int i = 0; i < LANES; i++) wide.part[i * 4 / WIDTH][i % (WIDTH / 4)] = each[i];
    return floats(wide);
#endif
}

inline uint16_t half(float x) {  // to the nearest; |x| at most 2^15
    const float moved = x * 0x1p-112f;
    uint32_t bits;
    std::memcpy(&bits, &moved, 4);
    const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    return uint16_t(sign | (rest + 0xfff + (rest >> 13 & 1)) >> 13);
}

inline Floats operator*(Floats x, const Floats& y) {
    for (int i = 0; i < PARTS; i++) x.part[i] *= y.part[i];
    return x;
}
inline Floats operator*(Floats x, float y) {
    for (F32& part : x.part) part *= y;
    return x;
}
inline Floats operator+(Floats x, const Floats& y) {
    for (int i = 0; i < PARTS; i++) x.part[i] += y.part[i];
    return x;
}

inline float sum(const Floats& x) {
#if !defined(PLAIN) && defined(__AVX512VNNI__)
    return _mm512_reduce_add_ps((__m512)x.part[0]);
#else
    F32 total = x.part[0];
    for (int i = 1; i < PARTS; i++) total += x.part[i];
    float added = 0;
    for (int i = 0; i < WIDTH / 4; i++) added += total[i];
    return added;
#endif
}

}  // namespace simd
