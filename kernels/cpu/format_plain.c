// Weight rows in plain C, for processors without AVX2.
#include "kernels/cpu/format.h"

#define CHUNK 256

static void row_to_bf16(enum dtype dtype, const void *row, int64_t n, bf16 *out) {
    for (int64_t done = 0; done < n; done += CHUNK) {
        float chunk[CHUNK];
        int64_t m = n - done < CHUNK ? n - done : CHUNK;
        dtype_to_float(dtype, (const uint8_t *)row + dtype_bytes(dtype, done), m, chunk);
        for (int64_t i = 0; i < m; i++) out[done + i] = bf16_from_float(chunk[i]);
    }
}

static void row_dot(enum dtype dtype, const void *row, int64_t n, const float *x, int64_t x_stride,
                    int n_token, float *out) {
    for (int t = 0; t < n_token; t++) out[t] = 0;
    for (int64_t done = 0; done < n; done += CHUNK) {
        float chunk[CHUNK];
        int64_t m = n - done < CHUNK ? n - done : CHUNK;
        dtype_to_float(dtype, (const uint8_t *)row + dtype_bytes(dtype, done), m, chunk);
        for (int t = 0; t < n_token; t++) {
            const float *x_chunk = x + t * x_stride + done;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < m; i++) sum += chunk[i] * x_chunk[i];
            out[t] += sum;
        }
    }
}

const struct format_ops format_plain = {
    .to_float = dtype_to_float,
    .to_bf16 = row_to_bf16,
    .dot = row_dot,
};
