// What the attention kernels share: their view of the work, which tile a block takes, and the
// choice among them. Scores are in base 2: score * scale * log2(e). A row is one (query, head)
// pair; the heads of a group share their keys and are neighbouring rows.
#ifndef HALKA_KERNELS_CUDA_ATTENTION_CUH
#define HALKA_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/merge_weights.h"

struct attention_work {
    enum dtype query_dtype, kv_dtype;
    const void *query, *key, *value; // see struct attention_args
    int64_t query_stride, key_stride, value_stride;
    // What a query sees: of the keys before its end, the first n_sink and all from its begin on.
    const int *begin, *end; // [n_query] ascending, begin >= n_sink; NULL: 0, n_key
    int n_sink;
    int n_key, n_head, n_kv_head, group, head_dim, value_dim;
    int near_heads;         // kv heads whose tiles are taken together
    int64_t n_query, n_row; // n_row = n_query * group, of one kv head: query r / group, r % group
    float score_scale;      // scale * log2(e)
    // The keys that each split_rows rows see, without the sinks, are cut into n_split ranges of
    // split_key; each has its own partial (the sinks are in the first):
    float *out; // [n_split, n_query, n_head, value_dim]
    float *lse; // [n_split, n_query, n_head]
    int n_split, split_key, split_rows;
    bool merge; // see struct attention_args; only where there is one range
    // [n_split, n_kv_head, tiles of ATTENTION_SPOILED_ROWS rows] or NULL: tiles that a kernel marks
    // and does not write, for values it multiplied though some rows do not see them ...
    int *spoiled;
    bool only_spoiled; // ... and which alone the plain kernel then attends and writes
};

enum {
    ATTENTION_MAX_DIM = 576,
    // Blocks below which keys are cut into ranges, and the fewest keys worth a range. Constants, so
    // that results follow from the shape alone.
    ATTENTION_MIN_BLOCK = 256,
    ATTENTION_MIN_SPLIT_KEY = 256,
    ATTENTION_SPLIT_MULTIPLE = 128, // of the keys of a range: whole tiles of every kernel
    ATTENTION_MOST_ROW_TILE = 128,  // most rows of a block of any kernel
    ATTENTION_SPOILED_ROWS = 16,    // of one warp, in every kernel that marks
    // Keys and values that blocks beside each other may share in the second-level cache, though
    // they drift apart: of one head where it has more. A third of an H100's rate at 256K keys.
    ATTENTION_NEAR_BYTES = 16 << 20,
};

typedef enum status attention_launch(struct backend *backend, const struct attention_work *work);
struct attention_kernel {
    const char *name;
    int architecture;        // at least: 10 * major + minor
    int most_architecture;   // 0: any; instructions that end in `a` exist on one alone
    int head_dim, value_dim; // exactly; 0: any, in any format and alignment
    bool value_in_key;       // and a value is the beginning of its key
    int64_t fewest_row;      // of a kv head, that are worth its tiles
    int row_tile;            // rows of a block, or of a cluster of blocks that share their keys
    attention_launch *launch;
    int shared_bytes; // of a block, where not every device has so many
    int wave;         // row tiles that the only device it is for takes at once, where one range
                      // each is best: results of ranges are large beside their keys
};

attention_launch attention_plain_launch, attention_mma_64, attention_mma_96, attention_mma_128,
    attention_mma_192, attention_mma_256, attention_mma_latent, attention_wgmma_64,
    attention_wgmma_128, attention_wgmma_192, attention_wgmma_256, attention_wgmma_latent,
    attention_wgmma_latent_pair;
enum {
    ATTENTION_PLAIN_ROWS = 32,
    ATTENTION_MMA_ROWS = 64,
    ATTENTION_WGMMA_ROWS = 128,
    ATTENTION_WGMMA_LATENT_ROWS = 64,
    ATTENTION_WGMMA_LATENT_WAVE = 132
};
enum {
    ATTENTION_MMA_192_BYTES = 111616,
    ATTENTION_MMA_LATENT_BYTES = 231424,
    ATTENTION_WGMMA_LATENT_BYTES = 231520
};

