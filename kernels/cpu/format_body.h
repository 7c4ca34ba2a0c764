// The body of format_avx2.c and format_avx512.c. The including file defines: vec, VEC_FLOATS,
// vec_zero, vec_load, vec_store, vec_fma, vec_sum, vec_store_bf16, vec_unpacked, FORMAT_OPS, and
// decode_NAME(block, group, out) for the simple formats: elements [group * GROUP, + GROUP) of the
// block into GROUP / VEC_FLOATS vectors. The others go through format_unpack.h.
#include "kernels/cpu/format_unpack.h"
#include "kernels/cpu/fp8_expand.h"

#define GROUP 32
#define N_VEC (GROUP / VEC_FLOATS)
#define TOKENS_AT_ONCE 4
#define INLINE static inline __attribute__((always_inline))

typedef void decode_group(const uint8_t *block, int group, vec *out);

#define DECODE_UNPACKED(name)                                                                      \
    INLINE void decode_##name(const uint8_t *block, int group, vec *out) {                         \
        struct unpacked u;                                                                         \
        unpack_##name(block, group, &u);                                                           \
        vec_unpacked(&u, out);                                                                     \
    }
DECODE_UNPACKED(q5_0)
DECODE_UNPACKED(q5_1)
DECODE_UNPACKED(q4_k)
DECODE_UNPACKED(q5_k)
DECODE_UNPACKED(q6_k)

INLINE void decode_f8_e4m3(const uint8_t *block, int group, vec *out) {
    (void)group;
    float x[GROUP];
    expand_fp8(block, GROUP, x);
    for (int k = 0; k < N_VEC; k++) out[k] = vec_load(x + k * VEC_FLOATS);
}

// A row of blocks, and how its format is decoded; constants at every call but `data`.
struct row {
    const uint8_t *data;
    decode_group *decode;
    unsigned block_bytes, groups_per_block;
};

INLINE void decode_at(const struct row *row, uint64_t group, vec *out) {
    row->decode(row->data + group / row->groups_per_block * row->block_bytes,
                (int)(group % row->groups_per_block), out);
}

INLINE void expand_groups(struct row row, uint64_t n_group, float *out) {
    vec v[N_VEC];
    for (uint64_t g = 0; g < n_group; g++, out += GROUP) {
        decode_at(&row, g, v);
        for (int k = 0; k < N_VEC; k++) vec_store(out + k * VEC_FLOATS, v[k]);
    }
}

INLINE void round_groups(struct row row, uint64_t n_group, bf16 *out) {
    vec v[N_VEC];
    for (uint64_t g = 0; g < n_group; g++, out += GROUP) {
        decode_at(&row, g, v);
        for (int k = 0; k < N_VEC; k++) vec_store_bf16(out + k * VEC_FLOATS, v[k]);
    }
}

// out[t] += dot of the groups; n_token is a constant at every call. One token keeps N_VEC sums in
// flight to hide the latency of the additions, several tokens hide it among themselves.
INLINE void dot_groups(struct row row, uint64_t n_group, const float *x, int64_t x_stride,
                       int n_token, float *out) {
    const int n_sum = n_token == 1 ? N_VEC : 1;
    vec v[N_VEC], sum[TOKENS_AT_ONCE][N_VEC];
    for (int t = 0; t < n_token; t++)
        for (int k = 0; k < n_sum; k++) sum[t][k] = vec_zero();
    for (uint64_t g = 0; g < n_group; g++, x += GROUP) {
        decode_at(&row, g, v);
        for (int t = 0; t < n_token; t++)
            for (int k = 0; k < N_VEC; k++)
                sum[t][k % n_sum] =
                    vec_fma(v[k], vec_load(x + t * x_stride + k * VEC_FLOATS), sum[t][k % n_sum]);
    }
    for (int t = 0; t < n_token; t++)
        for (int k = 0; k < n_sum; k++) out[t] += vec_sum(sum[t][k]);
}

