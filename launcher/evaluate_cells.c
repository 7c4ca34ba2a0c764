// One cell of an evaluation: a question about a long text, answered greedily until the answer holds
// what is expected, or the perplexity of the first tokens of a text by position.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/evaluate_internal.h"
#include "launcher/task.h"
#include "model/sampler.h"

struct retrieval_source evaluate_source(const struct evaluation *e) {
    return (struct retrieval_source){.tokenizer = e->job->tokenizer,
                                     .chat = e->job->chat,
                                     .text = e->text.tokens.id,
                                     .is_boundary = e->is_boundary,
                                     .n_text = e->text.tokens.n};
}

static struct retrieval_cell question_of(const struct evaluation *e, const struct grid_cell *cell) {
    return (struct retrieval_cell){.family = (enum retrieval_family)cell->family,
                                   .length = cell->length,
                                   .depth = cell->depth,
                                   .sample = cell->sample,
                                   .seed = (uint64_t)e->job->options->seed};
}

// Rank 0 has made the prompt: the others learn its tokens.
static enum status share_prompt(struct evaluation *e, struct retrieval_prompt *prompt) {
    struct comm *host = comm_host(&e->job->comm);
    int64_t sizes[2] = {prompt->n, prompt->max_tokens};
    TRY(host->ops->broadcast(host, sizes, sizeof sizes, 0));
    if (e->job->comm.rank != 0) {
        *prompt = (struct retrieval_prompt){.n = sizes[0], .max_tokens = sizes[1]};
        prompt->token = malloc((size_t)prompt->n * sizeof *prompt->token);
        if (!prompt->token) FAIL(ERR_MEMORY, "no memory for a prompt");
    }
    return host->ops->broadcast(host, prompt->token, prompt->n * (int64_t)sizeof *prompt->token, 0);
}

struct reply {
    int32_t last; // token
    int64_t n;
    int32_t known[128]; // [n_known] those that the tokenizer has: networks may have more
    int64_t n_known;
    char *text; // owned; rank 0
    double score;
};

// Rank 0 takes the likeliest token, and says whether the answer is complete with it.
static enum status pick(struct evaluation *e, const struct retrieval_prompt *prompt,
                        struct reply *reply, bool *ends) {
    struct job *job = e->job;
    struct comm *host = comm_host(&job->comm);
    int32_t said[2] = {0, 0};
    if (job->comm.rank == 0) {
        struct sample_args greedy = {.top_p = 1};
        size_t bytes;
        TRY(session_sample(job->session, &greedy, &said[0]));
        bool stops = prompt_stops(&e->stops, said[0]);
        if (!stops && said[0] < tokenizer_size(job->tokenizer))
            reply->known[reply->n_known++] = said[0];
        free(reply->text);
        reply->text = NULL;
        TRY(tokenizer_decode(job->tokenizer, reply->known, reply->n_known, false, &reply->text,
                             &bytes));
        reply->score = retrieval_score(prompt, reply->text);
        said[1] = stops ? 2 : reply->score == 1 || reply->n + 1 == prompt->max_tokens;
    }
    TRY(host->ops->broadcast(host, said, sizeof said, 0));
    reply->last = said[0];
    if (said[1] < 2) reply->n++;
    *ends = said[1] > 0;
    return OK;
}

static enum status answer(struct evaluation *e, const struct retrieval_prompt *prompt,
                          int64_t length, struct progress *progress, struct reply *reply) {
    struct session *session = e->job->session;
    TRY(session_truncate(session, 0));
    TRY(session_set_length(session, length));
    TRY(session_append(session, &(struct append_args){.token = prompt->token,
                                                      .n = prompt->n,
                                                      .logits = true,
                                                      .progress = progress_update,
                                                      .user = progress}));
    task_count_read(e->job, prompt->n, 0);
    for (bool ends = false; !ends;) {
        TRY(pick(e, prompt, reply, &ends));
        if (ends) break;
        TRY(session_append(session,
                           &(struct append_args){.token = &reply->last, .n = 1, .logits = true}));
    }
    e->job->tokens_generated += reply->n;
    return OK;
}

