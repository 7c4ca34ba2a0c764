#include "launcher/embed_units.h"

#include <stdlib.h>
#include <string.h>

enum passage_kind embed_passage_kind(const struct options *o) {
    if (!o->passages) return o->task == TASK_LOCATE ? PASSAGES_PARAGRAPHS : PASSAGES_WHOLE;
    if (strcmp(o->passages, "document") == 0) return PASSAGES_WHOLE;
    return strcmp(o->passages, "paragraphs") == 0 ? PASSAGES_PARAGRAPHS : PASSAGES_GIVEN;
}

// The tokens of each passage as of a document of its own: prefix and specials around its text. Of
// token files they are those of the file alone.
static enum status tokenize_passages(const struct job *job, struct embed_document *d) {
    struct document_reader reader = job_reader(job);
    d->own_spans = malloc((size_t)(d->passages.n + 1) * sizeof *d->own_spans);
    if (!d->own_spans) FAIL(ERR_MEMORY, "no memory for %lld passages", (long long)d->passages.n);
    for (int64_t i = 0; i < d->passages.n; i++) {
        const struct text_passage *p = &d->passages.items[i];
        int64_t begin = d->own.n;
        if (p->byte_begin >= 0) {
            TRY(document_encode(&reader, d->text.text + p->byte_begin,
                                (size_t)(p->byte_end - p->byte_begin), &d->own));
        } else {
            TRY(document_add_ids(&d->own, d->text.tokens.id + p->token_begin,
                                 p->token_end - p->token_begin));
        }
        d->own_spans[i] = (struct span){begin, d->own.n - begin};
    }
    return OK;
}

static enum status cut_passages(const struct job *job, const char *name, struct embed_document *d) {
    const struct options *o = job->options;
    passages_frame(&d->text, &d->n_head, &d->n_tail);
    switch (embed_passage_kind(o)) {
    case PASSAGES_WHOLE:
        TRY(passages_whole(&d->text, &d->passages));
        break;
    case PASSAGES_PARAGRAPHS:
        TRY(passages_paragraphs(&d->text, name, &d->passages));
        break;
    case PASSAGES_GIVEN:
        TRY(passages_given(&d->text, name, &job->spans, (enum span_unit)o->span_unit,
                           &d->passages));
        break;
    }
    bool whole = job->vector_head.late_chunking || o->pooling == POOLING_NONE;
    return whole ? OK : tokenize_passages(job, d);
}

static enum status cut_windows(const struct options *o, struct embed_document *d) {
    int64_t frame = d->n_head + d->n_tail, body = d->text.tokens.n - frame;
    d->window = body;
    d->n_unit = 1;
    if (o->window == 0 || o->window >= d->text.tokens.n) return OK;
    d->window = o->window - frame;
    d->stride = o->stride > 0 ? o->stride : (d->window + 1) / 2;
    if (d->window < 1)
        FAIL(ERR_CONFIG,
             "document.window = %lld has no room for a document besides %lld specials and prefix: "
             "make it larger",
             (long long)o->window, (long long)frame);
    if (d->stride > d->window)
        FAIL(ERR_CONFIG,
             "document.window = %lld holds %lld tokens of a document besides %lld specials and "
             "prefix, and document.stride = %lld would leave some out",
             (long long)o->window, (long long)d->window, (long long)frame, (long long)d->stride);
    d->n_unit = 1 + ceil_div(body - d->window, d->stride);
    return OK;
}

// What is read, after the passages are known.
static enum status cut_units(const struct job *job, struct embed_document *d) {
    bool rows = job->options->pooling == POOLING_NONE || d->passages.n > 0;
    if (!d->own_spans && rows) return cut_windows(job->options, d);
    d->n_unit = d->own_spans ? d->passages.n : 0;
    return OK;
}

struct embed_unit embed_unit_get(struct embed_document *d, bool causal, int64_t index) {
    if (d->own_spans) {
        struct span own = d->own_spans[index];
        return (struct embed_unit){.document = d,
                                   .token = d->own.id,
                                   .body = own,
                                   .keep_end = own.length,
                                   .shift = own.start};
    }
    int64_t n = d->text.tokens.n, n_body = n - d->n_head - d->n_tail;
    bool last = index == d->n_unit - 1;
    int64_t begin = index * d->stride,
            end = begin + d->window < n_body ? begin + d->window : n_body;
    // Of an overlap [a, b) the earlier window keeps all, or the half that is nearer to it.
    int64_t before = begin + d->window - d->stride; // where the window before ends
    int64_t from = causal ? before : (begin + before) / 2;
    int64_t to = causal ? end : (begin + d->stride + end) / 2;
    int64_t n_unit = d->n_head + end - begin + d->n_tail;
    return (struct embed_unit){.document = d,
                               .token = d->text.tokens.id,
                               .n_head = d->n_head,
                               .n_tail = d->n_tail,
                               .body = {d->n_head + begin, end - begin},
                               .tail = n - d->n_tail,
                               .keep_begin = index == 0 ? 0 : d->n_head + from - begin,
                               .keep_end = last ? n_unit : d->n_head + to - begin,
                               .shift = begin};
}

int64_t embed_unit_length(const struct embed_unit *u) {
    return u->n_head + u->body.length + u->n_tail;
}

void embed_unit_copy(const struct embed_unit *u, int32_t *out) {
    size_t size = sizeof *out;
    memcpy(out, u->token, (size_t)u->n_head * size);
    memcpy(out + u->n_head, u->token + u->body.start, (size_t)u->body.length * size);
    memcpy(out + u->n_head + u->body.length, u->token + u->tail, (size_t)u->n_tail * size);
}