INLINE void dot_tokens(struct row row, uint64_t n_group, const float *x, int64_t x_stride,
                       int n_token, float *out) {
    for (; n_token >= 4; n_token -= 4, x += 4 * x_stride, out += 4)
        dot_groups(row, n_group, x, x_stride, 4, out);
    if (n_token == 3) dot_groups(row, n_group, x, x_stride, 3, out);
    if (n_token == 2) dot_groups(row, n_group, x, x_stride, 2, out);
    if (n_token == 1) dot_groups(row, n_group, x, x_stride, 1, out);
}

#define FORMATS(CASE)                                                                              \
    CASE(DTYPE_F32, decode_f32, 128, 1)                                                            \
    CASE(DTYPE_F16, decode_f16, 64, 1)                                                             \
    CASE(DTYPE_BF16, decode_bf16, 64, 1)                                                           \
    CASE(DTYPE_Q8_0, decode_q8_0, 34, 1)                                                           \
    CASE(DTYPE_Q4_0, decode_q4_0, 18, 1)                                                           \
    CASE(DTYPE_Q4_1, decode_q4_1, 20, 1)                                                           \
    CASE(DTYPE_Q5_0, decode_q5_0, 22, 1)                                                           \
    CASE(DTYPE_Q5_1, decode_q5_1, 24, 1)                                                           \
    CASE(DTYPE_Q4_K, decode_q4_k, 144, 8)                                                          \
    CASE(DTYPE_Q5_K, decode_q5_k, 176, 8)                                                          \
    CASE(DTYPE_Q6_K, decode_q6_k, 210, 8)                                                          \
    CASE(DTYPE_F8_E4M3, decode_f8_e4m3, 32, 1)

// What fills no group at the end of a row of a plain format; returns how many elements.
static int expand_tail(enum dtype dtype, const void *row, int64_t n, float *tail) {
    int n_tail = (int)(n % GROUP);
    dtype_to_float(dtype, (const uint8_t *)row + dtype_bytes(dtype, n - n_tail), n_tail, tail);
    return n_tail;
}

static void row_to_float(enum dtype dtype, const void *data, int64_t n, float *out) {
    switch (dtype) {
#define CASE(name, decode, bytes, groups)                                                          \
    case name:                                                                                     \
        expand_groups((struct row){data, decode, bytes, groups}, (uint64_t)n / GROUP, out);        \
        break;
        FORMATS(CASE)
#undef CASE
    case N_DTYPE:
        break;
    }
    expand_tail(dtype, data, n, out + n / GROUP * GROUP);
}

static void row_to_bf16(enum dtype dtype, const void *data, int64_t n, bf16 *out) {
    switch (dtype) {
#define CASE(name, decode, bytes, groups)                                                          \
    case name:                                                                                     \
        round_groups((struct row){data, decode, bytes, groups}, (uint64_t)n / GROUP, out);         \
        break;
        FORMATS(CASE)
#undef CASE
    case N_DTYPE:
        break;
    }
    float tail[GROUP];
    int n_tail = expand_tail(dtype, data, n, tail);
    for (int i = 0; i < n_tail; i++) out[n - n_tail + i] = bf16_from_float(tail[i]);
}

static void row_dot(enum dtype dtype, const void *data, int64_t n, const float *x, int64_t x_stride,
                    int n_token, float *out) {
    for (int t = 0; t < n_token; t++) out[t] = 0;
    switch (dtype) {
#define CASE(name, decode, bytes, groups)                                                          \
    case name:                                                                                     \
        dot_tokens((struct row){data, decode, bytes, groups}, (uint64_t)n / GROUP, x, x_stride,    \
                   n_token, out);                                                                  \
        break;
        FORMATS(CASE)
#undef CASE
    case N_DTYPE:
        break;
    }
    float tail[GROUP];
    int n_tail = expand_tail(dtype, data, n, tail);
    for (int t = 0; t < n_token; t++)
        for (int i = 0; i < n_tail; i++) out[t] += tail[i] * x[t * x_stride + n - n_tail + i];
}

const struct format_ops FORMAT_OPS = {
    .to_float = row_to_float,
    .to_bf16 = row_to_bf16,
    .dot = row_dot,
};
