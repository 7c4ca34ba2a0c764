// Attention in parts: Self-Extend, Dual Chunk Attention, StreamingLLM. A part is one attention over
// the ranks whose queries, and maybe keys, are rotated as if they stood elsewhere; the parts show
// each key once, and each merges into what those before it left, as those of ranks do. Positions
// are functions of the global position, so the ranks and layouts of a sequence make no difference.
#include "model/forward_internal.h"
#include "model/plan.h"

#define OPS(f) ((f)->backend->ops)

static void *part_query(const struct forward *f, int part, int64_t row, int64_t width) {
    int64_t element = part * f->buffers.query_stride + row * width;
    return (char *)f->buffers.query + dtype_bytes(f->query_dtype, element);
}

int forward_query_rotations(const struct forward *f, int layer, int64_t row,
                            struct rotation out[MODEL_MAX_PART]) {
    const struct layer_spec *l = &f->spec->layers[layer];
    int64_t width = (int64_t)l->n_head * l->head_dim;
    for (int i = 0; i < f->spec->n_part; i++)
        out[i] = (struct rotation){f->spec->parts[i].query_rope, part_query(f, i, row, width)};
    if (f->spec->n_part) return f->spec->n_part;
    out[0] = (struct rotation){l->rope, part_query(f, 0, row, width)};
    return 1;
}

int forward_key_rotations(const struct forward *f, int layer, int64_t row,
                          struct rotation out[MODEL_MAX_PART]) {
    const struct model_spec *spec = f->spec;
    int rope = spec->n_part ? spec->key_rope[0] : spec->layers[layer].rope;
    out[0] = (struct rotation){rope, kv_store_key(&f->kv, layer, row)};
    if (spec->n_key_set < 2) return 1;
    out[1] = (struct rotation){spec->key_rope[1], kv_store_other_key(&f->kv, layer, row)};
    return 2;
}

// What the ranks hold for the layer, and all that it sees.
static struct visible_range layer_range(const struct forward *f, int layer,
                                        const struct forward_chunk *chunk) {
    return (struct visible_range){.sequence = chunk->sequence,
                                  .visibility = forward_visibility(f->spec, layer, chunk),
                                  .key_begin = f->kv.layers[layer].block.key_begin,
                                  .query_begin = chunk->begin,
                                  .query_end = chunk->end};
}

// The rows of sinks come first: a part that does not see them begins behind.
static int64_t rows_skipped(const struct forward *f, int layer, const struct forward_chunk *chunk,
                            int part) {
    if (visibility_sinks(&f->spec->parts[part].visibility) > 0) return 0;
    struct visible_range range = layer_range(f, layer, chunk);
    return visible_held_before(&range, f->comm->rank, range.key_begin);
}

static const char *part_keys(const struct forward *f, int layer, int part) {
    const struct kv_block *block = &f->kv.layers[layer].block;
    return f->spec->parts[part].key_set ? block->other_key : block->key;
}

static struct ring_attention_args part_args(const struct forward *f, int layer,
                                            const struct forward_chunk *chunk,
                                            const struct ring_attention_args *whole, int part) {
    const struct layer_spec *l = &f->spec->layers[layer];
    struct ring_attention_args args = *whole;
    int64_t skipped = rows_skipped(f, layer, chunk, part) * l->n_kv_head;
    args.visibility = f->spec->parts[part].visibility;
    args.query = part_query(f, part, 0, 0);
    args.key = part_keys(f, layer, part) + dtype_bytes(args.kv_dtype, skipped * l->head_dim);
    args.value = (const char *)args.value + dtype_bytes(args.kv_dtype, skipped * l->value_dim);
    return args;
}

static enum pass choose_pass(const struct forward *f, const struct ring_attention_args *args) {
    const struct visible_range range = {.sequence = args->sequence,
                                        .visibility = args->visibility,
                                        .key_begin = args->key_begin,
                                        .query_begin = args->query_begin,
                                        .key_end = args->key_end,
                                        .query_end = args->query_end};
    const struct attention_shape shape = {.n_head = args->n_head,
                                          .n_kv_head = args->n_kv_head,
                                          .head_dim = args->head_dim,
                                          .value_dim = args->value_dim,
                                          .query_bytes = (int)dtype_bytes(args->query_dtype, 1),
                                          .kv_bytes = (int)dtype_bytes(args->kv_dtype, 1)};
    return volume_choose_pass(&range, &shape, session_most_sent(f->indexed));
}

enum status forward_attend_parts(struct forward *f, int layer, const struct forward_chunk *chunk,
                                 const struct ring_attention_args *whole) {
    for (int part = 0; part < f->spec->n_part; part++) {
        struct ring_attention_args args = part_args(f, layer, chunk, whole, part);
        args.pass = choose_pass(f, &args);
        args.merge = part > 0;
        TRY(ring_attention_run(&f->ring, &args));
    }
    return OK;
}

enum status forward_attend_token_parts(struct forward *f, int layer,
                                       const struct forward_chunk *chunk,
                                       const struct ring_attention_args *whole) {
    struct ring_attention_args parts[MODEL_MAX_PART];
    for (int part = 0; part < f->spec->n_part; part++)
        parts[part] = part_args(f, layer, chunk, whole, part);
    return decode_attention_run(&f->ring, parts, f->spec->n_part);
}

struct part_seen forward_part_seen(const struct forward *f, int layer,
                                   const struct forward_chunk *chunk, int part) {
    const struct visibility *v = &f->spec->parts[part].visibility;
    struct visible_range range = layer_range(f, layer, chunk);
    struct span keys = visibility_keys(v, chunk->begin);
    int64_t sinks = visibility_sinks(v), end = visibility_end(v, chunk->begin);
    if (sinks > 0) keys = (struct span){0, sinks < end ? sinks : end};
    int rank = f->comm->rank;
    int64_t first = visible_held_before(&range, rank, keys.start);
    int64_t last = visible_held_before(&range, rank, keys.start + keys.length);
    return (struct part_seen){
        .query = part_query(f, part, 0, 0),
        .key = part_keys(f, layer, part),
        .run = {first, sequence_count(chunk->sequence, rank, 0, keys.start), last - first}};
}