// attention.cu: checks the arguments and describes the work, unsplit, with `out` and `lse` the
// caller's; what queries see is staged for the operation being queued.
enum status attention_describe(struct backend *backend, const struct attention_args *args,
                               struct attention_work *out);
// attention_merge.cu: the results over n parts of the keys, out [n, n_query, n_head, value_dim] and
// lse [n, n_query, n_head], become the one that the arguments ask for.
enum status attention_merge_parts(struct backend *backend, const struct attention_args *args, int n,
                                  const float *out, const float *lse);

struct attention_interval { // of keys
    int begin, end;
};

// What a row sees besides the sinks.
__device__ inline struct attention_interval attention_sees(const struct attention_work &w,
                                                           int64_t row) {
    int64_t query = row / w.group;
    struct attention_interval v = {w.begin ? w.begin[query] : 0, w.end ? w.end[query] : w.n_key};
    return v;
}

// What all rows of [first_row, first_row + n_row) see besides the sinks.
__device__ inline struct attention_interval attention_common(const struct attention_work &w,
                                                             int64_t first_row, int n_row) {
    int64_t last_row = first_row + n_row - 1 < w.n_row ? first_row + n_row - 1 : w.n_row - 1;
    struct attention_interval v = {attention_sees(w, last_row).begin,
                                   attention_sees(w, first_row).end};
    return v;
}

// The tile of rows of that index, of a block, and its keys: two intervals of which tiles are made.
// near_heads heads after one another; of them tiles of rows with most keys come first, the heads of
// one tile next to each other.
struct attention_place {
    int64_t first_row;
    int kv_head, split;
    int sink_end;   // the sinks [0, sink_end) that any row of the tile sees, in the first range
    int begin, end; // keys of the range that any row of the tile sees
};

__device__ inline struct attention_place attention_find_place(const struct attention_work &w,
                                                              int row_tile, int64_t index) {
    int64_t n_tile = (w.n_row + row_tile - 1) / row_tile, i = index / w.n_split;
    struct attention_place p;
    p.split = (int)(index % w.n_split);
    int head = (int)(i / (n_tile * w.near_heads)) * w.near_heads;
    int n_near = min(w.near_heads, w.n_kv_head - head);
    i -= head * n_tile;
    p.kv_head = head + (int)(i % n_near);
    p.first_row = (n_tile - 1 - i / n_near) * row_tile;
    int64_t last_row = p.first_row + row_tile < w.n_row ? p.first_row + row_tile - 1 : w.n_row - 1;
    int64_t range = attention_sees(w, p.first_row / w.split_rows * w.split_rows).begin +
                    (int64_t)p.split * w.split_key;
    p.end = attention_sees(w, last_row).end;
    p.sink_end = p.split > 0 ? 0 : min(w.n_sink, p.end);
    p.begin = (int)min(max(range, (int64_t)attention_sees(w, p.first_row).begin), (int64_t)w.n_key);
    p.end = (int)min(range + w.split_key, (int64_t)p.end);
    return p;
}

// Tiles of keys of a block, those of sinks first.
__device__ inline int attention_sink_tiles(const struct attention_place &p, int key_tile) {
    return (p.sink_end + key_tile - 1) / key_tile;
}
__device__ inline int attention_tiles(const struct attention_place &p, int key_tile) {
    return attention_sink_tiles(p, key_tile) + (max(p.end - p.begin, 0) + key_tile - 1) / key_tile;
}
// The first key of a block's first tile, and of the tile after the one that begins at `first`.
__device__ inline int attention_first_key(const struct attention_place &p) {
    return p.sink_end > 0 ? 0 : p.begin;
}
__device__ inline int attention_next_key(const struct attention_place &p, int first, int key_tile) {
    int next = first + key_tile;
    return first < p.sink_end && next >= p.sink_end ? p.begin : next;
}
// Of the tile at `first`: where its interval ends, and the sinks if it is of them, else 0.
__device__ inline int attention_end_key(const struct attention_place &p, int first) {
    return first < p.sink_end ? p.sink_end : p.end;
}
__device__ inline int attention_sink_end(const struct attention_place &p, int first) {
    return first < p.sink_end ? p.sink_end : 0;
}

