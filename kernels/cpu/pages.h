// Pages of vLLM's CPU cache: weighted sums of their lines. A page is K or V of one kv head in one
// block:
//
//   not packed   K [dim, block], V [block, dim]
//   packed       K [block/16, dim/2, 16, 2], V [dim/16, block/2, 16, 2], bfloat16
//
// Either way a product is a sum of weighted lines of the page: the logits of a block are the
// lines of K weighted by q, and an answer is the lines of V weighted by the softmax.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct BFloat16 {
    uint16_t bits;
    BFloat16() = default;
    explicit BFloat16(float value) {  // to the nearest, ties to even
        uint32_t x;
        std::memcpy(&x, &value, 4);
        bits = value != value ? 0x7fc0 : (x + 0x7fff + (x >> 16 & 1)) >> 16;
    }
    explicit operator float() const {
        const uint32_t x = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &x, 4);
        return value;
    }
};

enum Type { FLOAT32, FLOAT16, BFLOAT16 };
enum Rule { MULTIPLY, ADD_LOG, PAI };  // `RULES` of `kernels/gpu/config.py`

// What a rule makes of a scaled logit of an image position.
struct Steered {
    float times = 1, plus = 0, size = 0;
    Steered(int rule, float alpha) {
        if (rule == MULTIPLY) times = alpha;
        if (rule == ADD_LOG) plus = std::log(alpha);
        if (rule == PAI) size = alpha;
    }
    float operator()(float s) const { return s * times + (plus + size * std::fabs(s)); }
};

// Whether number i is in a bitmap.
inline bool has_bit(const int32_t *words, int i) { return uint32_t(words[i / 32]) >> i % 32 & 1; }

float load(const void *values, int type, int64_t i) {
    if (type == FLOAT16) return float(static_cast<const _Float16 *>(values)[i]);
    if (type == BFLOAT16) return float(static_cast<const BFloat16 *>(values)[i]);
    return static_cast<const float *>(values)[i];
}

void store(void *values, int type, int64_t i, float value) {
    if (type == FLOAT16) static_cast<_Float16 *>(values)[i] = _Float16(value);
    if (type == BFLOAT16) static_cast<BFloat16 *>(values)[i] = BFloat16(value);
    if (type == FLOAT32) static_cast<float *>(values)[i] = value;
}

constexpr int TILE = 128;  // positions between two looks at the softmax

// e^x for x <= 0, to 2e-7 of it and never below 1e-38; vector code on every processor.
inline float exp_(float x) {
    const float clamped = x < -87.0f ? -87.0f : x;
    const float shifted = clamped * 1.44269504f + 12582912.0f;
    const float whole = shifted - 12582912.0f;
    const float r = clamped - whole * 0.693359375f + whole * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    uint32_t bits, power;
    std::memcpy(&bits, &y, 4);
    std::memcpy(&power, &shifted, 4);
    bits += (power - 0x4b400000u) << 23;
    std::memcpy(&y, &bits, 4);
    return x == x ? y : x;
}

// sums[0..W) += sum over i in [first, last) of weights[i] * lines[i * stride + 0..W)
template <int W, class T>
inline void add_lines(float *sums, const T *lines, int64_t stride, const float *weights, int first,
                      int last) {
    float acc[W];
    for (int j = 0; j < W; j++) acc[j] = sums[j];
    for (int i = first; i < last; i++) {
        const T *line = lines + i * stride;
        for (int j = 0; j < W; j++) acc[j] += weights[i] * float(line[j]);
    }
    for (int j = 0; j < W; j++) sums[j] = acc[j];
}

// The same for 16 columns of a packed page: a word holds lines 2i (low half) and 2i + 1 of one.
// A line outside of [first, last) may hold anything, NaN too, so its half is masked.
inline void add_packed(float *sums, const uint32_t *words, const float *weights, int first,
                       int last) {
    float acc[16];
    const auto add = [&](int i, float low, float high, uint32_t mask) {
        for (int j = 0; j < 16; j++) {
            const uint32_t word = words[i * 16 + j] & mask;
            const uint32_t x = word << 16, y = word & 0xffff0000u;
            float a, b;
            std::memcpy(&a, &x, 4);
            std::memcpy(&b, &y, 4);
            acc[j] += low * a + high * b;
        }
    };
    for (int j = 0; j < 16; j++) acc[j] = sums[j];
    if (first % 2) add(first / 2, 0.0f, weights[first], 0xffff0000u);
    for (int i = (first + 1) / 2; i < last / 2; i++)
        add(i, weights[2 * i], weights[2 * i + 1], 0xffffffffu);
    if (last % 2) add(last / 2, weights[last - 1], 0.0f, 0x0000ffffu);
    for (int j = 0; j < 16; j++) sums[j] = acc[j];
}

// sums[0..width) += columns [column, column + width) of the page's lines [line + first,
// line + last), weighted. high, wide: of the page, unpacked.
template <class T>
void add_page(float *sums, const T *page, bool packed, int high, int wide, int column, int width,
              const float *weights, int line, int first, int last) {
    if (packed) {
        const auto *words = reinterpret_cast<const uint32_t *>(page) + line / 2 * 16;
        for (int j = 0; j < width; j += 16)
            add_packed(sums + j, words + (column + j) * (high / 2), weights, first, last);
        return;
    }
    page += line * wide + column;
    for (; width >= 128; sums += 128, page += 128, width -= 128)
        add_lines<128>(sums, page, wide, weights, first, last);
    for (; width >= 64; sums += 64, page += 64, width -= 64)
        add_lines<64>(sums, page, wide, weights, first, last);
    for (; width >= 16; sums += 16, page += 16, width -= 16)
        add_lines<16>(sums, page, wide, weights, first, last);
}

}  // namespace
