#include "tests/common/fake_device.h"

#include <stdio.h>
#include <stdlib.h>

#include "dist/cluster.h"
#include "tests/common/op_memory.h"

// No address of a process has this bit: loads and stores there fault.
#define DEVICE_BIT ((uintptr_t)1 << 60)
#define FAKE_BYTES ((int64_t)16 << 30)

struct block { // allocated memory, and where the device says it is
    char *at;
    int64_t bytes;
};

// A copy that is queued: a download until sync(), a transport's until its ticket is asked for.
struct pending {
    void *to;
    const void *from;
    int64_t bytes;
    bool owned; // `from` is a copy made when it was queued
};

struct queue {
    struct pending *items;
    int n, capacity;
};

// An operation with the host's addresses. Of a kept step it owns its arguments and host tables.
struct call {
    enum status (*run)(struct backend *host, const void *args);
    void *args;
    struct op_memory memory; // of the arguments
    void **tables;
    int n_table, table_capacity;
};

struct step {
    struct call *calls;
    int n, capacity;
    bool keeping; // between begin and end
    bool kept;
};

struct fake {
    struct backend host;
    struct block *blocks;
    int n_block, block_capacity;
    struct queue downloads, copies;
    struct step step;
    int64_t n_ticket, n_ended; // copies queued and done so far
    int phase;                 // of what is queued now; -1: none
    double phase_begun;
    int64_t bytes, peak_bytes; // allocated
};

static struct fake *fake_of(const struct backend *backend) {
    return backend->state;
}

static _Noreturn void complain(const char *op, const char *what, const char *problem,
                               const void *pointer) {
    fprintf(stderr, "fake device: %s: %s %s (%p)\n", op, what, problem, pointer);
    abort();
}

// What would wait for the device, or change its memory, cannot be part of a step.
static void forbid_in_step(const struct backend *b, const char *op) {
    if (fake_of(b)->step.keeping) complain(op, "the call", "is made in a step that is kept", b);
}

static void *grow(void *items, int n, int *capacity, size_t item_bytes) {
    if (n < *capacity) return items;
    *capacity = *capacity ? 2 * *capacity : 64;
    items = realloc(items, (size_t)*capacity * item_bytes);
    if (!items) abort();
    return items;
}

static bool is_device(const void *pointer) {
    return (uintptr_t)pointer & DEVICE_BIT;
}

// The host's address of a device range, which must lie in one block.
static void *translate(const struct backend *b, const char *op, const char *what,
                       const void *pointer, int64_t bytes) {
    const struct fake *f = fake_of(b);
    char *at = (char *)((uintptr_t)pointer & ~DEVICE_BIT);
    if (!pointer && bytes == 0) return NULL;
    if (!is_device(pointer)) complain(op, what, "is host memory where device memory is due", at);
    for (int i = 0; i < f->n_block; i++) {
        const struct block *block = &f->blocks[i];
        if (at < block->at || at > block->at + block->bytes) continue;
        if (bytes <= block->at + block->bytes - at) return at;
    }
    if (bytes == 0) return at;
    fprintf(stderr, "fake device: %lld bytes\n", (long long)bytes);
    complain(op, what, "exceeds what was allocated", pointer);
}

static void check_host(const char *op, const char *what, const void *pointer) {
    if (is_device(pointer))
        complain(op, what, "is device memory where host memory is due", pointer);
}

static void enqueue(struct queue *queue, struct pending item) {
    queue->items = grow(queue->items, queue->n, &queue->capacity, sizeof *queue->items);
    queue->items[queue->n++] = item;
}

// Does the first n copies of a queue.
static void perform(struct queue *queue, int n) {
    for (int i = 0; i < n; i++) {
        struct pending *item = &queue->items[i];
        if (item->bytes > 0) memmove(item->to, item->from, (size_t)item->bytes);
        if (item->owned) free((void *)item->from);
    }
    queue->n -= n;
    if (queue->n > 0)
        memmove(queue->items, queue->items + n, (size_t)queue->n * sizeof *queue->items);
}

