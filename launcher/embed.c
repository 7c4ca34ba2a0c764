#include "launcher/embed.h"

#include <stdlib.h>
#include <string.h>

#include "launcher/embed_output.h"
#include "launcher/progress.h"
#include "launcher/stop.h"

// Units that are read together, one behind the other.
struct batch {
    int32_t *token; // [capacity]
    int64_t n, capacity;
    int n_unit, unit_capacity;
    struct embed_unit *units;
    int64_t *end; // [n_unit] of each unit in the batch
    int n_taken;  // units whose states have all come
};

struct embedder {
    struct job *job;
    struct batch batch;
    struct embed_output output;
    struct progress progress;
    struct embed_document *first, **last; // in order: not written yet; where to put the next
};

static int64_t min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// States of this rank's tokens of the batch, ascending: to the pools of their documents.
static enum status take_states(void *user, const int64_t *position, int64_t n, const float *state) {
    struct embedder *e = user;
    struct batch *b = &e->batch;
    int64_t n_hidden = e->job->checkpoint.spec.n_hidden;
    for (int64_t i = 0, next; i < n; i = next) {
        while (position[i] >= b->end[b->n_taken]) b->n_taken++;
        const struct embed_unit *unit = &b->units[b->n_taken];
        int64_t begin = b->end[b->n_taken] - embed_unit_length(unit);
        while (i < n && position[i] < begin + unit->keep_begin) i++;
        for (next = i; next < n && position[next] < begin + unit->keep_end; next++) continue;
        TRY(pool_add(&unit->document->pool, position + i, next - i, unit->shift - begin,
                     state + i * n_hidden));
        while (next < n && position[next] < b->end[b->n_taken]) next++;
    }
    return OK;
}

static void show_progress(void *user, int64_t tokens_done) {
    struct embedder *e = user;
    progress_update(&e->progress, tokens_done);
}

static enum status read_batch(struct embedder *e) {
    struct job *job = e->job;
    struct batch *b = &e->batch;
    struct session_facts facts;
    double begun = cluster_seconds();
    b->n_taken = 0;
    TRY(session_encode(job->session, &(struct encode_args){.token = b->token,
                                                           .n = b->n,
                                                           .n_document = b->n_unit,
                                                           .document_end = b->end,
                                                           .states = take_states,
                                                           .progress = show_progress,
                                                           .user = e}));
    double seconds = cluster_seconds() - begun;
    session_get_facts(job->session, &facts);
    e->progress.base += b->n;
    job->tokens_read += b->n;
    job->own_tokens += facts.tokens;
    job->embedded.batches++;
    for (int i = 0; i < b->n_unit; i++) {
        struct embed_document *document = b->units[i].document;
        int64_t n = embed_unit_length(&b->units[i]);
        document->n_done++;
        document->packed |= b->n_unit > 1;
        document->seconds += seconds * (double)n / (double)b->n;
        if (n > job->longest) job->longest = n;
        int64_t max_tokens = job->vector_head.max_tokens;
        job->embedded.longer += max_tokens > 0 && n > max_tokens;
    }
    b->n = b->n_unit = 0;
    return OK;
}

static void close_first(struct embedder *e) {
    struct embed_document *document = e->first;
    e->first = document->next;
    if (!e->first) e->last = &e->first;
    embed_document_close(document);
    free(document);
}

// Reads the batch, and writes the documents that are complete with it.
static enum status flush(struct embedder *e) {
    if (e->batch.n_unit > 0) TRY(read_batch(e));
    while (e->first && e->first->n_done == e->first->n_unit) {
        TRY(embed_output_add(&e->output, e->first));
        close_first(e);
    }
    return embed_output_commit(&e->output);
}

static enum status add_unit(struct embedder *e, const struct embed_unit *unit) {
    struct batch *b = &e->batch;
    int64_t n = embed_unit_length(unit);
    int64_t limit = min(e->job->options->batch_tokens, b->capacity);
    bool fits = session_packs(e->job->session) && b->n + n <= limit;
    if (b->n_unit > 0) // each is read as if alone, whose length may set the frequencies
        fits &=
            model_spec_rotates_alike(&e->job->checkpoint.spec, n, embed_unit_length(&b->units[0]));
    if (b->n_unit > 0 && !fits) TRY(flush(e));
    if (n > b->capacity)
        FAIL(ERR_INTERNAL, "a unit of %lld tokens where %lld were planned", (long long)n,
             (long long)b->capacity);
    if (b->n_unit == b->unit_capacity) {
        int capacity = 2 * b->unit_capacity + 64;
        void *units = realloc(b->units, (size_t)capacity * sizeof *b->units);
        if (units) b->units = units;
        void *end = realloc(b->end, (size_t)capacity * sizeof *b->end);
        if (end) b->end = end;
        if (!units || !end) FAIL(ERR_MEMORY, "no memory for a batch of %d", capacity);
        b->unit_capacity = capacity;
    }
    embed_unit_copy(unit, b->token + b->n);
    b->n += n;
    b->units[b->n_unit] = *unit;
    b->end[b->n_unit++] = b->n;
    return OK;
}

static enum status add_units(struct embedder *e, struct embed_document *document) {
    bool causal = e->job->checkpoint.spec.causal;
    int64_t n_read = 0;
    for (int64_t i = 0; i < document->n_unit; i++) {
        struct embed_unit unit = embed_unit_get(document, causal, i);
        n_read += embed_unit_length(&unit);
        TRY(add_unit(e, &unit));
    }
    int64_t n_again = n_read - document->text.tokens.n; // windows overlap
    if (!document->own_spans && n_again > 0) e->job->tokens_recomputed += n_again;
    return OK;
}