static json_t *describe_cell(const struct evaluation *e, const struct grid_cell *cell) {
    const char *label = e->grid.methods[cell->method].label;
    json_t *object = json_object();
    json_object_set_new(object, "method", json_text(label, strlen(label)));
    json_object_set_new(object, "family", json_string(grid_family_name(cell->family)));
    json_object_set_new(object, "length", json_integer(cell->length));
    json_object_set_new(object, "depth",
                        grid_has_depth(cell->family) ? json_integer(cell->depth) : json_null());
    json_object_set_new(object, "sample", json_integer(cell->sample));
    return object;
}

static json_t *describe_answer(const struct evaluation *e, const struct grid_cell *cell,
                               const struct retrieval_prompt *prompt, const struct reply *reply) {
    json_t *object = describe_cell(e, cell), *expected = json_array();
    for (int i = 0; i < prompt->n_expected; i++)
        json_array_append_new(expected, json_string(prompt->expected[i]));
    json_object_set_new(object, "n_prompt", json_integer(prompt->n));
    json_object_set_new(object, "n_generated", json_integer(reply->n));
    json_object_set_new(object, "expected", expected);
    json_object_set_new(object, "answer", json_text(reply->text, strlen(reply->text)));
    json_object_set_new(object, "score", json_number(reply->score));
    json_object_set_new(object, "digest", json_string(prompt->digest));
    return object;
}

enum status evaluate_question(struct evaluation *e, const struct grid_cell *cell,
                              struct progress *progress, json_t **line, double *score) {
    struct retrieval_source source = evaluate_source(e);
    struct retrieval_cell question = question_of(e, cell);
    struct retrieval_prompt prompt = {0};
    struct reply reply = {.n = 0};
    enum status status = OK;
    if (e->job->comm.rank == 0) TRY_OR(done, retrieval_build(&source, &question, &prompt));
    TRY_OR(done, share_prompt(e, &prompt));
    progress->total = prompt.n;
    TRY_OR(done, answer(e, &prompt, cell->length, progress, &reply));
    *score = reply.score;
    if (reply.text) *line = describe_answer(e, cell, &prompt, &reply); // rank 0
done:
    free(reply.text);
    retrieval_prompt_close(&prompt);
    return status;
}

static json_t *describe_curve(const struct evaluation *e, const struct grid_cell *cell,
                              const int32_t *token, const float *logprob, double *perplexity) {
    int64_t n = cell->length, bin = e->grid.bin;
    json_t *object = describe_cell(e, cell), *bins = json_array();
    double total = 0;
    char digest[DIGEST_BYTES];
    for (int64_t begin = 0; begin < n; begin += bin) {
        double sum = 0;
        int64_t end = begin + bin < n ? begin + bin : n, first = begin > 0 ? begin : 1;
        for (int64_t i = first; i < end; i++) sum -= logprob[i];
        total += sum;
        json_array_append_new(bins, json_number(sum / (double)(end - first)));
    }
    *perplexity = exp(total / (double)(n - 1));
    digest_bytes(token, (size_t)n * sizeof *token, digest);
    json_object_set_new(object, "perplexity", json_number(*perplexity));
    json_object_set_new(object, "bin", json_integer(bin));
    json_object_set_new(object, "nll", bins); // mean of each bin, natural log
    json_object_set_new(object, "digest", json_string(digest));
    return object;
}

enum status evaluate_curve(struct evaluation *e, const struct grid_cell *cell,
                           struct progress *progress, json_t **line, double *score) {
    struct session *session = e->job->session;
    const int32_t *token = e->text.tokens.id + cell->sample * cell->length;
    float *logprob = malloc((size_t)cell->length * sizeof *logprob);
    if (!logprob) FAIL(ERR_MEMORY, "no memory for %lld log-probabilities", (long long)cell->length);
    enum status status = session_truncate(session, 0);
    if (status == OK) status = session_set_length(session, cell->length);
    if (status == OK)
        status = session_append(session, &(struct append_args){.token = token,
                                                               .n = cell->length,
                                                               .logprob = logprob,
                                                               .progress = progress_update,
                                                               .user = progress});
    if (status == OK) task_count_read(e->job, cell->length, 0);
    if (status == OK && e->job->comm.rank == 0)
        *line = describe_curve(e, cell, token, logprob, score);
    free(logprob);
    return status;
}
