// Attention weights of single rows over the paged KV cache of vLLM's CPU backend, see `pages.h`: one
// pass over K. Logits of a row are kept until their softmax is known. All sums are in float32.

#include "pages.h"

#include <algorithm>
#include <vector>

extern "C" struct Weights {  // in the order of `kernels/cpu/build.py`
    const void *query;       // [tokens, heads, dim]
    void *output;            // float16
    const void *cache;       // [blocks, kv_heads, K page, V page]
    const int32_t *block_table, *rows, *reqs, *kv_lens, *slots;
    const float *alpha;
    const int32_t *span_words, *span_starts, *span_lens;
    const int32_t *rules;     // see `Rule`
    const int32_t *heads;     // [entries, ceil(heads / 32)], bitmaps of the heads that are steered
    const int32_t *own;       // 1: key of the last position is the entry's line of `key`
    const void *key;          // [entries, kv_heads, dim] of the cache's type
    const int32_t *positions, *pos_starts, *pos_lens;
    const int64_t *offsets;   // into output, of [heads, positions + 2]; -1 leaves the entry out
    const float *sinks;       // [heads], or null
    int64_t query_stride, table_stride;
    int32_t num_rows, num_heads, kv_heads, dim, block, window, packed, threads;
    int32_t value_type, cache_type;  // `Type`, of query and of the cache
    float scale, soft_cap;
};

namespace {

// One head of one entry.
template <class T>
void weigh(const Weights &c, int entry, int head) {
    const int dim = c.dim, block = c.block, length = c.kv_lens[entry], last = length - 1;
    const int group = head / (c.num_heads / c.kv_heads), own = c.own[entry];
    const int begin = c.window > 0 ? std::max(0, length - c.window) : 0;
    const int end = own ? last : length;  // in the cache
    const Steered steered(c.rules[entry], c.alpha[c.slots[entry]]);
    const bool is_on = has_bit(c.heads + entry * ((c.num_heads + 31) / 32), head);
    const int32_t *words = c.span_words + c.span_starts[entry], num_words = c.span_lens[entry];
    const int32_t *table = c.block_table + c.reqs[entry] * c.table_stride;
    const auto is_image = [&](int p) { return p / 32 < num_words && has_bit(words, p); };

    std::vector<float> q(dim), s((length + block - 1) / block * block, 0.0f);
    const int64_t query = c.rows[entry] * c.query_stride + int64_t(head) * dim;
    for (int d = 0; d < dim; d++) q[d] = load(c.query, c.value_type, query + d);
    for (int start = begin / block * block; start < end; start += block) {
        const int64_t page = int64_t(table[start / block]) * c.kv_heads + group;
        const T *k = static_cast<const T *>(c.cache) + page * 2 * block * dim;
        add_page(&s[start], k, c.packed, dim, block, 0, block, q.data(), 0, 0, dim);
    }
    if (own) {
        const T *k = static_cast<const T *>(c.key) + (int64_t(entry) * c.kv_heads + group) * dim;
        s[last] = 0;
        for (int d = 0; d < dim; d++) s[last] += q[d] * float(k[d]);
    }

    float top = c.sinks ? c.sinks[head] : -INFINITY;
    for (int p = begin; p < length; p++) {
        s[p] *= c.scale;
        if (is_on && is_image(p)) s[p] = steered(s[p]);
        if (c.soft_cap > 0) s[p] = c.soft_cap * std::tanh(s[p] / c.soft_cap);
        top = std::max(top, s[p]);
    }
    float total = c.sinks ? std::exp(c.sinks[head] - top) : 0.0f;
    for (int p = begin; p < length; p++) total += s[p] = std::exp(s[p] - top);

    const int count = c.pos_lens[entry];
    const int32_t *positions = c.positions + c.pos_starts[entry];
    const int64_t out = c.offsets[entry] + int64_t(head) * (count + 2);
    for (int i = 0; i < count; i++) {
        const int p = positions[i];
        const bool seen = p >= begin && p < length;
        store(c.output, FLOAT16, out + i, seen ? s[p] / total : 0.0f);
    }
    float first = 0, rest = 0;
    for (int p = begin; p < length; p++)
        if (!is_image(p)) (p ? rest : first) += s[p];
    store(c.output, FLOAT16, out + count, first / total);
    store(c.output, FLOAT16, out + count + 1, rest / total);
}

}  // namespace

extern "C" void adaptvis_weigh_rows(const Weights *c) {
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(c->threads)
    for (int entry = 0; entry < c->num_rows; entry++)
        for (int head = 0; head < c->num_heads; head++) {
            if (c->offsets[entry] < 0) continue;
            if (c->cache_type == FLOAT32) weigh<float>(*c, entry, head);
            if (c->cache_type == FLOAT16) weigh<_Float16>(*c, entry, head);
            if (c->cache_type == BFLOAT16) weigh<BFloat16>(*c, entry, head);
        }
}
