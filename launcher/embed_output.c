#include "launcher/embed_output.h"

#include <stdlib.h>
#include <string.h>

static enum status open_vectors(struct embed_output *output) {
    const struct job *job = output->job;
    const struct results *results = output->results;
    int64_t width = job->vector_head.n_out;
    char *path;
    if (asprintf(&path, "%s/vectors.npy", job->options->output) < 0)
        FAIL(ERR_MEMORY, "no memory for a path");
    enum status status = results->n_row > 0
                             ? npy_continue(path, width, results->n_row, &output->vectors)
                             : npy_create(path, width, &output->vectors);
    free(path);
    return status;
}

enum status embed_output_open(struct job *job, struct results *results, struct embed_output *out) {
    *out = (struct embed_output){.job = job, .results = results};
    if (job->comm.rank != 0) return OK;
    TRY(vector_head_load(&job->vector_head, &job->backend));
    return job->options->task == TASK_EMBED ? open_vectors(out) : OK;
}

void embed_output_close(struct embed_output *output) {
    for (int i = 0; i < output->n_line; i++) json_decref(output->lines[i].object);
    free(output->lines);
    free(output->questions);
    npy_close(&output->vectors);
    *output = (struct embed_output){0};
}

json_t *embed_describe(const struct job *job, const struct embed_document *document) {
    const struct options *o = job->options;
    const char *name = job->documents.items[document->task->document].name;
    json_t *object = json_object();
    json_object_set_new(object, "document", json_text(name, strlen(name)));
    json_object_set_new(object, "task", json_string(o->task == TASK_EMBED ? "embed" : "locate"));
    return object;
}

static void set_range(json_t *object, const char *unit, int64_t begin, int64_t end, int64_t mark) {
    char key[32];
    snprintf(key, sizeof key, "%s_start", unit);
    json_object_set_new(object, key, begin >= 0 ? json_integer(begin + mark) : json_null());
    snprintf(key, sizeof key, "%s_end", unit);
    json_object_set_new(object, key, end >= 0 ? json_integer(end + mark) : json_null());
}

json_t *embed_describe_passage(const struct embed_document *document, int64_t passage) {
    const struct text_passage *p = &document->passages.items[passage];
    json_t *object = json_object();
    set_range(object, "byte", p->byte_begin, p->byte_end, document->text.mark_bytes);
    set_range(object, "token", p->token_begin, p->token_end, 0);
    return object;
}

enum status embed_output_add_line(struct embed_output *output, const char *id, json_t *object) {
    if (output->n_line == output->capacity) {
        int capacity = output->capacity ? 2 * output->capacity : 16;
        struct embed_line *larger = realloc(output->lines, (size_t)capacity * sizeof *larger);
        if (!larger) {
            json_decref(object);
            FAIL(ERR_MEMORY, "no memory for %d results", capacity);
        }
        output->lines = larger;
        output->capacity = capacity;
    }
    output->lines[output->n_line++] = (struct embed_line){id, object};
    return OK;
}

static json_t *describe_vectors(const struct embed_output *output, struct embed_document *document,
                                int64_t first_row) {
    const struct job *job = output->job;
    const struct pool *pool = &document->pool;
    json_t *object = embed_describe(job, document), *passages = json_array();
    int64_t n_passage = pool->pooling == POOLING_NONE ? 0 : document->passages.n;
    json_object_set_new(object, "pooling", json_string(pooling_name(pool->pooling)));
    json_object_set_new(object, "normalised", json_boolean(job->vector_head.normalise));
    json_object_set_new(object, "n_token", json_integer(document->text.tokens.n));
    json_object_set_new(object, "first_row", json_integer(first_row));
    json_object_set_new(object, "n_row", json_integer(pool->n_row));
    json_object_set_new(object, "n_hidden", json_integer(job->vector_head.n_out));
    for (int64_t i = 0; i < n_passage; i++) {
        json_t *passage = embed_describe_passage(document, i);
        json_object_set_new(passage, "row", json_integer(first_row + i));
        json_array_append_new(passages, passage);
    }
    json_object_set_new(object, "passages", passages);
    if (!document->own_spans && document->n_unit > 1)
        json_object_set_new(object, "windows", json_integer(document->n_unit));
    if (!document->own_spans && document->n_unit > 0 &&
        model_spec_reads_length(&job->checkpoint.spec)) {
        struct embed_unit first = embed_unit_get(document, job->checkpoint.spec.causal, 0);
        json_object_set_new(object, "rope_length", json_integer(embed_unit_length(&first)));
    }
    json_object_set_new(object, "seconds", json_number(document->seconds));
    return object;
}

static enum status write_vectors(struct embed_output *output, struct embed_document *document) {
    struct job *job = output->job;
    struct comm *host = comm_host(&job->comm);
    struct pool *pool = &document->pool;
    struct vector_head *head = &job->vector_head;
    int64_t tile = vector_head_tile(head), first_row = output->vectors.n_row;
    float *rows = malloc((size_t)(tile * head->n_out) * sizeof *rows);
    if (!rows) FAIL(ERR_MEMORY, "no memory for %lld vectors", (long long)tile);
    enum status status = OK;
    for (int64_t begin = 0; status == OK && begin < pool->n_row; begin += tile) {
        int64_t n = pool->n_row - begin < tile ? pool->n_row - begin : tile;
        status = vector_head_rows(head, pool, host, begin, n, rows);
        if (status == OK && host->rank == 0) status = npy_append(&output->vectors, rows, n);
    }
    free(rows);
    TRY(status);
    job->embedded.vectors += pool->n_row;
    if (host->rank != 0) return OK;
    return embed_output_add_line(output, document->task->ids[0],
                                 describe_vectors(output, document, first_row));
}

enum status embed_output_add(struct embed_output *output, struct embed_document *document) {
    struct job *job = output->job;
    double begun = profile_begin(&job->profile, PHASE_IO);
    job->embedded.documents++;
    job->embedded.packed += document->packed;
    TRY(job->options->task == TASK_EMBED ? write_vectors(output, document)
                                         : locate_rank(output, document));
    profile_end(&job->profile, PHASE_IO, begun);
    return OK;
}

enum status embed_output_commit(struct embed_output *output) {
    double begun = profile_begin(&output->job->profile, PHASE_IO);
    if (output->n_line == 0) return OK;
    if (output->vectors.path) TRY(npy_commit(&output->vectors));
    for (int i = 0; i < output->n_line; i++) {
        json_t *object = output->lines[i].object;
        output->lines[i].object = NULL;
        TRY(results_append(output->results, output->lines[i].id, object));
    }
    output->n_line = 0;
    TRY(results_sync(output->results));
    profile_end(&output->job->profile, PHASE_IO, begun);
    return OK;
}