static enum status add_document(struct embedder *e, const struct task *task) {
    struct embed_document *document = malloc(sizeof *document);
    if (!document) FAIL(ERR_MEMORY, "no memory for a document");
    enum status status = embed_document_open(task, document);
    *e->last = document;
    e->last = &document->next;
    TRY(status);
    return add_units(e, document);
}

static enum status read_questions(struct embedder *e) {
    struct embed_document questions = {0};
    enum status status = OK;
    TRY_OR(done, embed_questions_open(e->job, &questions));
    TRY_OR(done, add_units(e, &questions));
    TRY_OR(done, flush(e));
    TRY_OR(done, locate_take_questions(&e->output, &questions));
done:
    embed_document_close(&questions);
    return status;
}

static enum status read_all(struct embedder *e, const struct task *tasks) {
    struct job *job = e->job;
    int64_t n_left = 0, n_token = 0;
    char name[64];
    for (int i = 0; i < job->documents.n; i++) {
        if (task_is_finished(&tasks[i])) continue;
        n_token += job->documents.items[i].n_token;
        n_left++;
    }
    if (n_left == 0) return OK;
    snprintf(name, sizeof name, "%lld document%s", (long long)n_left, n_left == 1 ? "" : "s");
    e->batch.token = malloc((size_t)e->batch.capacity * sizeof *e->batch.token);
    if (!e->batch.token) FAIL(ERR_MEMORY, "no memory for a batch");
    if (job->options->task == TASK_LOCATE) TRY(read_questions(e));
    e->progress = progress_begin(job, name, n_token);
    for (int i = 0; i < job->documents.n; i++) {
        if (task_is_finished(&tasks[i])) continue;
        TRY(stop_if_wanted(job));
        TRY(add_document(e, &tasks[i]));
    }
    TRY(flush(e));
    progress_end(&e->progress);
    return OK;
}

enum status embed_documents(struct job *job, const struct task *tasks) {
    struct embedder e = {.job = job, .batch.capacity = job->session_options.max_tokens};
    enum status status = embed_output_open(job, tasks[0].results, &e.output);
    e.last = &e.first;
    if (status == OK) status = read_all(&e, tasks);
    while (e.first) close_first(&e);
    free(e.batch.token);
    free(e.batch.units);
    free(e.batch.end);
    embed_output_close(&e.output);
    return status;
}

// What the documents of a job need, text by text.
struct needs {
    const struct job *job;
    int64_t longest, all; // tokens
    int64_t batch, n_row; // tokens and rows of the batch that a document would join
    int64_t most_rows;    // of a batch
};

static enum status measure_text(void *user, const char *name, const struct document_text *text) {
    struct needs *needs = user;
    struct embed_needs own;
    TRY(embed_measure(needs->job, name, text, &own));
    if (own.longest > needs->longest) needs->longest = own.longest;
    needs->all += own.all;
    if (needs->batch + own.all > needs->job->options->batch_tokens) needs->batch = needs->n_row = 0;
    needs->batch += own.all;
    needs->n_row += own.n_row;
    if (needs->n_row > needs->most_rows) needs->most_rows = needs->n_row;
    return OK;
}

static enum status measure_questions(struct needs *needs) {
    struct embed_document questions = {0};
    int64_t context = job_context(needs->job);
    enum status status = embed_questions_open(needs->job, &questions);
    for (int64_t i = 0; status == OK && i < questions.n_unit; i++) {
        int64_t n = questions.own_spans[i].length;
        if (n > needs->longest) needs->longest = n;
        if (n > context)
            status = status_fail(ERR_INPUT, __FILE__,
                                 "question %lld has %lld tokens but the model's context is %lld",
                                 (long long)i + 1, (long long)n, (long long)context);
    }
    needs->all += questions.own.n;
    embed_document_close(&questions);
    return status;
}

static enum status check_span_names(const struct job *job) {
    for (int64_t i = 0; i < job->spans.n; i++) {
        const struct span_line *line = &job->spans.lines[i];
        bool found = line->document == NULL;
        for (int d = 0; d < job->documents.n && !found; d++)
            found = strcmp(job->documents.items[d].name, line->document) == 0;
        if (!found)
            FAIL(ERR_INPUT, "%s:%d: '%.80s' is none of the job's documents", job->spans.name,
                 line->line, line->document);
    }
    return OK;
}

enum status embed_plan(struct job *job, int64_t *longest, int64_t *bytes) {
    const struct options *o = job->options;
    struct needs needs = {.job = job, .longest = 1};
    struct document_reader reader = job_reader(job);
    reader.look = measure_text;
    reader.user = &needs;
    if (embed_passage_kind(o) == PASSAGES_GIVEN) TRY(span_file_open(o->passages, &job->spans));
    TRY(document_set_open(o, &reader, &job->documents));
    TRY(check_span_names(job));
    if (o->task == TASK_LOCATE) TRY(measure_questions(&needs));
    int64_t batch = min(o->batch_tokens, needs.all);
    *longest = batch > needs.longest ? batch : needs.longest;
    // Sums or states, which grow by half, of this rank's share; tiles of sums or states, of vectors
    // and between the two.
    int64_t width = job->checkpoint.spec.n_hidden, row = width * (int64_t)sizeof(double);
    if (o->pooling == POOLING_NONE) row = width * (int64_t)sizeof(float);
    *bytes = ceil_div(needs.most_rows * row * 3 / 2, job->comm.size) + 3 * POOL_TILE_BYTES +
             *longest * (int64_t)sizeof(int32_t);
    return OK;
}
