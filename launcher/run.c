// `halka run`: every document, every task, then the report.
#include <stdlib.h>

#include "launcher/beacon_files.h"
#include "launcher/embed.h"
#include "launcher/estimate.h"
#include "launcher/reading.h"
#include "launcher/report.h"
#include "launcher/stop.h"
#include "launcher/task.h"

void task_count_read(struct job *job, int64_t n_token, int64_t n_recomputed) {
    struct session_facts facts;
    session_get_facts(job->session, &facts);
    job->tokens_read += n_token;
    job->own_tokens += facts.tokens;
    job->tokens_recomputed += n_recomputed;
    if (n_token > job->longest) job->longest = n_token;
}

// The lines of the job: document by document, question by question.
struct work {
    int n_line_each, n_line;      // per document, in all
    char (*ids)[RESULT_ID_BYTES]; // [n_line] rank 0
    bool *finished;               // [n_line]
    struct results results;       // rank 0
    struct prompt prompt;
};

static enum status open_results(struct job *job, struct work *work) {
    int n_question = job->options->questions.n;
    char option_digest[DIGEST_BYTES];
    TRY(options_digest(job->options, CHANGES_RESULT, option_digest));
    work->ids = calloc((size_t)work->n_line, sizeof *work->ids);
    if (!work->ids) FAIL(ERR_MEMORY, "no memory for %d results", work->n_line);
    for (int line = 0; line < work->n_line; line++) {
        result_id(job, option_digest, line / work->n_line_each,
                  n_question > 0 ? line % work->n_line_each : -1, work->ids[line]);
    }
    TRY(results_open(job->options, work->ids, work->n_line, &work->results));
    int n_finished = 0;
    for (int line = 0; line < work->n_line; line++) {
        work->finished[line] = results_take(&work->results, work->ids[line]);
        n_finished += work->finished[line];
    }
    if (n_finished > 0) {
        fprintf(stderr, "%s holds %d of %d results of this job already\n", work->results.path,
                n_finished, work->n_line);
    }
    return OK;
}

static enum status open_work(struct job *job, struct work *work) {
    bool answers = job->options->task == TASK_ANSWER;
    work->n_line_each = job->options->questions.n > 0 ? job->options->questions.n : 1;
    work->n_line = job->documents.n * work->n_line_each;
    work->finished = calloc((size_t)work->n_line, sizeof *work->finished);
    enum status status = OK;
    if (!work->finished) status = status_fail(ERR_MEMORY, __FILE__, "no memory for the results");
    if (status == OK && answers) status = prompt_open(job, &work->prompt);
    if (status == OK && job->comm.rank == 0) status = open_results(job, work);
    TRY(comm_agree(&job->comm, status));
    struct comm *host = comm_host(&job->comm);
    return host->ops->broadcast(host, work->finished,
                                work->n_line * (int64_t)sizeof *work->finished, 0);
}

static void close_work(struct work *work) {
    prompt_close(&work->prompt);
    results_close(&work->results);
    free(work->finished);
    free(work->ids);
}

bool task_is_finished(const struct task *task) {
    for (int line = 0; line < task->n_line; line++) {
        if (!task->finished[line]) return false;
    }
    return true;
}

static struct task document_task(struct job *job, struct work *work, int document) {
    int first = document * work->n_line_each;
    return (struct task){.job = job,
                         .results = &work->results,
                         .document = document,
                         .ids = work->ids ? work->ids + first : NULL,
                         .finished = work->finished + first,
                         .n_line = work->n_line_each};
}

static enum status read_packed(struct job *job, struct work *work) {
    struct task *tasks = malloc((size_t)job->documents.n * sizeof *tasks);
    if (!tasks) FAIL(ERR_MEMORY, "no memory for %d documents", job->documents.n);
    for (int i = 0; i < job->documents.n; i++) tasks[i] = document_task(job, work, i);
    enum status status = embed_documents(job, tasks);
    free(tasks);
    return status;
}

static enum status read_documents(struct job *job, struct work *work) {
    enum task_kind kind = (enum task_kind)job->options->task;
    if (kind == TASK_EMBED || kind == TASK_LOCATE) return read_packed(job, work);
    for (int document = 0; document < job->documents.n; document++) {
        struct task task = document_task(job, work, document);
        if (task_is_finished(&task)) continue;
        TRY(stop_if_wanted(job));
        if (kind == TASK_SCORE) {
            TRY(score_document(&task));
        } else {
            TRY(answer_document(&task, &work->prompt));
        }
    }
    return OK;
}

enum status verb_run(struct job *job) {
    struct work work = {0};
    enum status status = OK;
    job_print_start(job);
    TRY(job_open_model(job));
    TRY(job_plan(job));
    if (job_chose_chunk(job) && job->comm.rank == 0)
        fprintf(stderr,
                "halka: reads in chunks of %lld tokens, to stop or save within about %d s\n",
                (long long)job->session_options.chunk, STOP_SECONDS);
    TRY_OR(done, open_work(job, &work));
    TRY_OR(done, beacon_files_open(job));
    TRY_OR(done, job_open_session(job));
    TRY_OR(done, reading_open(job));
    job->working = true;
    TRY_OR(done, read_documents(job, &work));
    TRY_OR(done, report_write(job));
    struct comm *host = comm_host(&job->comm);
    TRY_OR(done, host->ops->barrier(host)); // all output is durable before the end
    job->working = false;
done:
    close_work(&work);
    return status;
}
