// Runs the cells that results.jsonl does not hold yet, one method after another: each has a session
// of its own, because keys are stored rotated.
#include "launcher/evaluate_internal.h"

#include <stdlib.h>
#include <string.h>

#include "launcher/beacon_files.h"
#include "launcher/extension.h"
#include "launcher/report.h"
#include "launcher/stop.h"

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
            TRY(options_digest(&e->grid.methods[method].options, CHANGES_RESULT, digest));
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
    struct retrieval_source source = evaluate_source(e);
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
        e->finished[i] = results_take(&e->results, e->ids[i]);
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

static enum status run_cell(struct evaluation *e, int index) {
    const struct grid_cell *cell = &e->cells[index];
    struct job *job = e->job;
    double begun = cluster_seconds(), score = 0;
    json_t *line = NULL;
    bool curve = cell->family == CELL_CURVE;
    struct progress progress = progress_begin(job, grid_family_name(cell->family), cell->length);
    TRY(curve ? evaluate_curve(e, cell, &progress, &line, &score)
              : evaluate_question(e, cell, &progress, &line, &score));
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
    TRY(job_close_session(job));
    job->working = false; // ranks agree on what goes wrong while a session is planned and opened
    TRY(extend(e, method));
    TRY(job_plan_length(job, grid_longest(&e->grid)));
    if (job->plan.total > e->plan.total) e->plan = job->plan;
    TRY(job_open_session(job));
    job->working = true;
    for (int i = 0; i < e->n_cell; i++)
        if (e->cells[i].method == method && !e->finished[i]) {
            TRY(stop_if_wanted(job));
            TRY(run_cell(e, i));
        }
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
    TRY_OR(done, beacon_files_open(job));
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
