// Products with quantised weights: how they are laid out, and how rows of activations are multiplied with them.
//
// Weights lie in tiles of 16 columns, every byte in the order it is read: one stream, or the processor's prefetching
// loses its way. A tile is a row of chapters. A chapter is a header, the scales (and zero points) of some blocks, and
// then for each 32 values of k (a group) 4 or 8 vectors, which hold four bytes of each column. Activations are
// quantised to int8 a group at a time, each with a scale of its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "memory.h"
#include "simd.h"

namespace matmul {

using simd::LANES;

constexpr int GROUP = 32, VECTOR = 64, CHAPTER = 256;
constexpr int MOST_ROWS = simd::WIDTH == 64 ? 6 : 2;  // that registers have room for
constexpr int SCALES = LANES * 2, ZEROS = LANES;  // bytes of a block's
constexpr int64_t SHARE = int64_t{1} << 17;  // multiplications that are worth handing to another thread

inline int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// (n, k) weights of 4 or 8 bits with a scale for each `block` values of k, at 4 bits perhaps with a zero point each.
struct Layout {
    int64_t n, k, bits, block;
    bool zeros;

    int64_t tiles() const { return parts(n, LANES); }
    int64_t groups() const { return parts(k, GROUP); }
    int64_t blocks() const { return parts(k, block); }
    int64_t chapter_blocks() const { return std::max<int64_t>(1, CHAPTER / block); }
    int64_t chapter_groups() const { return chapter_blocks() * block / GROUP; }
    int64_t chapters() const { return parts(blocks(), chapter_blocks()); }
    int64_t header() const {
        return parts(chapter_blocks() * (SCALES + (zeros ? ZEROS : 0)), VECTOR) * VECTOR;
    }
    int64_t group_bytes() const { return VECTOR * bits; }
    int64_t tile() const { return chapters() * header() + groups() * group_bytes(); }
    int64_t size() const { return tiles() * tile(); }

    int64_t group_at(int64_t group) const {  // bytes from the start of a tile, as below
        return (group / chapter_groups() + 1) * header() + group * group_bytes();
    }
    int64_t header_at(int64_t block) const {
        const int64_t chapter = block / chapter_blocks();
        return chapter * (header() + chapter_groups() * group_bytes());
    }
    int64_t scales_at(int64_t block) const { return header_at(block) + block % chapter_blocks() * SCALES; }
    int64_t zeros_at(int64_t block) const {
        return header_at(block) + chapter_blocks() * SCALES + block % chapter_blocks() * ZEROS;
    }

    int offset() const { return bits == 4 ? 8 : simd::OFFSET; }  // what zero is stored as, where no zero point says it
};

// Where value `i` of a group goes: of every eight, first those at even places, then the others, as in nibbles.
inline int place(int i) { return i / 8 * 8 + i % 2 * 4 + i % 8 / 2; }

// The power of two that brings the largest scale to [2^14, 2^15): what half precision then loses is 2^-39 of that.
inline float factor(const float* scales, int64_t count) {
    float largest = 0;
    for (int64_t i = 0; i < count; i++) largest = std::max(largest, std::fabs(scales[i]));
    int exponent = 0;
    std::frexp(largest, &exponent);
    return largest > 0 ? std::ldexp(1.0f, std::max(exponent - 15, -126)) : 1.0f;
}

// (n, blocks); what they have been divided by.
inline float pack_scales(const Layout& is, const float* from, char* to) {
    const float unit = factor(from, is.n * is.blocks());
    for (int64_t column = 0; column < is.n; column++)
        for (int64_t block = 0; block < is.blocks(); block++) {
            const uint16_t scale = simd::half(*from++ / unit);
            std::memcpy(to + column / LANES * is.tile() + is.scales_at(block) + column % LANES * 2, &scale, 2);
        }
    return unit;
}

// (n, (blocks + 1) / 2), the lower nibble first.
inline void pack_zeros(const Layout& is, const uint8_t* from, char* to) {
    for (int64_t column = 0; column < is.n; column++)
        for (int64_t block = 0; block < is.blocks(); block++) {
            const int zero = from[column * parts(is.blocks(), 2) + block / 2] >> block % 2 * 4 & 15;
            to[column / LANES * is.tile() + is.zeros_at(block) + column % LANES] = char(zero);
        }
}

// (n, blocks, bytes of a block): nibbles as they are, the lower one first, or bytes around 128.
inline void pack_blocks(const Layout& is, const uint8_t* codes, char* to) {
    const int64_t words = is.bits, column_bytes = is.blocks() * is.block * is.bits / 8;
    for (int64_t column = 0; column < is.n; column++) {
        const uint8_t* from = codes + column * column_bytes;
        for (int64_t group = 0; group < is.groups(); group++, from += words * 4) {
            uint8_t group_codes[GROUP];
            if (is.bits == 4) std::memcpy(group_codes, from, GROUP / 2);
            else
                for (int i = 0; i < GROUP; i++) group_codes[place(i)] = uint8_t(from[i] - 128 + simd::OFFSET);
            char* lane = to + column / LANES * is.tile() + is.group_at(group) + column % LANES * 4;
            for (int word = 0; word < words; word++) std::memcpy(lane + word * VECTOR, group_codes + word * 4, 4);
        }
    }
}

// (k, n), bytes around 0.
inline void pack_columns(const Layout& is, const int8_t* codes, char* to) {
    for (int64_t k = 0; k < is.k; k++) {
        const int at = place(int(k % GROUP));
        const int64_t within = is.group_at(k / GROUP) + at / 4 * VECTOR + at % 4;
        for (int64_t column = 0; column < is.n; column += LANES) {
            char* lane = to + column / LANES * is.tile() + within;
            const int64_t lanes = std::min<int64_t>(LANES, is.n - column);
            for (int64_t i = 0; i < lanes; i++) lane[i * 4] = char(*codes++ + simd::OFFSET);
        }
    }
}

// Rows in bundles that are multiplied together; of a bundle, group after group, and in a group row after row.
struct Rows {
    int64_t rows, groups;
    std::vector<int8_t> codes;
    std::vector<float> scales;
    std::vector<int32_t> starts;  // what a dot product starts from, so that the offset of the weights cancels
    std::vector<float> minus;     // minus the sums of the codes, which zero points are multiplied with

