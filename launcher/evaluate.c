// Runs the cells that results.jsonl does not hold yet, one method after another: each has a session
// of its own, because keys are stored rotated.
#include "launcher/evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/extension.h"
#include "launcher/progress.h"
#include "launcher/report.h"
#include "launcher/task.h"
#include "model/sampler.h"

struct evaluation {
    struct job *job;
    struct grid grid;
    int n_cell;
    struct grid_cell *cells;
    bool *finished;               // [n_cell]
    char (*ids)[RESULT_ID_BYTES]; // [n_cell] rank 0
    struct results results;       // rank 0
    struct document_text text;
    bool *is_boundary; // [text.tokens.n]
    struct prompt stops;
    struct model_spec spec;    // as the checkpoint has it; its layers are the job's, whose
    struct layer_spec *layers; // contents were these: [spec.n_layer] owned
    struct memory_plan plan;   // of the largest session
};

static struct retrieval_source source_of(const struct evaluation *e) {
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

static void cell_id(const struct evaluation *e, const struct grid_cell *cell,
                    const char *method_digest, char out[RESULT_ID_BYTES]) {
    const struct job *job = e->job;
    char place[96];
    int64_t bin = cell->family == CELL_CURVE ? e->grid.bin : 0;
    snprintf(place, sizeof place, "%s %lld %d %lld %lld", grid_family_name(cell->family),
             (long long)cell->length, cell->depth, (long long)cell->sample, (long long)bin);
    XXH3_state_t *hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    digest_add_text(hash, place);
    digest_add_text(hash, job->documents.items[0].digest);
    digest_add_text(hash, job->checkpoint.digest);
    digest_add_text(hash, tokenizer_digest(job->tokenizer));
    digest_add_text(hash, method_digest);
    digest_print(XXH3_128bits_digest(hash), out);
    XXH3_freeState(hash);
}

static enum status find_ids(const struct evaluation *e) {
    char digest[DIGEST_BYTES];
    int method = -1;
    for (int i = 0; i < e->n_cell; i++) { // method by method
        const struct grid_cell *cell = &e->cells[i];
        if (cell->method != method) {
            method = cell->method;
            TRY(result_digest_options(&e->grid.methods[method].options, digest));
        }
        cell_id(e, cell, digest, e->ids[i]);
    }
    return OK;
}

static enum status read_text(struct evaluation *e) {
    struct job *job = e->job;
    struct document_reader reader = job_reader(job);
    enum status status = OK;
    if (job->comm.rank == 0) status = document_set_open(job->options, &reader, &job->documents);
    if (status == OK && job->comm.rank == 0 && job->documents.n != 1)
        status = status_fail(ERR_CONFIG, __FILE__,
                             "evaluate hides its needles in one document, and %d are named",
                             job->documents.n);
    TRY(comm_agree(&job->comm, status));
    struct comm *host = comm_host(&job->comm);
    TRY(comm_agree(&job->comm, document_set_share(&job->documents, host)));
    job->working = true; // rank 0 may fail alone
    TRY(document_text_open(&job->documents, 0, &reader, host, &e->text));
    job->working = false;
    if (e->grid.curve * e->grid.n_sample > e->text.tokens.n)
        FAIL(ERR_CONFIG,
             "%lld curves of evaluate.perplexity = %lld tokens need a longer text than one of %lld",
             (long long)e->grid.n_sample, (long long)e->grid.curve, (long long)e->text.tokens.n);
    e->is_boundary = calloc((size_t)e->text.tokens.n, sizeof *e->is_boundary);
    if (!e->is_boundary) FAIL(ERR_MEMORY, "no memory for the text");
    // On rank 0: the text, and of each token its id, where it lies and whether a sentence ends.
    job->task_bytes = (int64_t)e->text.bytes +
                      e->text.tokens.n * (int64_t)(sizeof(int32_t) + 2 * sizeof(int64_t) + 1);
    if (job->comm.rank == 0 && e->text.text)
        retrieval_mark_boundaries(e->text.text, e->text.bytes, e->text.tokens.byte_end,
                                  e->text.tokens.n, e->is_boundary);
    return OK;
}

// Whether each family fits the shortest length: known before any work.
static enum status check_lengths(const struct evaluation *e) {
    struct retrieval_source source = source_of(e);
    for (int i = 0; i < e->grid.n_family; i++) {
        struct retrieval_prompt prompt;
        struct retrieval_cell cell = {.family = e->grid.family[i], .length = e->grid.length[0]};
        TRY(retrieval_build(&source, &cell, &prompt));
        retrieval_prompt_close(&prompt);
    }
    return OK;
}

static enum status open_results(struct evaluation *e) {
    TRY(check_lengths(e));
    e->ids = calloc((size_t)e->n_cell, sizeof *e->ids);
    if (!e->ids) FAIL(ERR_MEMORY, "no memory for %d results", e->n_cell);
    TRY(find_ids(e));
    TRY(results_open(e->job->options, e->ids, e->n_cell, &e->results));
    int n_finished = 0;
    for (int i = 0; i < e->n_cell; i++) {
        e->finished[i] = results_has(&e->results, e->ids[i]);
        n_finished += e->finished[i];
    }
    if (n_finished > 0)
        fprintf(stderr, "%s holds %d of %d cells already\n", e->results.path, n_finished,
                e->n_cell);
    return OK;
}

static enum status open_evaluation(struct evaluation *e) {
    struct job *job = e->job;
    enum status status = grid_open(job->options, &e->grid);
    if (status == OK) status = grid_list_cells(&e->grid, &e->cells, &e->n_cell);
    TRY(comm_agree(&job->comm, status));
    if (!job->checkpoint.spec.causal)
        FAIL(ERR_CONFIG,
             "%s is an encoder, which neither answers nor predicts: evaluate takes causal "
             "models",
             job->options->model_path);
    if (!job->tokenizer)
        FAIL(ERR_INPUT, "%s has no tokenizer (tokenizer.json), which `halka evaluate` needs",
             job->options->model_path);
    TRY(read_text(e));
    e->finished = calloc((size_t)e->n_cell, sizeof *e->finished);
    status = prompt_open(job, &e->stops);
    if (status == OK && !e->finished)
        status = status_fail(ERR_MEMORY, __FILE__, "no memory for the cells");
    if (status == OK && job->comm.rank == 0) status = open_results(e);
    TRY(comm_agree(&job->comm, status));
    struct comm *host = comm_host(&job->comm);
    return host->ops->broadcast(host, e->finished, e->n_cell * (int64_t)sizeof *e->finished, 0);
}

static void close_evaluation(struct evaluation *e) {
    prompt_close(&e->stops);
    results_close(&e->results);
    document_text_close(&e->text);
    grid_close(&e->grid);
    free(e->layers);
    free(e->is_boundary);
    free(e->finished);
    free(e->cells);
    free(e->ids);
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

static enum status run_question(struct evaluation *e, const struct grid_cell *cell,
                                struct progress *progress, json_t **line, double *score) {
    struct retrieval_source source = source_of(e);
    struct retrieval_cell question = question_of(e, cell);
    struct retrieval_prompt prompt = {0};
    struct reply reply = {.n = 0};
    enum status status = OK;
    if (e->job->comm.rank == 0) TRY_OR(done, retrieval_build(&source, &question, &prompt));
    TRY_OR(done, share_prompt(e, &prompt));
    progress->total = prompt.n;
    TRY_OR(done, answer(e, &prompt, cell->length, progress, &reply));
    *score = reply.score;
    if (e->job->comm.rank == 0) *line = describe_answer(e, cell, &prompt, &reply);
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

static enum status run_curve(struct evaluation *e, const struct grid_cell *cell,
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

static enum status run_cell(struct evaluation *e, int index) {
    const struct grid_cell *cell = &e->cells[index];
    struct job *job = e->job;
    double begun = cluster_seconds(), score = 0;
    json_t *line = NULL;
    bool curve = cell->family == CELL_CURVE;
    struct progress progress = progress_begin(job->comm.rank == 0, grid_family_name(cell->family),
                                              "reading", cell->length);
    TRY(curve ? run_curve(e, cell, &progress, &line, &score)
              : run_question(e, cell, &progress, &line, &score));
    if (job->comm.rank != 0) return OK;
    double seconds = cluster_seconds() - begun;
    json_object_set_new(line, "seconds", json_number(seconds));
    TRY(results_write(&e->results, e->ids[index], line));
    fprintf(stderr,
            "%scell %d of %d: %s, %s, %lld tokens, depth %d %%, sample %lld: %s %.4g (%.1f s)\n",
            progress.terminal ? "\r\033[K" : "", index + 1, e->n_cell,
            e->grid.methods[cell->method].label, grid_family_name(cell->family),
            (long long)cell->length, cell->depth, (long long)cell->sample,
            curve ? "perplexity" : "score", score, seconds);
    return OK;
}

static bool method_is_finished(const struct evaluation *e, int method) {
    for (int i = 0; i < e->n_cell; i++)
        if (e->cells[i].method == method && !e->finished[i]) return false;
    return true;
}

static enum status extend(struct evaluation *e, int method) {
    struct model_spec *spec = &e->job->checkpoint.spec;
    struct extension extension = extension_from_options(&e->grid.methods[method].options);
    *spec = e->spec;
    memcpy(spec->layers, e->layers, (size_t)spec->n_layer * sizeof *e->layers);
    return extension_apply(&extension, e->job->options->model_path, spec);
}

// The methods' own checks against network and memory, before any of them works.
static enum status check_methods(struct evaluation *e) {
    for (int i = 0; i < e->grid.n_method; i++) {
        TRY(comm_agree(&e->job->comm, extend(e, i)));
        TRY(job_plan_length(e->job, grid_longest(&e->grid)));
    }
    return OK;
}

static enum status run_method(struct evaluation *e, int method) {
    struct job *job = e->job;
    session_close(&job->session);
    job->working = false; // ranks agree on what goes wrong while a session is planned and opened
    TRY(extend(e, method));
    TRY(job_plan_length(job, grid_longest(&e->grid)));
    if (job->plan.total > e->plan.total) e->plan = job->plan;
    TRY(job_open_session(job));
    job->working = true;
    for (int i = 0; i < e->n_cell; i++)
        if (e->cells[i].method == method && !e->finished[i]) TRY(run_cell(e, i));
    return OK;
}

// The peak that it tells of is that of the largest session, whichever is open.
static enum status report(struct evaluation *e) {
    e->job->plan = e->plan;
    return report_write(e->job);
}

static enum status open_model(struct job *job) {
    const struct options *given = job->options;
    struct options plain = *given;
    plain.extension = EXTENSION_AUTO; // methods are applied one after another
    job->options = &plain;
    enum status status = job_open_model(job);
    job->options = given;
    return status;
}

static enum status keep_spec(struct evaluation *e) {
    e->spec = e->job->checkpoint.spec;
    size_t bytes = (size_t)e->spec.n_layer * sizeof *e->layers;
    if (!(e->layers = malloc(bytes))) FAIL(ERR_MEMORY, "no memory for the layers");
    memcpy(e->layers, e->spec.layers, bytes);
    return OK;
}

enum status verb_evaluate(struct job *job) {
    struct evaluation e = {.job = job};
    enum status status = OK;
    job_print_start(job);
    TRY(open_model(job));
    TRY_OR(done, comm_agree(&job->comm, keep_spec(&e)));
    TRY_OR(done, open_evaluation(&e));
    TRY_OR(done, check_methods(&e));
    for (int i = 0; i < e.grid.n_method; i++)
        if (!method_is_finished(&e, i)) TRY_OR(done, run_method(&e, i));
    if (job->session) TRY_OR(done, report(&e));
    if (job->comm.rank == 0) TRY_OR(done, evaluate_write_plots(job, &e.grid));
    struct comm *host = comm_host(&job->comm);
    TRY_OR(done, host->ops->barrier(host)); // all output is durable before the end
    job->working = false;
done:
    close_evaluation(&e);
    return status;
}
