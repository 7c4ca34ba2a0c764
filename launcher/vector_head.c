#include "launcher/vector_head.h"

#include <math.h>
#include <stdlib.h>

#include "launcher/embed_units.h"

// The first token of a document is all that its passages would have in common.
enum status vector_head_check(const struct options *o, enum pooling pooling) {
    bool whole = o->late_chunking == TRUTH_YES || o->window > 0;
    if (pooling != POOLING_CLS || !whole || embed_passage_kind(o) == PASSAGES_WHOLE) return OK;
    const char *advice = o->window > 0 ? "leave out document.window, which reads them together"
                                       : "set task.late_chunking = false";
    FAIL(ERR_CONFIG,
         "%s would give the passages of a document the same vector, its first token's: %s, or set "
         "task.pooling = mean",
         o->pooling == POOLING_AUTO ? "the model's pooling, cls," : "task.pooling = cls", advice);
}

// Names as sentence-transformers' encode, encode_query and encode_document take them.
static enum status choose_prompts(const struct options *o, const struct checkpoint *checkpoint,
                                  struct vector_head *out) {
    static const char *const document[] = {"document", "passage", "corpus"};
    const struct sentence_prompts *prompts = &out->prompts;
    char names[256];
    bool locates = o->task == TASK_LOCATE;
    TRY(sentence_prompts_open(checkpoint->folder, &out->prompts));
    const char *found = locates ? NULL : prompts->standard;
    for (int i = 0; locates && !found && i < 3; i++)
        found = sentence_prompts_find(prompts, document[i]);
    if (o->prompt && !(found = sentence_prompts_find(prompts, o->prompt)))
        FAIL(ERR_CONFIG, "task.prompt = %.60s is none of the prompts of %s (%s)", o->prompt,
             o->model_path, sentence_prompts_names(prompts, names, sizeof names));
    out->prefix = o->prefix ? o->prefix : found;
    out->query_prefix = o->query_prefix ? o->query_prefix : sentence_prompts_find(prompts, "query");
    if (out->prefix && !*out->prefix) out->prefix = NULL;
    if (!locates || (out->query_prefix && !*out->query_prefix)) out->query_prefix = NULL;
    return OK;
}

enum status vector_head_open(const struct options *o, const struct checkpoint *checkpoint,
                             struct vector_head *out) {
    int64_t n_hidden = checkpoint->spec.n_hidden;
    struct sentence_modules *modules = &out->modules;
    TRY(sentence_modules_open(checkpoint, (enum pooling)o->pooling, modules));
    TRY(vector_head_check(o, modules->pooling));
    TRY(choose_prompts(o, checkpoint, out));
    TRY(sentence_max_tokens(checkpoint->folder, &out->max_tokens));
    bool prompt = out->prefix || out->query_prefix;
    if (modules->without_prompt && prompt && modules->pooling != POOLING_LAST &&
        o->pooling == POOLING_AUTO)
        FAIL(ERR_CONFIG,
             "%s pools without the prompt (include_prompt), which is not supported: set %s to "
             "nothing, or task.pooling = %s to pool its tokens, too",
             o->model_path, out->prefix ? "task.prefix" : "task.query_prefix",
             pooling_name(modules->pooling));
    out->normalise = o->normalise == TRUTH_AUTO ? modules->normalise : o->normalise == TRUTH_YES;
    bool own = modules->pooling == POOLING_CLS && embed_passage_kind(o) != PASSAGES_WHOLE;
    out->late_chunking = o->late_chunking == TRUTH_AUTO ? !own : o->late_chunking == TRUTH_YES;
    out->widest = n_hidden;
    out->n_out = sentence_modules_width(modules, n_hidden);
    for (int i = 0; i < modules->n_dense; i++) {
        int64_t width = modules->dense[i].weight.n_row;
        if (width > out->widest) out->widest = width;
    }
    return OK;
}

