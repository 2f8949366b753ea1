// Steered rows over the paged KV cache of vLLM's CPU backend, see `pages.h`: one pass over K and V,
// softmax on the way. All sums are in float32.
//
// An entry is a row in its place, or up to two side rows, which follow each other in the batch
// and in alpha. A page is read once for both; a side row has its own key and value at its last
// position.

#include "pages.h"

#include <algorithm>
#include <vector>

extern "C" struct Rows {  // in the order of `kernels/cpu/build.py`
    const void *query;    // [tokens, heads, dim]
    void *output;         // likewise
    const void *cache;    // [blocks, kv_heads, K page, V page]
    const int32_t *block_table, *rows, *reqs, *kv_lens, *slots;
    const float *alpha;
    const int32_t *span_words, *span_starts, *span_lens;
    const int32_t *rules;     // see `Rule`
    const int32_t *heads;     // [entries, ceil(heads / 32)], bitmaps of the heads that are steered
    const int32_t *own;       // side rows of the entry, or 0 for a row in its place
    const void *key, *value;  // [side rows, kv_heads, dim] of the cache's type, or null
    const float *sinks;       // [heads], or null
    int64_t query_stride, output_stride, table_stride;
    int32_t first_side, num_rows, num_heads, kv_heads, dim, block, window, packed, threads;
    int32_t value_type, cache_type;  // `Type`, of query and output and of the cache
    float scale, soft_cap;
};

