// answer: the document is read once; each question is read after it, answered token by token, and
// forgotten again. Without a question the document itself is continued.
#include <stdlib.h>
#include <string.h>

#include "launcher/progress.h"
#include "launcher/reading.h"
#include "launcher/stop.h"
#include "launcher/task.h"
#include "model/sampler.h"

enum { BASELINE_TOKENS = 16 }; // generated under the empty question

struct answer {
    const struct task *task;
    const struct prompt *prompt;
    struct document_text text;
    struct evidence evidence;
    int32_t *token;       // [max_tokens] generated
    int64_t n_token;      // without the token that ends the answer
    int64_t n_appended;   // queries of the answer whose attention was measured
    int64_t document_end; // session length after head and document
};

static enum status append(struct answer *a, const int32_t *token, int64_t n) {
    return session_append(a->task->job->session,
                          &(struct append_args){.token = token, .n = n, .logits = true});
}

// Rank 0 draws, so that all ranks go on with the same token whatever their processors.
static enum status pick(struct answer *a, const struct sampler *sampler, int question,
                        int32_t *out) {
    struct job *job = a->task->job;
    struct comm *host = comm_host(&job->comm);
    double begun = profile_begin(&job->profile, PHASE_SAMPLING);
    *out = 0;
    if (job->comm.rank == 0) {
        struct sample_args how = sampler_draw(sampler, (uint64_t)a->task->document,
                                              (uint64_t)question, (uint64_t)a->n_token);
        TRY(session_sample(job->session, &how, out));
    }
    TRY(host->ops->broadcast(host, out, sizeof *out, 0));
    profile_end(&job->profile, PHASE_SAMPLING, begun);
    return OK;
}

// Reads what follows the document and generates up to max_tokens, measuring attention.
static enum status generate(struct answer *a, const struct token_list *after,
                            const struct sampler *sampler, int question, int64_t max_tokens) {
    struct job *job = a->task->job;
    a->n_token = a->n_appended = 0;
    TRY(session_truncate(job->session, a->document_end));
    if (after->n > 0) TRY(append(a, after->id, after->n));
    job->tokens_read += after->n;
    TRY(session_mass_reset(job->session, job->options->evidence > 0));
    while (a->n_token < max_tokens) {
        int32_t token;
        TRY(pick(a, sampler, question, &token));
        if (prompt_stops(a->prompt, token)) break;
        a->token[a->n_token++] = token;
        beacon_done(job->profile.beacon, a->n_token);
        // The last token is read too where its attention counts.
        if (a->n_token == max_tokens && job->options->evidence == 0) break;
        TRY(append(a, &token, 1));
        a->n_appended++;
    }
    if (session_length(job->session) > job->longest) job->longest = session_length(job->session);
    return OK;
}

static enum status read_document(struct answer *a) {
    struct job *job = a->task->job;
    int64_t n_head = a->prompt->head.n, n = n_head + a->text.tokens.n;
    int32_t *token = malloc((size_t)n * sizeof *token);
    if (!token) FAIL(ERR_MEMORY, "no memory for %lld tokens", (long long)n);
    if (n_head > 0) memcpy(token, a->prompt->head.id, (size_t)n_head * sizeof *token);
    memcpy(token + n_head, a->text.tokens.id, (size_t)a->text.tokens.n * sizeof *token);
    struct progress progress = progress_begin(job, job->documents.items[a->task->document].name, n);
    int64_t n_restored;
    enum status status =
        reading_run(job,
                    &(struct reading){.name = progress.name,
                                      .token = token,
                                      .n = n,
                                      .length = job_sequence_length(job, a->task->document),
                                      .kept = true,
                                      .logits = true,
                                      .progress = &progress},
                    &n_restored);
    free(token);
    TRY(status);
    progress_end(&progress);
    a->document_end = n;
    bool again = false; // an earlier run read this document and ended before its last question
    for (int i = 0; i < a->task->n_line; i++) again |= a->task->finished[i];
    task_count_read(job, n - n_restored, again ? n - n_restored : 0);
    return OK;
}

