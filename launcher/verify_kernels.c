// The backend's operations against the reference, on the same numbers.
#include <float.h>
#include <math.h>

#include "launcher/verify.h"

static const double epsilon_f32 = FLT_EPSILON / 2, epsilon_bf16 = 0x1p-9;

enum { N_TOKEN = 67, N_HEAD = 6, N_KV_HEAD = 2, HEAD_DIM = 64, N_COL = 576, N_ROW = 320 };
enum { WINDOW = 20, N_SINK = 3 };

// Inputs, and what each backend makes of them.
struct buffers {
    struct verify_memory memory;
    float *x, *w, *cosine, *sine;
    float *got, *expected, *got_lse, *expected_lse;
    void *rounded_x, *rounded_w; // the same numbers in bf16
    int32_t *target;
    int64_t position[N_TOKEN + 1], window_begin[N_TOKEN];
};
enum { N_X = N_TOKEN * N_COL, N_W = N_ROW * N_COL, N_LSE = N_TOKEN * N_HEAD };

static enum status buffers_open(struct verify *v, struct buffers *b) {
    struct verify_memory *m = &b->memory;
    const int64_t f32 = sizeof(float), n_angle = N_TOKEN * HEAD_DIM / 2;
    TRY(verify_memory_open(m, &v->job->backend, 4 << 20));
    b->x = verify_take(m, N_X * f32);
    b->w = verify_take(m, N_W * f32);
    b->cosine = verify_take(m, n_angle * f32);
    b->sine = verify_take(m, n_angle * f32);
    b->got = verify_take(m, N_X * f32);
    b->expected = verify_take(m, N_X * f32);
    b->got_lse = verify_take(m, N_LSE * f32);
    b->expected_lse = verify_take(m, N_LSE * f32);
    b->rounded_x = verify_take(m, N_X * (int64_t)sizeof(bf16));
    b->rounded_w = verify_take(m, N_W * (int64_t)sizeof(bf16));
    b->target = verify_take(m, N_TOKEN * (int64_t)sizeof *b->target);
    if (!b->target) FAIL(ERR_MEMORY, "no memory for the kernels' self-test");
    verify_fill(b->x, N_X, 1);
    verify_fill(b->w, N_W, 2);
    for (int i = 0; i < N_TOKEN * HEAD_DIM / 2; i++) {
        b->cosine[i] = cosf((float)i);
        b->sine[i] = sinf((float)i);
    }
    dtype_from_float(DTYPE_BF16, b->x, N_X, b->rounded_x);
    dtype_from_float(DTYPE_BF16, b->w, N_W, b->rounded_w);
    for (int i = 0; i < N_TOKEN; i++) b->target[i] = i * 7 % N_ROW;
    for (int i = 0; i <= N_TOKEN; i++) b->position[i] = i;
    for (int i = 0; i < N_TOKEN; i++) b->window_begin[i] = i - WINDOW + 1;
    return OK;
}

// Unwritten elements show as NaN.
static void poison(struct buffers *b) {
    for (int i = 0; i < N_X; i++) b->got[i] = b->expected[i] = NAN;
    for (int i = 0; i < N_LSE; i++) b->got_lse[i] = b->expected_lse[i] = NAN;
}

// Runs the operation on the backend, whose arguments hold images, and on the reference.
#define BOTH(operation, args_own, args_expected)                                                   \
    do {                                                                                           \
        struct backend *own_ = &v->job->backend;                                                   \
        poison(b);                                                                                 \
        TRY(verify_push(&b->memory));                                                              \
        TRY(own_->ops->operation(own_, args_own));                                                 \
        TRY(verify_pull(&b->memory));                                                              \
        TRY(v->reference.ops->operation(&v->reference, args_expected));                            \
    } while (0)

static void *image(const struct buffers *b, const void *host) {
    return verify_image(&b->memory, host);
}

static enum status verify_matmul(struct verify *v, struct buffers *b, bool rounded) {
    struct matmul_args args = {
        .x = rounded ? b->rounded_x : b->x,
        .x_dtype = rounded ? DTYPE_BF16 : DTYPE_F32,
        .x_stride = N_COL,
        .n_token = N_TOKEN,
        .weight = {.data = rounded ? b->rounded_w : (void *)b->w,
                   .dtype = rounded ? DTYPE_BF16 : DTYPE_F32,
                   .n_row = N_ROW,
                   .n_col = N_COL,
                   .row_bytes = dtype_bytes(rounded ? DTYPE_BF16 : DTYPE_F32, N_COL)},
        .out = b->expected,
        .out_dtype = DTYPE_F32,
        .out_stride = N_ROW};
    struct matmul_args own = args;
    own.x = image(b, args.x);
    own.weight.data = image(b, args.weight.data);
    own.out = image(b, b->got);
    BOTH(matmul, &own, &args);
    return verify_row(v, rounded ? "product bf16" : "product fp32", "67 x 576 x 320", epsilon_f32,
                      N_COL, b->got, b->expected, N_TOKEN * N_ROW);
}

static enum status verify_elementwise(struct verify *v, struct buffers *b) {
    struct norm_args norm = {.kind = NORM_RMS,
                             .x = b->x,
                             .n_row = N_TOKEN,
                             .n_col = N_COL,
                             .weight = b->w,
                             .eps = 1e-5f,
                             .out = b->expected,
                             .out_dtype = DTYPE_F32};
    struct norm_args own_norm = norm;
    own_norm.x = image(b, b->x);
    own_norm.weight = image(b, b->w);
    own_norm.out = image(b, b->got);
    BOTH(norm, &own_norm, &norm);
    TRY(verify_row(v, "RMS norm", "67 x 576", epsilon_f32, N_COL, b->got, b->expected, N_X));

