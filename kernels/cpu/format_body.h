// The body of format_avx2.c and format_avx512.c. The including file defines: vec, VEC_FLOATS,
// vec_zero, vec_load, vec_store, vec_fma, vec_sum, vec_store_bf16, FORMAT_OPS, and one decoder
// `decode_NAME(p, out)` per fast format: GROUP elements at p into GROUP / VEC_FLOATS vectors.
// Other formats expand in plain C, CHUNK elements at a time on the stack.
#define GROUP 32
#define N_VEC (GROUP / VEC_FLOATS)
#define CHUNK 256
#define TOKENS_AT_ONCE 4
#define INLINE static inline __attribute__((always_inline))

typedef void decode_group(const uint8_t *p, vec *out);

INLINE void expand_groups(decode_group *decode, int group_bytes, const uint8_t *p, int64_t n_group,
                          float *out) {
    vec v[N_VEC];
    for (int64_t g = 0; g < n_group; g++, p += group_bytes, out += GROUP) {
        decode(p, v);
        for (int k = 0; k < N_VEC; k++) vec_store(out + k * VEC_FLOATS, v[k]);
    }
}

INLINE void round_groups(decode_group *decode, int group_bytes, const uint8_t *p, int64_t n_group,
                         bf16 *out) {
    vec v[N_VEC];
    for (int64_t g = 0; g < n_group; g++, p += group_bytes, out += GROUP) {
        decode(p, v);
        for (int k = 0; k < N_VEC; k++) vec_store_bf16(out + k * VEC_FLOATS, v[k]);
    }
}

// out[t] += dot of the groups; n_token is a constant at every call. One token keeps N_VEC sums in
// flight to hide the latency of the additions, several tokens hide it among themselves.
INLINE void dot_groups(decode_group *decode, int group_bytes, const uint8_t *p, int64_t n_group,
                       const float *x, int64_t x_stride, int n_token, float *out) {
    const int n_sum = n_token == 1 ? N_VEC : 1;
    vec v[N_VEC], sum[TOKENS_AT_ONCE][N_VEC];
    for (int t = 0; t < n_token; t++)
        for (int k = 0; k < n_sum; k++) sum[t][k] = vec_zero();
    for (int64_t g = 0; g < n_group; g++, p += group_bytes, x += GROUP) {
        decode(p, v);
        for (int t = 0; t < n_token; t++)
            for (int k = 0; k < N_VEC; k++)
                sum[t][k % n_sum] =
                    vec_fma(v[k], vec_load(x + t * x_stride + k * VEC_FLOATS), sum[t][k % n_sum]);
    }
    for (int t = 0; t < n_token; t++)
        for (int k = 0; k < n_sum; k++) out[t] += vec_sum(sum[t][k]);
}

INLINE void dot_tokens(decode_group *decode, int group_bytes, const uint8_t *p, int64_t n_group,
                       const float *x, int64_t x_stride, int n_token, float *out) {
    for (; n_token >= 4; n_token -= 4, x += 4 * x_stride, out += 4)
        dot_groups(decode, group_bytes, p, n_group, x, x_stride, 4, out);
    if (n_token == 3) dot_groups(decode, group_bytes, p, n_group, x, x_stride, 3, out);
    if (n_token == 2) dot_groups(decode, group_bytes, p, n_group, x, x_stride, 2, out);
    if (n_token == 1) dot_groups(decode, group_bytes, p, n_group, x, x_stride, 1, out);
}

#define FAST_FORMATS(CASE)                                                                         \
    CASE(DTYPE_F32, decode_f32, 128)                                                               \
    CASE(DTYPE_F16, decode_f16, 64)                                                                \
    CASE(DTYPE_BF16, decode_bf16, 64)                                                              \
    CASE(DTYPE_Q8_0, decode_q8_0, 34)                                                              \
    CASE(DTYPE_Q4_0, decode_q4_0, 18)                                                              \
    CASE(DTYPE_Q4_1, decode_q4_1, 20)

// Elements from `done` on, which fill no group: the tail of plain rows, or all of a slow format.
static const uint8_t *row_rest(enum dtype dtype, const void *row, int64_t done) {
    return (const uint8_t *)row + dtype_bytes(dtype, done);
}

static void row_to_float(enum dtype dtype, const void *row, int64_t n, float *out) {
    int64_t done = n / GROUP * GROUP;
    switch (dtype) {
#define CASE(name, decode, bytes)                                                                  \
    case name:                                                                                     \
        expand_groups(decode, bytes, row, n / GROUP, out);                                         \
        break;
        FAST_FORMATS(CASE)
#undef CASE
    default:
        done = 0;
    }
    dtype_to_float(dtype, row_rest(dtype, row, done), n - done, out + done);
}

static void row_to_bf16(enum dtype dtype, const void *row, int64_t n, bf16 *out) {
    int64_t done = n / GROUP * GROUP;
    switch (dtype) {
#define CASE(name, decode, bytes)                                                                  \
    case name:                                                                                     \
        round_groups(decode, bytes, row, n / GROUP, out);                                          \
        break;
        FAST_FORMATS(CASE)
#undef CASE
    default:
        done = 0;
    }
    while (done < n) {
        float chunk[CHUNK];
        int64_t m = n - done < CHUNK ? n - done : CHUNK;
        dtype_to_float(dtype, row_rest(dtype, row, done), m, chunk);
        int64_t n_group = m / GROUP;
        round_groups(decode_f32, 128, (const uint8_t *)chunk, n_group, out + done);
        for (int64_t i = n_group * GROUP; i < m; i++) out[done + i] = bf16_from_float(chunk[i]);
        done += m;
    }
}

static void row_dot(enum dtype dtype, const void *row, int64_t n, const float *x, int64_t x_stride,
                    int n_token, float *out) {
    int64_t done = n / GROUP * GROUP;
    for (int t = 0; t < n_token; t++) out[t] = 0;
    switch (dtype) {
#define CASE(name, decode, bytes)                                                                  \
    case name:                                                                                     \
        dot_tokens(decode, bytes, row, n / GROUP, x, x_stride, n_token, out);                      \
        break;
        FAST_FORMATS(CASE)
#undef CASE
    default:
        done = 0;
    }
    while (done < n) {
        float chunk[CHUNK];
        int64_t m = n - done < CHUNK ? n - done : CHUNK;
        dtype_to_float(dtype, row_rest(dtype, row, done), m, chunk);
        int64_t n_group = m / GROUP;
        dot_tokens(decode_f32, 128, (const uint8_t *)chunk, n_group, x + done, x_stride, n_token,
                   out);
        for (int64_t i = n_group * GROUP; i < m; i++)
            for (int t = 0; t < n_token; t++) out[t] += chunk[i] * x[t * x_stride + done + i];
        done += m;
    }
}

const struct format_ops FORMAT_OPS = {
    .to_float = row_to_float,
    .to_bf16 = row_to_bf16,
    .dot = row_dot,
};