static enum status measure_units(const struct job *job, const char *name, struct embed_document *d,
                                 struct embed_needs *out) {
    int64_t context = job_context(job);
    bool none = job->options->pooling == POOLING_NONE;
    *out = (struct embed_needs){.n_row = none ? d->text.tokens.n : d->passages.n};
    for (int64_t i = 0; i < d->n_unit; i++) {
        struct embed_unit unit = embed_unit_get(d, job->checkpoint.spec.causal, i);
        int64_t n = embed_unit_length(&unit);
        out->all += n;
        if (n > out->longest) out->longest = n;
    }
    if (out->longest <= context) return OK;
    if (d->own_spans)
        FAIL(ERR_INPUT,
             "%s: a passage has %lld tokens but the model's context is %lld: shorten it, or set "
             "extension.method or model.context to lift the limit",
             name, (long long)out->longest, (long long)context);
    FAIL(ERR_INPUT,
         "%s needs %lld tokens but the model's context is %lld: set document.window to read it in "
         "windows of at most that, or extension.method or model.context to lift the limit",
         name, (long long)out->longest, (long long)context);
}

enum status embed_measure(const struct job *job, const char *name, const struct document_text *text,
                          struct embed_needs *out) {
    struct embed_document d = {.text = *text};
    enum status status = cut_passages(job, name, &d);
    if (status == OK) status = cut_units(job, &d);
    if (status == OK) status = measure_units(job, name, &d, out);
    d.text = (struct document_text){0};
    embed_document_close(&d);
    return status;
}

// A list of rank 0, of n items, on every rank.
static enum status share(struct comm *comm, void **list, int64_t n, size_t item_bytes) {
    if (comm->rank != 0 && !(*list = malloc((size_t)(n + 1) * item_bytes)))
        FAIL(ERR_MEMORY, "no memory for a list of %lld", (long long)n);
    return comm->ops->broadcast(comm, *list, n * (int64_t)item_bytes, 0);
}

static enum status share_cuts(struct comm *comm, struct embed_document *d) {
    int64_t counts[] = {d->n_head, d->n_tail, d->passages.n, d->own_spans != NULL, d->own.n};
    TRY(comm->ops->broadcast(comm, counts, sizeof counts, 0));
    d->n_head = counts[0];
    d->n_tail = counts[1];
    d->passages.n = counts[2];
    void *items = d->passages.items, *spans = d->own_spans, *id = d->own.id;
    enum status status = share(comm, &items, d->passages.n, sizeof *d->passages.items);
    d->passages.items = items;
    TRY(status);
    if (!counts[3]) return OK;
    status = share(comm, &spans, d->passages.n, sizeof *d->own_spans);
    d->own_spans = spans;
    TRY(status);
    status = share(comm, &id, counts[4], sizeof *d->own.id);
    d->own.id = id;
    d->own.n = counts[4];
    return status;
}

static enum status open_pool(const struct job *job, struct embed_document *d) {
    int64_t n_row = d->passages.n, n_hidden = job->checkpoint.spec.n_hidden;
    enum pooling pooling = job->vector_head.modules.pooling;
    if (pooling == POOLING_NONE)
        return pool_open(pooling, n_hidden, NULL, d->text.tokens.n, &d->pool);
    if (d->own_spans) return pool_open(pooling, n_hidden, d->own_spans, n_row, &d->pool);
    struct span *spans = malloc((size_t)(n_row + 1) * sizeof *spans);
    if (!spans) FAIL(ERR_MEMORY, "no memory for %lld passages", (long long)n_row);
    for (int64_t i = 0; i < n_row; i++) {
        const struct text_passage *p = &d->passages.items[i];
        spans[i] = (struct span){p->token_begin, p->token_end - p->token_begin};
    }
    enum status status = pool_open(pooling, n_hidden, spans, n_row, &d->pool);
    free(spans);
    return status;
}

enum status embed_document_open(const struct task *task, struct embed_document *out) {
    struct job *job = task->job;
    struct comm *host = comm_host(&job->comm);
    struct document_reader reader = job_reader(job);
    double begun = profile_begin(&job->profile, PHASE_TOKENIZE);
    *out = (struct embed_document){.task = task};
    TRY(document_text_open(&job->documents, task->document, &reader, host, &out->text));
    if (host->rank == 0) TRY(cut_passages(job, job->documents.items[task->document].name, out));
    TRY(share_cuts(host, out));
    TRY(cut_units(job, out));
    TRY(open_pool(job, out));
    profile_end(&job->profile, PHASE_TOKENIZE, begun);
    return OK;
}

enum status embed_questions_open(const struct job *job, struct embed_document *out) {
    const struct string_list *questions = &job->options->questions;
    struct document_reader reader = job_reader(job);
    *out = (struct embed_document){.n_unit = questions->n};
    reader.prefix = job->vector_head.query_prefix;
    out->passages.n = questions->n;
    out->own_spans = malloc((size_t)questions->n * sizeof *out->own_spans);
    if (!out->own_spans) FAIL(ERR_MEMORY, "no memory for %d questions", questions->n);
    for (int i = 0; i < questions->n; i++) {
        int64_t begin = out->own.n;
        enum status status =
            document_encode(&reader, questions->items[i], strlen(questions->items[i]), &out->own);
        if (status != OK) return status_context(status, "question '%.40s'", questions->items[i]);
        out->own_spans[i] = (struct span){begin, out->own.n - begin};
        if (out->own.n == begin) FAIL(ERR_CONFIG, "question %d is empty", i + 1);
    }
    return open_pool(job, out);
}

void embed_document_close(struct embed_document *d) {
    pool_close(&d->pool);
    free(d->own_spans);
    token_list_close(&d->own);
    passage_list_close(&d->passages);
    document_text_close(&d->text);
    *d = (struct embed_document){0};
}