int64_t vector_head_tile(const struct vector_head *head) {
    int64_t n = POOL_TILE_BYTES / (head->widest * (int64_t)sizeof(double));
    return n > 0 ? n : 1;
}

static int64_t tile_bytes(const struct vector_head *head) {
    return vector_head_tile(head) * head->widest * (int64_t)sizeof(float);
}

int64_t vector_head_bytes(const struct vector_head *head) {
    int64_t bytes = head->modules.n_dense ? 2 * tile_bytes(head) : 0;
    for (int i = 0; i < head->modules.n_dense; i++) {
        const struct weight *w = &head->modules.dense[i].weight;
        bytes += w->n_row * w->row_bytes;
    }
    return bytes;
}

enum status vector_head_load(struct vector_head *head, struct backend *backend) {
    if (head->modules.n_dense == 0) return OK;
    head->backend = backend;
    TRY(backend->ops->alloc(backend, tile_bytes(head), &head->x));
    TRY(backend->ops->alloc(backend, tile_bytes(head), &head->y));
    head->host = malloc((size_t)tile_bytes(head));
    if (!head->host) FAIL(ERR_MEMORY, "no memory for a tile of vectors");
    for (int i = 0; i < head->modules.n_dense; i++)
        TRY(backend->ops->load_weight(backend, &head->modules.dense[i].weight, &head->weight[i]));
    return OK;
}

void vector_head_close(struct vector_head *head) {
    struct backend *backend = head->backend;
    for (int i = 0; backend && i < head->modules.n_dense; i++)
        if (head->weight[i].data) backend->ops->unload_weight(backend, &head->weight[i]);
    if (backend && head->y) backend->ops->free(backend, head->y);
    if (backend && head->x) backend->ops->free(backend, head->x);
    free(head->host);
    sentence_prompts_close(&head->prompts);
    sentence_modules_close(&head->modules);
    *head = (struct vector_head){0};
}

// out[n, n_out] = activation(in[n, n_in] W^T + bias); both in host memory.
static enum status apply_dense(struct vector_head *head, int i, const float *in, int64_t n,
                               float *out) {
    const struct sentence_dense *dense = &head->modules.dense[i];
    const struct weight *w = &head->weight[i];
    struct backend *b = head->backend;
    TRY(b->ops->upload(b, head->x, in, n * w->n_col * (int64_t)sizeof *in));
    TRY(b->ops->matmul(b, &(struct matmul_args){.x = head->x,
                                                .x_dtype = DTYPE_F32,
                                                .x_stride = w->n_col,
                                                .n_token = n,
                                                .weight = *w,
                                                .out = head->y,
                                                .out_dtype = DTYPE_F32,
                                                .out_stride = w->n_row}));
    TRY(b->ops->download(b, out, head->y, n * w->n_row * (int64_t)sizeof *out));
    TRY(b->ops->sync(b));
    for (int64_t r = 0; dense->bias && r < n; r++)
        for (int64_t j = 0; j < w->n_row; j++) out[r * w->n_row + j] += dense->bias[j];
    sentence_activate(dense->activation, out, n * w->n_row);
    return OK;
}

static void normalise(float *row, int64_t n) {
    double square = 0;
    for (int64_t j = 0; j < n; j++) square += (double)row[j] * row[j];
    if (square == 0) return;
    double length = sqrt(square);
    for (int64_t j = 0; j < n; j++) row[j] = (float)(row[j] / length);
}

enum status vector_head_rows(struct vector_head *head, struct pool *pool, struct comm *comm,
                             int64_t begin, int64_t n, float *out) {
    int n_dense = head->modules.n_dense;
    TRY(pool_rows(pool, comm, begin, n, n_dense && comm->rank == 0 ? head->host : out));
    if (comm->rank != 0) return OK;
    for (int i = 0; i < n_dense; i++)
        TRY(apply_dense(head, i, head->host, n, i + 1 < n_dense ? head->host : out));
    for (int64_t i = 0; head->normalise && i < n; i++)
        normalise(out + i * head->n_out, head->n_out);
    return OK;
}