static enum status describe(const struct answer *a, int question, double seconds, json_t **out) {
    const struct task *task = a->task;
    const struct job *job = task->job;
    const char *name = job->documents.items[task->document].name;
    const struct string_list *questions = &job->options->questions;
    char *text;
    size_t bytes;
    enum status status =
        tokenizer_decode(job->tokenizer, a->token, a->n_token, false, &text, &bytes);
    if (status != OK) return status_context(status, "the answer on %s is no text", name);
    int64_t n_prompt = a->document_end + a->prompt->after[question].n;
    json_t *object = json_object();
    json_object_set_new(object, "document", json_text(name, strlen(name)));
    json_object_set_new(object, "task", json_string("answer"));
    json_object_set_new(
        object, "question",
        questions->n > 0 ? json_text(questions->items[question], strlen(questions->items[question]))
                         : json_null());
    json_object_set_new(object, "answer", json_text(text, bytes));
    json_object_set_new(object, "n_prompt", json_integer(n_prompt));
    json_object_set_new(object, "n_generated", json_integer(a->n_token));
    json_object_set_new(object, "evidence",
                        evidence_list(job, &a->evidence, &a->text, job->options->evidence));
    int64_t beyond = job_beyond_training(job, n_prompt + a->n_token);
    if (beyond > 0) json_object_set_new(object, "beyond_training", json_integer(beyond));
    if (model_spec_reads_length(&job->checkpoint.spec))
        json_object_set_new(object, "rope_length",
                            json_integer(job_sequence_length(job, task->document)));
    json_object_set_new(object, "seconds", json_number(seconds));
    free(text);
    *out = object;
    return OK;
}

static enum status answer_question(struct answer *a, int question) {
    struct job *job = a->task->job;
    const struct options *o = job->options;
    double started = cluster_seconds();
    struct sampler sampler = {.temperature = o->temperature,
                              .top_p = o->top_p,
                              .min_p = o->min_p,
                              .seed = (uint64_t)o->seed};
    beacon_begin(job->profile.beacon,
                 &(struct beacon_task){ACTIVITY_ANSWERING,
                                       job->documents.items[a->task->document].name, o->max_tokens,
                                       o->questions.n > 0 ? question + 1 : 0, o->questions.n});
    TRY(generate(a, &a->prompt->after[question], &sampler, question, o->max_tokens));
    job->tokens_generated += a->n_token;
    if (o->evidence > 0) TRY(evidence_take_answer(&a->evidence, job->session, a->n_appended));
    if (job->comm.rank != 0) return OK;
    double begun = profile_begin(&job->profile, PHASE_IO);
    double seconds = cluster_seconds() - started;
    json_t *line = NULL;
    TRY(describe(a, question, seconds, &line));
    TRY(results_write(a->task->results, a->task->ids[question], line));
    profile_end(&job->profile, PHASE_IO, begun);
    fprintf(stderr, "answered question %d of %d: %lld tokens in %.2f s\n", question + 1,
            a->task->n_line, (long long)a->n_token, seconds);
    return OK;
}

static enum status take_baseline(struct answer *a) {
    int64_t max_tokens = a->task->job->options->max_tokens;
    TRY(generate(a, &a->prompt->baseline, &(struct sampler){.top_p = 1}, 0,
                 max_tokens < BASELINE_TOKENS ? max_tokens : BASELINE_TOKENS));
    return evidence_take_baseline(&a->evidence, a->task->job->session, a->n_appended);
}

static enum status answer_all(struct answer *a) {
    struct job *job = a->task->job;
    struct document_reader reader = job_reader(job);
    double begun = profile_begin(&job->profile, PHASE_TOKENIZE);
    TRY(document_text_open(&job->documents, a->task->document, &reader, comm_host(&job->comm),
                           &a->text));
    profile_end(&job->profile, PHASE_TOKENIZE, begun);
    a->token = malloc((size_t)job->options->max_tokens * sizeof *a->token);
    if (!a->token) FAIL(ERR_MEMORY, "no memory for an answer");
    TRY(read_document(a));
    if (job->options->evidence > 0) {
        TRY(evidence_open(job, &a->text, a->prompt->head.n, &a->evidence));
        if (a->prompt->baseline.n > 0) TRY(take_baseline(a));
    }
    for (int question = 0; question < a->task->n_line; question++) {
        if (a->task->finished[question]) continue;
        TRY(stop_if_wanted(job));
        TRY(answer_question(a, question));
    }
    return OK;
}

enum status answer_document(const struct task *task, const struct prompt *prompt) {
    struct answer answer = {.task = task, .prompt = prompt};
    enum status status = answer_all(&answer);
    evidence_close(&answer.evidence);
    free(answer.token);
    document_text_close(&answer.text);
    return status;
}