    struct gate_args gate = {.activation = ACTIVATION_SILU,
                             .gate = b->x,
                             .up = b->w,
                             .gate_stride = N_COL,
                             .up_stride = N_COL,
                             .n_token = N_TOKEN,
                             .n_col = N_COL,
                             .out = b->expected,
                             .out_dtype = DTYPE_F32};
    struct gate_args own_gate = gate;
    own_gate.gate = image(b, b->x);
    own_gate.up = image(b, b->w);
    own_gate.out = image(b, b->got);
    BOTH(gate, &own_gate, &gate);
    TRY(verify_row(v, "gate", "67 x 576", epsilon_f32, 1, b->got, b->expected, N_X));

    const int64_t width = N_HEAD * HEAD_DIM;
    struct rope_args rope = {.x = b->x,
                             .x_stride = N_COL,
                             .n_token = N_TOKEN,
                             .n_head = N_HEAD,
                             .head_dim = HEAD_DIM,
                             .rope_dim = HEAD_DIM,
                             .cos = b->cosine,
                             .sin = b->sine,
                             .out = b->expected,
                             .out_dtype = DTYPE_F32,
                             .out_stride = width};
    struct rope_args own_rope = rope;
    own_rope.x = image(b, b->x);
    own_rope.cos = image(b, b->cosine);
    own_rope.sin = image(b, b->sine);
    own_rope.out = image(b, b->got);
    BOTH(rope, &own_rope, &rope);
    return verify_row(v, "rope", "67 x 6 x 64", epsilon_f32, 1, b->got, b->expected,
                      N_TOKEN * width);
}

static enum status verify_attention(struct verify *v, struct buffers *b, bool rounded,
                                    bool windowed) {
    enum dtype dtype = rounded ? DTYPE_BF16 : DTYPE_F32;
    struct attention_args args = {.n_query = N_TOKEN,
                                  .n_key = N_TOKEN,
                                  .n_head = N_HEAD,
                                  .n_kv_head = N_KV_HEAD,
                                  .head_dim = HEAD_DIM,
                                  .value_dim = HEAD_DIM,
                                  .scale = 0.5f,
                                  .query = rounded ? b->rounded_x : b->x,
                                  .query_dtype = dtype,
                                  .query_stride = N_COL,
                                  .key = rounded ? b->rounded_w : (void *)b->w,
                                  .value = rounded ? b->rounded_x : b->x,
                                  .kv_dtype = dtype,
                                  .key_stride = N_COL,
                                  .value_stride = N_COL,
                                  .first_visible = windowed ? b->window_begin : NULL,
                                  .sinks = N_SINK,
                                  .end_visible = b->position + 1,
                                  .key_position = b->position,
                                  .out = b->expected,
                                  .lse = b->expected_lse};
    struct attention_args own = args;
    own.query = image(b, args.query);
    own.key = image(b, args.key);
    own.value = image(b, args.value);
    own.out = image(b, b->got);
    own.lse = image(b, b->got_lse);
    BOTH(attention, &own, &args);
    const char *name = rounded ? "attention bf16" : "attention fp32";
    double epsilon = rounded ? epsilon_bf16 : epsilon_f32;
    const char *shape = windowed ? "67 x 6:2 x 64, window 20" : "67 x 6:2 x 64, causal";
    TRY(verify_row(v, name, shape, epsilon, HEAD_DIM, b->got, b->expected,
                   N_TOKEN * N_HEAD * HEAD_DIM));
    return verify_row(v, name, "its log-sum-exp", epsilon, HEAD_DIM, b->got_lse, b->expected_lse,
                      N_LSE);
}

static enum status verify_logprob(struct verify *v, struct buffers *b) {
    struct logprob_args args = {.x = b->x,
                                .x_dtype = DTYPE_F32,
                                .n_token = N_TOKEN,
                                .head = {.data = b->w,
                                         .dtype = DTYPE_F32,
                                         .n_row = N_ROW,
                                         .n_col = N_COL,
                                         .row_bytes = dtype_bytes(DTYPE_F32, N_COL)},
                                .target = b->target,
                                .logprob = b->expected};
    struct logprob_args own = args;
    own.x = image(b, b->x);
    own.head.data = image(b, b->w);
    own.target = image(b, b->target);
    own.logprob = image(b, b->got);
    BOTH(logprob, &own, &args);
    return verify_row(v, "log-probability", "67 x 576 x 320", epsilon_f32, N_COL, b->got,
                      b->expected, N_TOKEN);
}

enum status verify_kernels(struct verify *v) {
    struct buffers buffers = {0};
    enum status status = OK;
    TRY_OR(done, buffers_open(v, &buffers));
    TRY_OR(done, verify_matmul(v, &buffers, false));
    TRY_OR(done, verify_matmul(v, &buffers, true));
    TRY_OR(done, verify_elementwise(v, &buffers));
    for (int rounded = 0; rounded < 2; rounded++)
        for (int windowed = 0; windowed < 2; windowed++)
            TRY_OR(done, verify_attention(v, &buffers, rounded, windowed));
    TRY_OR(done, verify_logprob(v, &buffers));
done:
    verify_memory_close(&buffers.memory);
    return status;
}
