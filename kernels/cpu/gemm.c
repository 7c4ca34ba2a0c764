#include "kernels/cpu/gemm.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>

#define N_SLOT 64 // shapes alive at once: a network uses about ten per chunk length

#define DNNL(call)                                                                                 \
    do {                                                                                           \
        dnnl_status_t dnnl_status_ = (call);                                                       \
        if (dnnl_status_ == dnnl_out_of_memory)                                                    \
            FAIL(ERR_MEMORY, "oneDNN: no memory for a product; use a smaller prefill chunk");      \
        if (dnnl_status_ != dnnl_success)                                                          \
            FAIL(ERR_INTERNAL, "oneDNN: %s failed with status %d", #call, (int)dnnl_status_);      \
    } while (0)

// What a primitive depends on; all of one type, so that memcmp compares it.
struct shape {
    int64_t n_token, n_row, n_col, x_stride, weight_stride, out_stride;
    int64_t dtype, out_dtype, accumulate, bias;
};

struct slot {
    struct shape shape;
    dnnl_primitive_t primitive;
    dnnl_memory_t x, weight, bias, out;
};

struct gemm {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct slot slots[N_SLOT];
    int next; // the slot to replace next
};

enum status gemm_open(enum isa isa, struct gemm **out) {
    static const dnnl_cpu_isa_t limits[] = {
        [ISA_AUTO] = dnnl_cpu_isa_all,        [ISA_PLAIN] = dnnl_cpu_isa_sse41,
        [ISA_AVX2] = dnnl_cpu_isa_avx2,       [ISA_AVX512] = dnnl_cpu_isa_avx512_core,
        [ISA_AVX512_BF16] = dnnl_cpu_isa_all,
    };
    // Refused once a product has run: the limit then is the earlier one, see gemm_has_bf16.
    (void)dnnl_set_max_cpu_isa(limits[isa]);
    struct gemm *gemm = calloc(1, sizeof *gemm);
    *out = gemm;
    if (!gemm) FAIL(ERR_MEMORY, "cannot allocate %zu bytes", sizeof *gemm);
    DNNL(dnnl_engine_create(&gemm->engine, dnnl_cpu, 0));
    DNNL(dnnl_stream_create(&gemm->stream, gemm->engine, dnnl_stream_default_flags));
    return OK;
}

bool gemm_has_bf16(void) {
    int bf16_isa = dnnl_cpu_isa_avx512_core_bf16;
    return ((int)dnnl_get_effective_cpu_isa() & bf16_isa) == bf16_isa;
}

static void slot_clear(struct slot *slot) {
    dnnl_memory_t memories[] = {slot->x, slot->weight, slot->bias, slot->out};
    for (int i = 0; i < 4; i++)
        if (memories[i]) dnnl_memory_destroy(memories[i]);
    if (slot->primitive) dnnl_primitive_destroy(slot->primitive);
    *slot = (struct slot){0};
}

static dnnl_data_type_t data_type(int64_t dtype) {
    return dtype == DTYPE_BF16 ? dnnl_bf16 : dnnl_f32;
}

// Creates the primitive alone: descriptors and attributes do not outlive it.
static dnnl_status_t create_primitive(struct gemm *gemm, const dnnl_matmul_desc_t *desc,
                                      bool accumulate, dnnl_primitive_t *out) {
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t post_ops = NULL;
    dnnl_primitive_desc_t primitive_desc = NULL;
    dnnl_status_t result = dnnl_primitive_attr_create(&attr);
    if (result == dnnl_success && accumulate) {
        result = dnnl_post_ops_create(&post_ops);
        if (result == dnnl_success) result = dnnl_post_ops_append_sum(post_ops, 1.0f);
        if (result == dnnl_success) result = dnnl_primitive_attr_set_post_ops(attr, post_ops);
    }
    if (result == dnnl_success)
        result = dnnl_primitive_desc_create(&primitive_desc, desc, attr, gemm->engine, NULL);
    if (result == dnnl_success) result = dnnl_primitive_create(out, primitive_desc);
    if (primitive_desc) dnnl_primitive_desc_destroy(primitive_desc);
    if (post_ops) dnnl_post_ops_destroy(post_ops);
    if (attr) dnnl_primitive_attr_destroy(attr);
    return result;
}

static enum status slot_fill(struct gemm *gemm, struct slot *slot, const struct shape *s) {
    dnnl_memory_desc_t x, weight, bias = {0}, out;
    dnnl_data_type_t type = data_type(s->dtype);
    DNNL(dnnl_memory_desc_init_by_strides(&x, 2, (dnnl_dims_t){s->n_token, s->n_col}, type,
                                          (dnnl_dims_t){s->x_stride, 1}));
    DNNL(dnnl_memory_desc_init_by_strides(&weight, 2, (dnnl_dims_t){s->n_col, s->n_row}, type,
                                          (dnnl_dims_t){1, s->weight_stride}));
    DNNL(dnnl_memory_desc_init_by_strides(&out, 2, (dnnl_dims_t){s->n_token, s->n_row},
                                          data_type(s->out_dtype),
                                          (dnnl_dims_t){s->out_stride, 1}));
    if (s->bias)
        DNNL(dnnl_memory_desc_init_by_strides(&bias, 2, (dnnl_dims_t){1, s->n_row}, dnnl_f32,
                                              (dnnl_dims_t){s->n_row, 1}));
    dnnl_matmul_desc_t desc;
    DNNL(dnnl_matmul_desc_init(&desc, &x, &weight, s->bias ? &bias : NULL, &out));
    DNNL(create_primitive(gemm, &desc, s->accumulate, &slot->primitive));
    DNNL(dnnl_memory_create(&slot->x, &x, gemm->engine, DNNL_MEMORY_NONE));
    DNNL(dnnl_memory_create(&slot->weight, &weight, gemm->engine, DNNL_MEMORY_NONE));
    DNNL(dnnl_memory_create(&slot->out, &out, gemm->engine, DNNL_MEMORY_NONE));
    if (s->bias) DNNL(dnnl_memory_create(&slot->bias, &bias, gemm->engine, DNNL_MEMORY_NONE));
    slot->shape = *s;
    return OK;
}

static enum status find_slot(struct gemm *gemm, const struct shape *shape, struct slot **out) {
    for (int i = 0; i < N_SLOT; i++) {
        *out = &gemm->slots[i];
        if ((*out)->primitive && !memcmp(&(*out)->shape, shape, sizeof *shape)) return OK;
    }
    *out = &gemm->slots[gemm->next];
    gemm->next = (gemm->next + 1) % N_SLOT;
    slot_clear(*out);
    enum status status = slot_fill(gemm, *out, shape);
    if (status != OK) slot_clear(*out);
    return status;
}

enum status gemm_run(struct gemm *gemm, const struct gemm_args *args) {
    const struct shape shape = {
        .n_token = args->n_token,
        .n_row = args->n_row,
        .n_col = args->n_col,
        .x_stride = args->x_stride,
        .weight_stride = args->weight_stride,
        .out_stride = args->out_stride,
        .dtype = args->dtype,
        .out_dtype = args->out_dtype,
        .accumulate = args->accumulate,
        .bias = args->bias != NULL,
    };
    struct slot *slot;
    TRY(find_slot(gemm, &shape, &slot));
    DNNL(dnnl_memory_set_data_handle(slot->x, (void *)args->x));
    DNNL(dnnl_memory_set_data_handle(slot->weight, (void *)args->weight));
    DNNL(dnnl_memory_set_data_handle(slot->out, args->out));
    if (args->bias) DNNL(dnnl_memory_set_data_handle(slot->bias, (void *)args->bias));
    dnnl_exec_arg_t exec[] = {
        {DNNL_ARG_SRC, slot->x},
        {DNNL_ARG_WEIGHTS, slot->weight},
        {DNNL_ARG_DST, slot->out},
        {DNNL_ARG_BIAS, slot->bias},
    };
    DNNL(dnnl_primitive_execute(slot->primitive, gemm->stream, args->bias ? 4 : 3, exec));
    DNNL(dnnl_stream_wait(gemm->stream));
    return OK;
}

void gemm_close(struct gemm **gemm) {
    if (!*gemm) return;
    for (int i = 0; i < N_SLOT; i++) slot_clear(&(*gemm)->slots[i]);
    if ((*gemm)->stream) dnnl_stream_destroy((*gemm)->stream);
    if ((*gemm)->engine) dnnl_engine_destroy((*gemm)->engine);
    free(*gemm);
    *gemm = NULL;
}