    int64_t bundles() const { return parts(rows, MOST_ROWS); }
    int64_t first(int64_t bundle) const {
        return bundle * (rows / bundles()) + std::min(bundle, rows % bundles());
    }

    void quantise(const float* from, int64_t count, const Layout& is) {
        rows = count, groups = is.groups();
        codes.resize(size_t(rows * groups * GROUP));
        scales.resize(size_t(rows * groups));
        starts.resize(size_t(rows * groups));
        minus.resize(size_t(rows * groups));
        for (int64_t bundle = 0; bundle < bundles(); bundle++) {
            const int64_t start = first(bundle), stride = first(bundle + 1) - start;
            for (int64_t row = 0; row < stride; row++)
                for (int64_t group = 0; group < groups; group++) {
                    const int64_t at = start * groups + group * stride + row, k = group * GROUP;
                    one(from + (start + row) * is.k + k, std::min<int64_t>(GROUP, is.k - k), size_t(at), is.offset());
                }
        }
    }

private:
    void one(const float* from, int64_t count, size_t at, int offset) {
        float values[GROUP] = {};
        int32_t bits[GROUP], largest = 0, sum = 0;
        std::memcpy(values, from, size_t(count) * 4);
        std::memcpy(bits, values, sizeof bits);
        for (const int32_t x : bits) largest = std::max(largest, x & 0x7fffffff);  // floats sort as their bits do
        float most;
        std::memcpy(&most, &largest, 4);
        const float inverse = most > 0 ? 127 / most : 0;
        for (float& x : values) x = x * inverse + 0x1.8p23f;  // the last bits of which are x, rounded
        std::memcpy(bits, values, sizeof bits);
        for (int32_t& x : bits) sum += x -= 0x4b400000;
        int8_t bytes[GROUP];
        for (int i = 0; i < GROUP; i++) bytes[i] = int8_t(bits[i]);
        placed(bytes, codes.data() + at * GROUP);
        scales[at] = most / 127;
        starts[at] = -offset * sum;
        minus[at] = float(-sum);
    }