// Index of a row in [n_query, n_head] of its range.
__device__ inline int64_t attention_row_at(const struct attention_work &w,
                                           const struct attention_place &p, int64_t row) {
    return p.split * w.n_query * w.n_head + row / w.group * w.n_head + p.kv_head * w.group +
           row % w.group;
}

__device__ inline int64_t attention_spoiled_at(const struct attention_work &w,
                                               const struct attention_place &p, int64_t row) {
    int64_t n_tile = (w.n_row + ATTENTION_SPOILED_ROWS - 1) / ATTENTION_SPOILED_ROWS;
    return (p.split * w.n_kv_head + p.kv_head) * n_tile + row / ATTENTION_SPOILED_ROWS;
}

__device__ inline bool attention_is_spoiled(const struct attention_work &w,
                                            const struct attention_place &p, int64_t row) {
    return row < w.n_row && w.spoiled[attention_spoiled_at(w, p, row)];
}

// Offset of a row in the queries.
__device__ inline int64_t attention_query_at(const struct attention_work &w, int kv_head,
                                             int64_t row) {
    return row / w.group * w.query_stride +
           (kv_head * w.group + row % w.group) * (int64_t)w.head_dim;
}

// A row's running maximum is a whole number: factors between maxima are then powers of two, exact,
// and the softmax weights of a key, rounded to bf16, do not depend on where blocks of keys begin.
__device__ inline float attention_raise_max(float max, float score) {
    return fmaxf(max, ceilf(score));
}
// 2^(max - new_max) for whole numbers, max <= new_max; 0 from 2^-127 on and for max = -inf.
__device__ inline float attention_shrink(float max, float new_max) {
    return __int_as_float((__float2int_rn(fmaxf(max - new_max, -127.0f)) + 127) << 23);
}
__device__ inline float attention_lse(float max, float total) {
    return total == 0 ? -INFINITY : (max + log2f(total)) * 0.69314718f;
}

// What becomes of a row's sums: its out is the sums times `by` and, unless held < 0, what out held
// times `held`. held_lse: -inf where nothing is held or wanted.
struct attention_end {
    float by, held, lse;
};
__device__ inline struct attention_end attention_finish(float max, float total, float held_lse) {
    struct merge_weights weights = merge_weigh(held_lse, attention_lse(max, total));
    struct attention_end end = {total == 0 ? 0 : 1 / total, weights.held, weights.lse};
    if (!(weights.held < 0)) end.by *= weights.added;
    return end;
}

// Writes a thread's columns of one row, half `half` of the tensor cores' sums: two of every eight
// from `out` on.
template <int N>
__device__ inline void attention_write(const float (&sum)[N][4], int half, struct attention_end end,
                                       float *out) {
    constexpr int kPiece = N % 16 == 0 ? 16 : N;
    bool is_held = !(end.held < 0);
#pragma unroll
    for (int first = 0; first < N; first += kPiece) {
        float2 *to = (float2 *)(out + first * 8), held[kPiece];
        if (is_held) { // a piece is read before it is written: one wait for memory
#pragma unroll
            for (int n = 0; n < kPiece; n++) held[n] = to[n * 4];
        }
#pragma unroll
        for (int n = 0; n < kPiece; n++) {
            const float *own = &sum[first + n][2 * half];
            float2 x = make_float2(own[0] * end.by, own[1] * end.by);
            if (is_held) x.x = fmaf(held[n].x, end.held, x.x);
            if (is_held) x.y = fmaf(held[n].y, end.held, x.y);
            to[n * 4] = x;
        }
    }
}

#endif
