#include "partition/layout_choice.h"

// Ring attention in bf16 and shifts of 4 MiB between two cores (Zen 4, bench_ring); 32:8 heads of
// d128, 128K tokens on two H100s, and NCCL's shifts there (bench_ring_gpu, docs/performance.md).
const struct attention_rates rates_of_thread = {125e9, 4.3e9};
const struct attention_rates rates_of_gpu = {611e12, 354e9};

static double rank_seconds(const struct visible_range *range, const struct layer_kind *kind,
                           const struct attention_rates *rates, enum pass pass, int rank) {
    int64_t pairs = 0;
    for (int holder = 0; holder < range->sequence->size; holder++)
        pairs += visible_pairs(range, rank, holder);
    int64_t bytes = pass == PASS_HALO ? volume_pass_halo(range, &kind->shape, rank)
                                      : volume_pass_kv(range, &kind->shape, rank);
    double flop = 2.0 * (double)pairs * kind->shape.n_head *
                  (double)(kind->shape.head_dim + kind->shape.value_dim);
    return flop / rates->flop_per_s + (double)bytes / rates->bytes_per_s;
}

// Queries [begin, end), what comes before as one chunk; every layer waits for the slowest rank.
static double chunk_seconds(const struct layout_case *c, enum layout layout, int64_t begin,
                            int64_t end) {
    struct extent extents[2] = {{layout, 0, begin, begin},
                                {layout, begin, end - begin, end - begin}};
    const struct sequence sequence = {
        .size = c->size, .n_extent = 2, .extents = extents, .length = end};
    double seconds = 0;
    for (int i = 0; i < c->n_kind; i++) {
        const struct layer_kind *kind = &c->kinds[i];
        struct visible_range range = {.sequence = &sequence,
                                      .visibility = kind->visibility,
                                      .query_begin = begin,
                                      .query_end = end};
        if (begin < end) range.key_begin = visibility_begin(&kind->visibility, begin);
        enum pass pass = volume_choose_pass(&range, &kind->shape, 0);
        double slowest = 0;
        for (int rank = 0; rank < c->size; rank++) {
            double s = rank_seconds(&range, kind, &c->rates, pass, rank);
            if (s > slowest) slowest = s;
        }
        seconds += slowest * kind->n_layer;
    }
    return seconds;
}

static double layout_seconds(const struct layout_case *c, enum layout layout) {
    int64_t chunk = c->chunk > 0 && c->chunk < c->n_token ? c->chunk : c->n_token;
    double seconds = chunk_seconds(c, layout, 0, chunk);
    if (chunk < c->n_token) seconds += chunk_seconds(c, layout, c->n_token - chunk, c->n_token);
    return seconds;
}

struct layout_choice layout_choose(const struct layout_case *c) {
    struct layout_choice out = {.zigzag_s = layout_seconds(c, LAYOUT_ZIGZAG),
                                .contiguous_s = layout_seconds(c, LAYOUT_CONTIGUOUS)};
    bool causal = false;
    for (int i = 0; i < c->n_kind; i++)
        causal |= c->kinds[i].visibility.back == VISIBLE_ALL && c->kinds[i].visibility.ahead == 0;
    bool contiguous = causal ? out.contiguous_s < out.zigzag_s : out.contiguous_s <= out.zigzag_s;
    out.layout = contiguous ? LAYOUT_CONTIGUOUS : LAYOUT_ZIGZAG;
    return out;
}