    static void placed(const int8_t* from, int8_t* to) {  // as `place` says, eight bytes as one number
        uint64_t eight[GROUP / 8];
        std::memcpy(eight, from, GROUP);
        for (uint64_t& x : eight) x = together(x) | together(x >> 8) << 32;
        std::memcpy(to, eight, GROUP);
    }
    static uint64_t together(uint64_t x) {  // bytes 0, 2, 4 and 6
        x &= 0x00ff00ff00ff00ff;
        x = (x | x >> 8) & 0x0000ffff0000ffff;
        return (x | x >> 16) & 0xffffffff;
    }
};

// 16 columns of a group, a byte each: unpacks nibbles.
template <int BITS>
inline void unpack(const char* from, simd::Bytes (&w)[8]) {
    for (int i = 0; i < BITS; i++) {
        const auto loaded = simd::bytes(from + i * VECTOR);
        if constexpr (BITS == 4) w[2 * i] = simd::low(loaded), w[2 * i + 1] = simd::high(loaded);
        else w[i] = loaded;
    }
}

// Several rows with one tile.
template <int BITS, bool WITH_ZEROS, int ROWS>
inline void multiply(const Layout& is, const char* from, const Rows& rows, int64_t start, simd::Floats (&y)[ROWS]) {
    const int64_t groups = is.groups(), per_block = is.block / GROUP, per_chapter = is.chapter_groups();
    const int64_t header = is.header(), zeros = is.chapter_blocks() * SCALES;
    const int8_t* a = rows.codes.data() + start * groups * GROUP;
    const float* scale = rows.scales.data() + start * groups;
    const int32_t* begin = rows.starts.data() + start * groups;
    const float* minus = rows.minus.data() + start * groups;
    for (int64_t group = 0, chapter_end = 0; group < groups;) {
        const char *of_scales = from, *of_zeros = from + zeros;
        from += header, chapter_end = std::min(chapter_end + per_chapter, groups);
        for (; group < chapter_end; of_scales += SCALES, of_zeros += ZEROS) {
            simd::Floats zero, block[ROWS];
            if constexpr (WITH_ZEROS) zero = simd::counts(of_zeros);
            for (auto& sum : block) sum = simd::all(0.0f);
            for (const int64_t end = std::min(group + per_block, groups); group < end; group++, from += BITS * VECTOR) {
                simd::Bytes w[8];
                unpack<BITS>(from, w);
                for (int row = 0; row < ROWS; row++, a += GROUP, begin++) {
                    simd::Ints acc = simd::all(WITH_ZEROS ? 0 : *begin);
                    for (int i = 0; i < 8; i++) acc = simd::dot<BITS == 4>(acc, w[i], simd::load<int32_t>(a + 4 * i));
                    simd::Floats product = simd::floats(acc);
                    if constexpr (WITH_ZEROS) product = product + zero * *minus++;
                    block[row] = block[row] + product * *scale++;
                }
            }
            const auto unit = simd::halves(of_scales);
            for (int row = 0; row < ROWS; row++) y[row] = y[row] + block[row] * unit;
        }
    }
}

struct Product {
    Layout is;
    const memory::Block* weights;
    const float* bias;
    float* to;
    const Rows* rows;

    int64_t tiles_at_once() const { return parts(SHARE, LANES * is.k * rows->rows); }
    size_t shares() const { return size_t(parts(is.tiles(), tiles_at_once())); }

    void share(size_t number) const {
        const int64_t first = int64_t(number) * tiles_at_once(), last = std::min(first + tiles_at_once(), is.tiles());
        for (int64_t tile = first; tile < last; tile++)
            for (int64_t bundle = 0; bundle < rows->bundles(); bundle++) {
                const int64_t start = rows->first(bundle);
                const int64_t count = rows->first(bundle + 1) - start;
                if (is.bits == 8) dispatch<8, false, MOST_ROWS>(tile, start, count);
                else if (is.zeros) dispatch<4, true, MOST_ROWS>(tile, start, count);
                else dispatch<4, false, MOST_ROWS>(tile, start, count);
            }
    }

private:
    template <int BITS, bool WITH_ZEROS, int ROWS>
    void dispatch(int64_t tile, int64_t start, int64_t count) const {
        if constexpr (ROWS > 1)
            if (count < ROWS) return dispatch<BITS, WITH_ZEROS, ROWS - 1>(tile, start, count);
        simd::Floats y[ROWS];
        for (auto& sum : y) sum = simd::all(0.0f);
        multiply<BITS, WITH_ZEROS, ROWS>(is, weights->data + tile * is.tile(), *rows, start, y);
        const int64_t column = tile * LANES, width = std::min<int64_t>(LANES, is.n - column);
        float added[LANES] = {};
        if (bias) std::memcpy(added, bias + column, size_t(width) * 4);
        for (int row = 0; row < ROWS; row++) {
            float result[LANES];
            simd::store(result, y[row] * weights->factor + simd::floats(added));
            std::memcpy(to + (start + row) * is.n + column, result, size_t(width) * 4);
        }
    }
};

}  // namespace matmul
