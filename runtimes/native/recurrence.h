// The recurrence of RWKV-7 for any number of tokens, one head at a time, its state in registers or the nearest cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace recurrence {

using simd::F32;
using simd::Floats;
using simd::I32;
using simd::LANES;

constexpr int64_t LARGEST = 256;  // head size

// S = S diag(exp(log_w)) - (S kk) b^T + v k^T, then y = S r. Vectors are (tokens, heads, size), the state
// (heads, size of value, size of key).
struct Step {
    int64_t tokens, heads, size;
    const float *r, *log_w, *k, *v, *kk, *b, *before;
    float *y, *after;

    void head(size_t head) const {
        const int64_t start = int64_t(head) * size * size;
        float* state = after + start;
        if (size == 64 && tokens) return known<64>(int64_t(head), before + start, state);
        if (size == 128 && tokens) return known<128>(int64_t(head), before + start, state);
        std::memcpy(state, before + start, size_t(size * size) * 4);
        for (int64_t token = 0; token < tokens; token++) any(at(token, int64_t(head)), state);
    }

private:
    int64_t at(int64_t token, int64_t head) const { return (token * heads + head) * size; }

    static F32 exp(F32 x) {  // to 1 in 2^22; of the least number that has one
        x = x < -87.0f ? -87.0f - F32{} : x;
        x = x > 88.0f ? 88.0f - F32{} : x;
        const F32 shifted = x * 1.44269504f + 0x1.8p23f, n = shifted - 0x1.8p23f;
        const F32 f = x - n * 0.693359375f + n * 2.12194440e-4f;
        F32 p = f * 1.9875691500e-4f + 1.3981999507e-3f;
        p = p * f + 8.3334519073e-3f;
        p = p * f + 4.1665795894e-2f;
        p = p * f + 1.6666665459e-1f;
        p = p * f + 5.0000001201e-1f;
        p = p * f * f + f + 1.0f;
        return p * (F32)(((I32)shifted - 0x4b400000 + 127) << 23);
    }

    // Some tokens at a time, so that what they give stays near while the rows of the state pass by.
    template <int SIZE>
    void known(int64_t head, const float* entering, float* state) const {
        constexpr int64_t TOKENS = 16;
        constexpr int ROWS = SIZE == 64 && simd::WIDTH == 64 ? 4 : 1;
        float w[TOKENS][SIZE];
        for (int64_t first = 0; first < tokens; first += TOKENS) {
            const int64_t last = std::min(first + TOKENS, tokens);
            for (int64_t token = first; token < last; token++)
                for (int i = 0; i < SIZE; i += simd::WIDTH / 4) {
                    const F32 grown = exp(simd::load<F32>(log_w + at(token, head) + i));
                    std::memcpy(w[token - first] + i, &grown, sizeof grown);
                }
            for (int row = 0; row < SIZE; row += ROWS) rows<SIZE, ROWS>(head, row, first, last, w[0], entering, state);
        }
    }

    template <int SIZE, int ROWS>
    void rows(int64_t head, int row, int64_t first, int64_t last, const float* w, const float* entering,
              float* state) const {
        constexpr int PARTS = SIZE / LANES;
        Floats s[ROWS][PARTS];
        const float* from = (first ? state : entering) + row * SIZE;
        for (int i = 0; i < ROWS; i++)
            for (int part = 0; part < PARTS; part++) s[i][part] = vector(from, i * SIZE + part * LANES);
        for (int64_t token = first; token < last; token++, w += SIZE) {
            const int64_t here = at(token, head);
            float removed[ROWS];
            for (int i = 0; i < ROWS; i++) removed[i] = -dot(s[i], kk + here);
            for (int i = 0; i < ROWS; i++)
                for (int part = 0; part < PARTS; part++) {
                    const int at = part * LANES;
                    s[i][part] = s[i][part] * simd::floats(w + at) + vector(b, here + at) * removed[i] +
                                 vector(k, here + at) * v[here + row + i];
                }
            for (int i = 0; i < ROWS; i++) y[here + row + i] = dot(s[i], r + here);
        }
        for (int i = 0; i < ROWS; i++)
            for (int part = 0; part < PARTS; part++) simd::store(state + (row + i) * SIZE + part * LANES, s[i][part]);
    }

    static Floats vector(const float* from, int64_t at) { return simd::floats(from + at); }

    template <int PARTS>
    static float dot(const Floats (&x)[PARTS], const float* y) {
        Floats products = x[0] * vector(y, 0);
        for (int part = 1; part < PARTS; part++) products = products + x[part] * vector(y, part * LANES);
        return simd::sum(products);
    }

    void any(int64_t here, float* state) const {  // sizes that no published model has
        float w[LARGEST];
        for (int64_t i = 0; i < size; i++) w[i] = std::exp(log_w[here + i]);
        for (int64_t row = 0; row < size; row++) {
            float *s = state + row * size, removed = 0, read = 0;
            for (int64_t i = 0; i < size; i++) removed += s[i] * kk[here + i];
            for (int64_t i = 0; i < size; i++) {
                s[i] = s[i] * w[i] - removed * b[here + i] + v[here + row] * k[here + i];
                read += s[i] * r[here + i];
            }
            y[here + row] = read;
        }
    }
};

}  // namespace recurrence
