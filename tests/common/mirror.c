#include "tests/common/mirror.h"

#include <stdlib.h>

#include "kernels/host_memory.h"
#include "tests/common/op_memory.h"

// Host memory that an operation touches and its image; pointers that overlap share one.
struct region {
    char *begin, *end;
    void *image;
    bool written;
};

struct images {
    int n;
    struct region *regions;
};

static struct backend *device_of(const struct backend *backend) {
    return backend->state;
}

static int by_address(const void *a, const void *b) {
    const struct region *x = a, *y = b;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static void list_regions(const struct op_memory *m, struct images *out) {
    out->regions = calloc((size_t)m->n + 1, sizeof *out->regions);
    if (!out->regions) abort();
    for (int i = 0; i < m->n; i++) {
        const struct op_pointer *p = &m->pointers[i];
        char *at = op_pointer_get(p);
        if (!at || p->memory == MEMORY_HOST) continue;
        out->regions[out->n++] =
            (struct region){at, at + op_pointer_bytes(p), NULL, p->access != OP_READ};
    }
    qsort(out->regions, (size_t)out->n, sizeof *out->regions, by_address);
    int n = 0;
    for (int i = 0; i < out->n; i++) {
        struct region next = out->regions[i];
        struct region *last = n ? &out->regions[n - 1] : NULL;
        if (last && (next.begin < last->end || next.begin == last->begin)) {
            if (next.end > last->end) last->end = next.end;
            last->written |= next.written;
        } else {
            out->regions[n++] = next;
        }
    }
    out->n = n;
}

static enum status upload_all(struct backend *device, const struct op_memory *m,
                              struct images *images) {
    for (int i = 0; i < images->n; i++) {
        struct region *r = &images->regions[i];
        TRY(device->ops->alloc(device, r->end - r->begin, &r->image));
        TRY(device->ops->upload(device, r->image, r->begin, r->end - r->begin));
    }
    for (int i = 0; i < m->n; i++) {
        struct op_pointer *p = &m->pointers[i];
        char *at = op_pointer_get(p);
        if (!at || p->memory == MEMORY_HOST) continue;
        const struct region *r = images->regions;
        while (at < r->begin || (at >= r->end && at != r->begin)) r++;
        op_pointer_set(p, (char *)r->image + (at - r->begin));
    }
    return OK;
}

static enum status enter(struct backend *device, struct op_memory *m, struct images *images) {
    list_regions(m, images);
    return upload_all(device, m, images);
}

// After the operation: its outputs come back, also those of one that failed.
static enum status leave(struct backend *device, struct images *images, enum status status) {
    enum status synced = device->ops->sync(device);
    if (status == OK) status = synced;
    for (int i = 0; i < images->n; i++) {
        struct region *r = &images->regions[i];
        if (status == OK && r->written)
            status = device->ops->download(device, r->begin, r->image, r->end - r->begin);
    }
    if (status == OK) status = device->ops->sync(device);
    for (int i = 0; i < images->n; i++)
        if (images->regions[i].image) device->ops->free(device, images->regions[i].image);
    free(images->regions);
    return status;
}

#define MIRROR_OP(op, type)                                                                        \
    static enum status mirror_##op(struct backend *b, const struct type *args) {                   \
        struct backend *device = device_of(b);                                                     \
        struct type copy = *args;                                                                  \
        struct op_memory m = op_memory_##op(&copy);                                                \
        struct images images = {0};                                                                \
        enum status status = enter(device, &m, &images);                                           \
        if (status == OK) status = device->ops->op(device, &copy);                                 \
        op_memory_close(&m);                                                                       \
        return leave(device, &images, status);                                                     \
    }
OP_LIST(MIRROR_OP)
#undef MIRROR_OP

static void mirror_close(struct backend *b) {
    struct backend *device = device_of(b);
    if (!device) return;
    backend_close(device);
    free(device);
}

static int64_t mirror_scratch_bytes(const struct backend *b, const struct scratch_shape *shape) {
    return device_of(b)->ops->scratch_bytes(device_of(b), shape);
}

#define MIRROR_ENTRY(op, type) .op = mirror_##op,
static const struct kernel_ops mirror_ops = {
    .name = "mirror",
    .close = mirror_close,
    .alloc = host_alloc,
    .free = host_free,
    .upload = host_upload,
    .download = host_download,
    .copy = host_copy,
    .sync = host_sync,
    .load_weight = host_load_weight,
    .unload_weight = host_unload_weight,
    OP_LIST(MIRROR_ENTRY).scratch_bytes = mirror_scratch_bytes,
};
#undef MIRROR_ENTRY

void mirror_open(struct backend device, struct backend *out) {
    struct backend *owned = malloc(sizeof *owned);
    if (!owned) abort();
    *owned = device;
    *out = (struct backend){.ops = &mirror_ops,
                            .memory = MEMORY_HOST,
                            .bf16_products = device.bf16_products,
                            .state = owned};
}