static enum status add_block(struct backend *b, int64_t bytes, void **out) {
    struct fake *f = fake_of(b);
    forbid_in_step(b, "alloc");
    TRY(f->host.ops->alloc(&f->host, bytes, out));
    memset(*out, 0xff, (size_t)bytes); // what nobody wrote is not a number
    f->blocks = grow(f->blocks, f->n_block, &f->block_capacity, sizeof *f->blocks);
    f->blocks[f->n_block++] = (struct block){*out, bytes};
    f->bytes += bytes;
    if (f->bytes > f->peak_bytes) f->peak_bytes = f->bytes;
    *out = (char *)*out + DEVICE_BIT;
    return OK;
}

static void remove_block(struct backend *b, const char *op, const void *pointer) {
    struct fake *f = fake_of(b);
    forbid_in_step(b, op);
    char *at = (char *)((uintptr_t)pointer & ~DEVICE_BIT);
    if (!pointer) return;
    for (int i = 0; i < f->n_block; i++) {
        if (f->blocks[i].at != at || !is_device(pointer)) continue;
        f->host.ops->free(&f->host, at);
        f->bytes -= f->blocks[i].bytes;
        f->blocks[i] = f->blocks[--f->n_block];
        return;
    }
    complain(op, "the pointer", "was not allocated here", pointer);
}

static void close_call(struct call *call) {
    for (int i = 0; i < call->n_table; i++) free(call->tables[i]);
    free(call->tables);
    op_memory_close(&call->memory);
    free(call->args);
}

static void forget_step(struct step *step) {
    for (int i = 0; i < step->n; i++) close_call(&step->calls[i]);
    step->n = 0;
    step->keeping = step->kept = false;
}

static void fake_close(struct backend *b) {
    struct fake *f = fake_of(b);
    if (!f) return;
    // What is still queued may name memory that is gone: it is dropped.
    for (int i = 0; i < f->downloads.n; i++) free((void *)f->downloads.items[i].from);
    for (int i = 0; i < f->n_block; i++) f->host.ops->free(&f->host, f->blocks[i].at);
    forget_step(&f->step);
    free(f->step.calls);
    free(f->downloads.items);
    free(f->copies.items);
    free(f->blocks);
    backend_close(&f->host);
    free(f);
}

static enum status fake_alloc(struct backend *b, int64_t bytes, void **out) {
    return add_block(b, bytes, out);
}

static void fake_free(struct backend *b, void *pointer) {
    remove_block(b, "free", pointer);
}

static void *duplicate(const void *from, int64_t bytes) {
    void *copy = malloc(bytes > 0 ? (size_t)bytes : 1);
    if (!copy) abort();
    if (bytes > 0) memcpy(copy, from, (size_t)bytes);
    return copy;
}

static void *keep_table(struct call *call, const void *from, int64_t bytes) {
    call->tables = grow(call->tables, call->n_table, &call->table_capacity, sizeof *call->tables);
    return call->tables[call->n_table++] = duplicate(from, bytes);
}

// Does the operation now, or keeps it with copies of its host tables, which may change after this.
static enum status perform_or_keep(struct backend *b, struct call *call) {
    struct step *step = &fake_of(b)->step;
    if (!step->keeping) {
        enum status status = call->run(&fake_of(b)->host, call->args);
        close_call(call);
        return status;
    }
    for (int i = 0; i < call->memory.n; i++) {
        struct op_pointer *p = &call->memory.pointers[i];
        const void *table = op_pointer_get(p);
        if (p->memory == MEMORY_HOST && table && p->access == OP_READ)
            op_pointer_set(p, keep_table(call, table, op_pointer_bytes(p)));
    }
    step->calls = grow(step->calls, step->n, &step->capacity, sizeof *step->calls);
    step->calls[step->n++] = *call;
    return OK;
}

struct move_args {
    void *to;
    const void *from;
    int64_t bytes;
};

static enum status run_move(struct backend *host, const void *args) {
    const struct move_args *move = args;
    (void)host;
    if (move->bytes > 0 && move->to != move->from)
        memcpy(move->to, move->from, (size_t)move->bytes);
    return OK;
}

static enum status fake_upload(struct backend *b, void *to, const void *host, int64_t bytes) {
    check_host("upload", "the source", host);
    struct move_args move = {translate(b, "upload", "the destination", to, bytes), host, bytes};
    struct call call = {.run = run_move};
    if (fake_of(b)->step.keeping) move.from = keep_table(&call, host, bytes);
    call.args = duplicate(&move, sizeof move);
    return perform_or_keep(b, &call);
}

