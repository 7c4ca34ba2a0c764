// locate: the passages of a document by the cosine of their vectors to a question's.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/embed_output.h"

struct ranked {
    double score;
    int64_t passage;
};

static int compare_ranked(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    bool x_is = !isnan(x->score), y_is = !isnan(y->score);
    if (x_is != y_is) return x_is ? -1 : 1;
    if (x_is && x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->passage < y->passage ? -1 : x->passage > y->passage;
}

static double dot(const double *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static double length(const float *x, int64_t n) {
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += (double)x[i] * x[i];
    return sqrt(square);
}

enum status locate_take_questions(struct embed_output *output, struct embed_document *questions) {
    struct vector_head *head = &output->job->vector_head;
    struct comm *host = comm_host(&output->job->comm);
    int64_t n = questions->pool.n_row, width = head->n_out, tile = vector_head_tile(head);
    enum status status = OK;
    float *rows = malloc((size_t)(n * width) * sizeof *rows);
    output->questions = malloc((size_t)(n * width) * sizeof *output->questions);
    if (!rows || !output->questions)
        FAIL_OR(done, ERR_MEMORY, "no memory for the vectors of %lld questions", (long long)n);
    for (int64_t begin = 0; begin < n; begin += tile)
        TRY_OR(done, vector_head_rows(head, &questions->pool, host, begin,
                                      n - begin < tile ? n - begin : tile, rows + begin * width));
    for (int64_t i = 0; host->rank == 0 && i < n; i++) {
        const float *row = rows + i * width;
        double norm = length(row, width);
        for (int64_t j = 0; j < width; j++)
            output->questions[i * width + j] = norm > 0 ? row[j] / norm : 0;
    }
done:
    free(rows);
    return status;
}

// score[question][passage], tile by tile of the passages. Rank 0.
static enum status score_passages(struct embed_output *output, struct pool *pool,
                                  struct ranked *ranked) {
    struct comm *host = comm_host(&output->job->comm);
    struct vector_head *head = &output->job->vector_head;
    int64_t width = head->n_out, tile = vector_head_tile(head);
    int n_question = output->job->options->questions.n;
    float *rows = malloc((size_t)(tile * width) * sizeof *rows);
    if (!rows) FAIL(ERR_MEMORY, "no memory for %lld vectors", (long long)tile);
    enum status status = OK;
    for (int64_t begin = 0; status == OK && begin < pool->n_row; begin += tile) {
        int64_t n = pool->n_row - begin < tile ? pool->n_row - begin : tile;
        status = vector_head_rows(head, pool, host, begin, n, rows);
        for (int64_t i = 0; status == OK && host->rank == 0 && i < n; i++) {
            double norm = length(rows + i * width, width);
            for (int q = 0; q < n_question; q++) {
                double product = dot(output->questions + q * width, rows + i * width, width);
                ranked[q * pool->n_row + begin + i] =
                    (struct ranked){norm > 0 ? product / norm : 0, begin + i};
            }
        }
    }
    free(rows);
    return status;
}

static json_t *passage_text(const struct job *job, const struct embed_document *document,
                            const struct text_passage *p) {
    const struct document_text *text = &document->text;
    if (p->byte_begin >= 0)
        return json_text(text->text + p->byte_begin, (size_t)(p->byte_end - p->byte_begin));
    char *decoded;
    size_t bytes;
    if (tokenizer_decode(job->tokenizer, text->tokens.id + p->token_begin,
                         p->token_end - p->token_begin, true, &decoded, &bytes) != OK)
        return json_null();
    json_t *value = json_text(decoded, bytes);
    free(decoded);
    return value;
}

static json_t *describe(const struct job *job, const struct embed_document *document, int question,
                        struct ranked *ranked) {
    json_t *object = embed_describe(job, document), *passages = json_array();
    const char *text = job->options->questions.items[question];
    int64_t n = document->pool.n_row;
    qsort(ranked, (size_t)n, sizeof *ranked, compare_ranked);
    json_object_set_new(object, "question", json_text(text, strlen(text)));
    for (int64_t i = 0; i < n && i < job->options->evidence; i++) {
        json_t *item = json_object(), *place = embed_describe_passage(document, ranked[i].passage);
        json_object_set_new(item, "rank", json_integer(i + 1));
        json_object_set_new(item, "score", json_number(ranked[i].score));
        json_object_update(item, place);
        json_decref(place);
        json_object_set_new(
            item, "text",
            passage_text(job, document, &document->passages.items[ranked[i].passage]));
        json_array_append_new(passages, item);
    }
    json_object_set_new(object, "passages", passages);
    json_object_set_new(object, "n_passage", json_integer(n));
    json_object_set_new(object, "n_token", json_integer(document->text.tokens.n));
    json_object_set_new(object, "seconds", json_number(document->seconds));
    return object;
}

enum status locate_rank(struct embed_output *output, struct embed_document *document) {
    struct pool *pool = &document->pool;
    const struct task *task = document->task;
    struct ranked *ranked = malloc((size_t)(task->n_line * pool->n_row + 1) * sizeof *ranked);
    if (!ranked) FAIL(ERR_MEMORY, "no memory to rank %lld passages", (long long)pool->n_row);
    enum status status = score_passages(output, pool, ranked);
    output->job->embedded.vectors += pool->n_row;
    for (int q = 0; status == OK && output->job->comm.rank == 0 && q < task->n_line; q++) {
        if (task->finished[q]) continue;
        json_t *line = describe(output->job, document, q, ranked + q * pool->n_row);
        status = embed_output_add_line(output, task->ids[q], line);
    }
    free(ranked);
    return status;
}