namespace {

constexpr int MOST = 2;  // rows of an entry

// One entry, for kv heads [group_first, group_last): their pages of a block are neighbours.
template <class T>
void steer(const Rows &c, int entry, int group_first, int group_last) {
    const int members = c.num_heads / c.kv_heads, dim = c.dim, block = c.block;
    const int head_first = group_first * members, heads = (group_last - group_first) * members;
    const int own = c.own[entry], rows = std::max(own, 1), length = c.kv_lens[entry];
    const int end = own ? length - 1 : length;  // in the cache
    const int begin = c.window > 0 ? std::max(0, length - c.window) : 0;
    const float *alpha = c.alpha + c.slots[entry];
    const Steered steered[MOST] = {{c.rules[entry], alpha[0]},
                                   {c.rules[entry], alpha[rows - 1]}};
    const int32_t *on = c.heads + entry * ((c.num_heads + 31) / 32);
    const int32_t *words = c.span_words + c.span_starts[entry], num_words = c.span_lens[entry];
    const int32_t *table = c.block_table + c.reqs[entry] * c.table_stride;
    const int64_t row = c.rows[entry];

    // The lanes of a row are its heads: lane = row * heads + head.
    const int lanes = rows * heads;
    std::vector<float> state(lanes * (2 * dim + 2), 0.0f);
    float *q = state.data(), *sums = q + lanes * dim, *most = sums + lanes * dim;
    float *total = most + lanes;
    for (int r = 0; r < rows; r++) {
        const int64_t query = (row + r) * c.query_stride + head_first * dim;
        for (int i = 0; i < heads * dim; i++)
            q[r * heads * dim + i] = load(c.query, c.value_type, query + i);
    }
    for (int lane = 0; lane < lanes; lane++) {
        most[lane] = c.sinks ? c.sinks[head_first + lane % heads] : -INFINITY;
        total[lane] = c.sinks ? 1.0f : 0.0f;
    }

    for (int start = begin / block * block; start < end; start += block) {
        for (int tile = 0; tile < block; tile += TILE) {
            const int width = std::min(TILE, block - tile);
            const int first = std::max(0, begin - start - tile);
            const int last = std::min(width, end - start - tile);
            if (first >= last) continue;

            int32_t image[TILE];
            for (int j = 0; j < width; j += 16) {
                const int position = start + tile + j, word = position / 32;
                const uint32_t bits = word < num_words ? uint32_t(words[word]) >> position % 32 : 0;
                for (int i = 0; i < 16; i++) image[j + i] = bits >> i & 1;
            }
            for (int h = 0; h < heads; h++) {
                const int64_t group = int64_t(table[start / block]) * c.kv_heads + group_first;
                const T *k = static_cast<const T *>(c.cache) + (group + h / members) * 2 * block * dim;
                const T *v = k + block * dim;
                for (int r = 0; r < rows; r++) {
                    const int lane = r * heads + h;
                    float p[TILE] = {};
                    add_page(p, k, c.packed, dim, block, tile, width, q + lane * dim, 0, 0, dim);
                    for (int j = 0; j < width; j++) p[j] *= c.scale;
                    if (has_bit(on, head_first + h)) {
                        const Steered s = steered[r];
                        for (int j = 0; j < width; j++) p[j] = image[j] ? s(p[j]) : p[j];
                    }
                    if (c.soft_cap > 0)
                        for (int j = first; j < last; j++)
                            p[j] = c.soft_cap * std::tanh(p[j] / c.soft_cap);
                    float top = most[lane], sum = 0;
#pragma omp simd reduction(max : top)
                    for (int j = first; j < last; j++) top = p[j] > top ? p[j] : top;
                    for (int j = 0; j < width; j++) p[j] = exp_(p[j] - top);
#pragma omp simd reduction(+ : sum)
                    for (int j = first; j < last; j++) sum += p[j];
                    const float shrink = exp_(most[lane] - top);
                    most[lane] = top;
                    total[lane] = total[lane] * shrink + sum;
                    float *out = sums + lane * dim;
                    for (int d = 0; d < dim; d++) out[d] *= shrink;
                    add_page(out, v, c.packed, block, dim, 0, dim, p, tile, first, last);
                }
            }
        }
    }
    for (int lane = 0; own && lane < lanes; lane++) {
        const int r = lane / heads, group = group_first + lane % heads / members, word = end / 32;
        const bool image = word < num_words && has_bit(words, end);
        const int64_t line = ((row + r - c.first_side) * c.kv_heads + group) * dim;
        const T *k = static_cast<const T *>(c.key) + line, *v = static_cast<const T *>(c.value) + line;
        float p = 0;
        for (int d = 0; d < dim; d++) p += q[lane * dim + d] * float(k[d]);
        p *= c.scale;
        if (image && has_bit(on, head_first + lane % heads)) p = steered[r](p);
        if (c.soft_cap > 0) p = c.soft_cap * std::tanh(p / c.soft_cap);
        const float top = p > most[lane] ? p : most[lane];
        const float shrink = exp_(most[lane] - top), weight = exp_(p - top);
        most[lane] = top;
        total[lane] = total[lane] * shrink + weight;
        float *out = sums + lane * dim;
        for (int d = 0; d < dim; d++) out[d] = out[d] * shrink + weight * float(v[d]);
    }
    for (int lane = 0; lane < lanes; lane++) {
        const int64_t output = (row + lane / heads) * c.output_stride + (head_first + lane % heads) * dim;
        for (int d = 0; d < dim; d++)
            store(c.output, c.value_type, output + d, sums[lane * dim + d] / total[lane]);
    }
}

}  // namespace

extern "C" void adaptvis_steer_rows(const Rows *c) {
    // Few rows are cut into parts, so that every thread has work.
    const int wanted = c->threads > 1 ? 2 * c->threads : 1;
    const int parts = std::min((wanted + c->num_rows - 1) / c->num_rows, c->kv_heads);
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(c->threads)
    for (int row = 0; row < c->num_rows; row++)
        for (int part = 0; part < parts; part++) {
            if (c->kv_lens[row] <= 0) continue;
            const int first = c->kv_heads * part / parts, last = c->kv_heads * (part + 1) / parts;
            if (c->cache_type == FLOAT32) steer<float>(*c, row, first, last);
            if (c->cache_type == FLOAT16) steer<_Float16>(*c, row, first, last);
            if (c->cache_type == BFLOAT16) steer<BFloat16>(*c, row, first, last);
        }
}
