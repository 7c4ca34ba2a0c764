// answer: the document is read once; each question is read after it, answered token by token, and
// forgotten again. Without a question the document itself is continued.
#include <stdlib.h>
#include <string.h>

#include "launcher/answer_line.h"
#include "launcher/generation.h"
#include "launcher/progress.h"
#include "launcher/reading.h"
#include "launcher/stop.h"
#include "launcher/task.h"

struct answer {
    const struct task *task;
    const struct prompt *prompt;
    struct document_text text;
    struct evidence evidence;
    struct generation generation; // the last
    int32_t *token;               // [max_tokens] of it
    int64_t document_end;         // session length after head and document
};

static enum status generate(struct answer *a, const struct token_list *after,
                            const struct sampler *sampler, int question, int64_t max_tokens) {
    a->generation = (struct generation){.job = a->task->job,
                                        .prompt = a->prompt,
                                        .sampler = sampler,
                                        .document = (uint64_t)a->task->document,
                                        .question = (uint64_t)question,
                                        .max_tokens = max_tokens,
                                        .measures = a->task->job->options->evidence > 0,
                                        .token = a->token};
    return generation_run(&a->generation, a->document_end, after->id, after->n);
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
                                      .chunk = job->session_options.chunk,
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
    const struct string_list *questions = &job->options->questions;
    return answer_line(job,
                       &(struct answered){
                           .document = job->documents.items[task->document].name,
                           .question = questions->n > 0 ? questions->items[question] : NULL,
                           .n_prompt = a->document_end + a->prompt->after[question].n,
                           .token = a->token,
                           .n_token = a->generation.n_token,
                           .evidence = &a->evidence,
                           .text = &a->text,
                           .n_passage = job->options->evidence,
                           .length = job_sequence_length(job, task->document),
                           .seconds = seconds,
                       },
                       out);
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
    job->tokens_generated += a->generation.n_token;
    if (o->evidence > 0)
        TRY(evidence_take_answer(&a->evidence, job->session, a->generation.n_appended));
    if (job->comm.rank != 0) return OK;
    double begun = profile_begin(&job->profile, PHASE_IO);
    double seconds = cluster_seconds() - started;
    json_t *line = NULL;
    TRY(describe(a, question, seconds, &line));
    TRY(results_write(a->task->results, a->task->ids[question], line));
    profile_end(&job->profile, PHASE_IO, begun);
    fprintf(stderr, "answered question %d of %d: %lld tokens in %.2f s\n", question + 1,
            a->task->n_line, (long long)a->generation.n_token, seconds);
    return OK;
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
        if (a->prompt->baseline.n > 0)
            TRY(generation_take_baseline(job, a->prompt, a->document_end, &a->prompt->baseline,
                                         job->options->max_tokens, &a->evidence));
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
