// score: the log-probability of each token given all before it, and the perplexity. With
// document.window, overlapping windows are read and each token is scored in the first that holds
// it, so that it sees at least window - stride tokens before it.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/progress.h"
#include "launcher/reading.h"
#include "launcher/task.h"

static int64_t window_of(const struct options *options, int64_t n) {
    return options->window > 0 && options->window < n ? options->window : n;
}

// Fills logprob[n]; entry 0 is NaN.
static enum status score_tokens(struct job *job, const int32_t *token, int64_t n, float *logprob,
                                struct progress *progress) {
    int64_t window = window_of(job->options, n);
    int64_t stride = job->options->stride > 0 ? job->options->stride : (window + 1) / 2;
    enum status status = OK;
    float *own = malloc((size_t)window * sizeof *own);
    if (!own) FAIL(ERR_MEMORY, "no memory for %lld log-probabilities", (long long)window);
    logprob[0] = NAN;
    int64_t scored = 1; // entries of logprob that are final
    for (int64_t begin = 0; status == OK; begin += stride) {
        int64_t end = begin + window < n ? begin + window : n, n_restored;
        status = reading_run(job,
                             &(struct reading){.name = progress->name,
                                               .token = token + begin,
                                               .n = end - begin,
                                               .length = window,
                                               .kept = window == n,
                                               .chunk = job->session_options.chunk,
                                               .logprob = own,
                                               .progress = progress,
                                               .base = begin},
                             &n_restored);
        if (status != OK) break;
        task_count_read(job, end - begin - n_restored, begin > 0 ? scored - begin : 0);
        for (; scored < end; scored++) logprob[scored] = own[scored - begin];
        if (end == n) break;
    }
    free(own);
    return status;
}

static json_t *logprob_list(const float *logprob, int64_t n) {
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(list, json_number(logprob[i]));
    return list;
}

static json_t *describe(const struct job *job, int document, const float *logprob, int64_t n,
                        double seconds) {
    const struct options *o = job->options;
    const char *name = job->documents.items[document].name;
    double sum = 0;
    for (int64_t i = 1; i < n; i++) sum += logprob[i];
    json_t *object = json_object();
    json_object_set_new(object, "document", json_text(name, strlen(name)));
    json_object_set_new(object, "task", json_string("score"));
    json_object_set_new(object, "n_token", json_integer(n));
    json_object_set_new(object, "perplexity",
                        n > 1 ? json_number(exp(-sum / (double)(n - 1))) : json_null());
    int64_t window = window_of(o, n), beyond = job_beyond_training(job, window);
    if (window < n) json_object_set_new(object, "window", json_integer(window));
    if (beyond > 0) json_object_set_new(object, "beyond_training", json_integer(beyond));
    if (model_spec_reads_length(&job->checkpoint.spec))
        json_object_set_new(object, "rope_length", json_integer(window));
    json_object_set_new(object, "seconds", json_number(seconds));
    if (o->token_logprobs) {
        json_object_set_new(object, "token_logprobs", logprob_list(logprob, n));
    }
    return object;
}

enum status score_document(const struct task *task) {
    struct job *job = task->job;
    struct document_text text = {0};
    struct document_reader reader = job_reader(job);
    float *logprob = NULL;
    enum status status = OK;
    double started = cluster_seconds(), begun = profile_begin(&job->profile, PHASE_TOKENIZE);
    TRY_OR(done, document_text_open(&job->documents, task->document, &reader, comm_host(&job->comm),
                                    &text));
    profile_end(&job->profile, PHASE_TOKENIZE, begun);
    int64_t n = text.tokens.n;
    logprob = malloc((size_t)n * sizeof *logprob);
    if (!logprob) FAIL_OR(done, ERR_MEMORY, "no memory for %lld log-probabilities", (long long)n);
    struct progress progress = progress_begin(job, job->documents.items[task->document].name, n);
    TRY_OR(done, score_tokens(job, text.tokens.id, n, logprob, &progress));
    progress_end(&progress);
    if (job->comm.rank == 0) {
        begun = profile_begin(&job->profile, PHASE_IO);
        TRY_OR(done, results_write(
                         task->results, task->ids[0],
                         describe(job, task->document, logprob, n, cluster_seconds() - started)));
        profile_end(&job->profile, PHASE_IO, begun);
    }
done:
    free(logprob);
    document_text_close(&text);
    return status;
}