// The host's buffer holds nothing of use before sync().
static enum status fake_download(struct backend *b, void *host, const void *from, int64_t bytes) {
    forbid_in_step(b, "download");
    check_host("download", "the destination", host);
    const void *at = translate(b, "download", "the source", from, bytes);
    if (bytes == 0) return OK;
    void *snapshot = malloc((size_t)bytes);
    if (!snapshot) abort();
    memcpy(snapshot, at, (size_t)bytes);
    memset(host, 0xff, (size_t)bytes);
    enqueue(&fake_of(b)->downloads, (struct pending){host, snapshot, bytes, true});
    return OK;
}

static enum status fake_copy(struct backend *b, void *to, const void *from, int64_t bytes) {
    struct move_args move = {translate(b, "copy", "the destination", to, bytes),
                             translate(b, "copy", "the source", from, bytes), bytes};
    struct call call = {.run = run_move, .args = duplicate(&move, sizeof move)};
    return perform_or_keep(b, &call);
}

static void fake_phase(struct backend *b, int phase) {
    struct fake *f = fake_of(b);
    if (f->step.keeping) return;
    double now = cluster_seconds();
    if (f->phase >= 0 && b->phase_seconds) b->phase_seconds[f->phase] += now - f->phase_begun;
    f->phase = phase;
    f->phase_begun = now;
}

static enum status fake_device_memory(struct backend *b, struct device_memory *out) {
    struct fake *f = fake_of(b);
    *out = (struct device_memory){
        .available = FAKE_BYTES - f->bytes, .total = FAKE_BYTES, .peak = f->peak_bytes};
    return OK;
}

static enum status fake_sync(struct backend *b) {
    struct fake *f = fake_of(b);
    forbid_in_step(b, "sync");
    fake_phase(b, -1);
    enum status status = b->while_waiting ? b->while_waiting(b->waiting_user) : OK;
    perform(&f->downloads, f->downloads.n);
    return status;
}

static enum status fake_load_weight(struct backend *b, const struct weight *host,
                                    struct weight *out) {
    struct weight copy = *host;
    struct op_memory m = op_memory_embed(&(struct embed_args){.table = copy});
    int64_t bytes = m.pointers[0].bytes, scale_bytes = m.pointers[1].bytes;
    op_memory_close(&m);
    void *data = NULL, *scale = NULL;
    TRY(add_block(b, bytes, &data));
    TRY(fake_upload(b, data, host->data, bytes));
    if (host->scale) {
        TRY(add_block(b, scale_bytes, &scale));
        TRY(fake_upload(b, scale, host->scale, scale_bytes));
    }
    *out = copy;
    out->data = data;
    out->scale = scale;
    return OK;
}

static void fake_unload_weight(struct backend *b, struct weight *weight) {
    remove_block(b, "unload_weight", weight->data);
    remove_block(b, "unload_weight", weight->scale);
    *weight = (struct weight){0};
}

static int64_t fake_scratch_bytes(const struct backend *b, const struct scratch_shape *shape) {
    return fake_of(b)->host.ops->scratch_bytes(&fake_of(b)->host, shape);
}

// Replaces the pointers of an operation's arguments by the host's.
static void enter(struct backend *b, const char *op, struct op_memory *m) {
    for (int i = 0; i < m->n; i++) {
        struct op_pointer *p = &m->pointers[i];
        void *pointer = op_pointer_get(p);
        if (!pointer && p->bytes > 0 && p->memory == MEMORY_HOST)
            complain(op, p->name, "is missing", pointer);
        if (!pointer) continue; // optional
        if (p->memory == MEMORY_HOST)
            check_host(op, p->name, pointer);
        else
            op_pointer_set(p, translate(b, op, p->name, pointer, op_pointer_bytes(p)));
    }
}

#define FAKE_OP(op, type)                                                                          \
    static enum status run_##op(struct backend *host, const void *args) {                          \
        return host->ops->op(host, args);                                                          \
    }                                                                                              \
    static enum status fake_##op(struct backend *b, const struct type *args) {                     \
        struct call call = {.run = run_##op, .args = duplicate(args, sizeof *args)};               \
        call.memory = op_memory_##op(call.args);                                                   \
        enter(b, #op, &call.memory);                                                               \
        return perform_or_keep(b, &call);                                                          \
    }
OP_LIST(FAKE_OP)
#undef FAKE_OP

static enum status fake_begin(struct backend *b) {
    forget_step(&fake_of(b)->step);
    fake_of(b)->step.keeping = true;
    return OK;
}

static enum status fake_end(struct backend *b, bool keep) {
    struct step *step = &fake_of(b)->step;
    if (!keep) forget_step(step);
    step->kept = keep;
    step->keeping = false;
    return OK;
}

static enum status fake_launch(struct backend *b) {
    struct step *step = &fake_of(b)->step;
    enum status status = OK;
    if (!step->kept) complain("launch", "the step", "is not there", b);
    for (int i = 0; i < step->n && status == OK; i++)
        status = step->calls[i].run(&fake_of(b)->host, step->calls[i].args);
    forget_step(step);
    return status;
}

static void fake_forget(struct backend *b) {
    forget_step(&fake_of(b)->step);
}

static const struct step_ops fake_steps = {
    .begin = fake_begin, .end = fake_end, .launch = fake_launch, .forget = fake_forget};

static enum status fake_pin(struct backend *b, int64_t bytes, void **host) {
    return fake_of(b)->host.ops->alloc(&fake_of(b)->host, bytes, host);
}

static void fake_unpin(struct backend *b, void *host) {
    if (host) check_host("unpin", "the pointer", host);
    fake_of(b)->host.ops->free(&fake_of(b)->host, host);
}

// Work is done when its call returns.
static enum status fake_after_work(struct backend *b) {
    forbid_in_step(b, "copies.after_work");
    return OK;
}

static void end_copies(struct fake *f, int64_t upto) {
    int n = (int)(upto - f->n_ended);
    if (n <= 0) return;
    perform(&f->copies, n);
    f->n_ended = upto;
}

static enum status fake_before_work(struct backend *b) {
    struct fake *f = fake_of(b);
    forbid_in_step(b, "copies.before_work");
    end_copies(f, f->n_ticket);
    return OK;
}

static enum status queue_copy(struct fake *f, void *to, const void *from, int64_t bytes,
                              int64_t *ticket) {
    enqueue(&f->copies, (struct pending){to, from, bytes, false});
    *ticket = ++f->n_ticket;
    end_copies(f, f->n_ticket - COPY_TICKETS + 1);
    return OK;
}

static enum status fake_out(struct backend *b, void *host, const void *from, int64_t bytes,
                            int64_t *ticket) {
    check_host("copies.out", "the destination", host);
    from = translate(b, "copies.out", "the source", from, bytes);
    return queue_copy(fake_of(b), host, from, bytes, ticket);
}

static enum status fake_in(struct backend *b, void *to, const void *host, int64_t bytes,
                           int64_t *ticket) {
    check_host("copies.in", "the source", host);
    to = translate(b, "copies.in", "the destination", to, bytes);
    return queue_copy(fake_of(b), to, host, bytes, ticket);
}

// Each question that is answered by no ends one copy.
static enum status fake_ended(struct backend *b, int64_t ticket, bool *out) {
    struct fake *f = fake_of(b);
    *out = ticket <= f->n_ended;
    if (!*out) end_copies(f, f->n_ended + 1);
    return OK;
}

static const struct copy_ops fake_copies = {
    .pin = fake_pin,
    .unpin = fake_unpin,
    .after_work = fake_after_work,
    .before_work = fake_before_work,
    .out = fake_out,
    .in = fake_in,
    .ended = fake_ended,
};

#define FAKE_ENTRY(op, type) .op = fake_##op,
static const struct kernel_ops fake_ops = {
    .name = "fake",
    .close = fake_close,
    .alloc = fake_alloc,
    .free = fake_free,
    .upload = fake_upload,
    .download = fake_download,
    .copy = fake_copy,
    .sync = fake_sync,
    .copies = &fake_copies,
    .steps = &fake_steps,
    .phase = fake_phase,
    .device_memory = fake_device_memory,
    .load_weight = fake_load_weight,
    .unload_weight = fake_unload_weight,
    OP_LIST(FAKE_ENTRY).scratch_bytes = fake_scratch_bytes,
};
#undef FAKE_ENTRY

void fake_device_open(struct backend host, struct backend *out) {
    struct fake *fake = calloc(1, sizeof *fake);
    if (!fake) abort();
    fake->host = host;
    fake->phase = -1;
    *out = (struct backend){.ops = &fake_ops,
                            .memory = MEMORY_DEVICE,
                            .bf16_products = host.bf16_products,
                            .device_name = "fake device",
                            .state = fake};
}
