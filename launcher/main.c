// Halka: parse the options, start the ranks, do what the verb says, print one message when it
// fails. The only place that prints errors and chooses the exit code.
#include <stdio.h>
#include <time.h>

#include "launcher/beacon_files.h"
#include "launcher/stop.h"

#define HALKA_VERSION "0.1"

static enum status do_verb(struct job *job) {
    switch (job->options->verb) {
    case VERB_RUN:
        return verb_run(job);
    case VERB_PLAN:
        return verb_plan(job);
    case VERB_VERIFY:
        return verb_verify(job);
    case VERB_EVALUATE:
        return verb_evaluate(job);
    case VERB_SERVE:
        return verb_serve(job);
    case VERB_INSPECT:
        return verb_inspect(job);
    default:
        FAIL(ERR_INTERNAL, "no such verb");
    }
}

static void print_error(const struct options *options, enum status status) {
    fprintf(stderr, "halka: %s%s\n", status == STOPPED ? "" : "error: ", status_message());
    if (options->verbose && status != STOPPED)
        fprintf(stderr, "halka: found at %s\n", status_where());
}

// What needs no ranks. True when that was all.
static bool print_text(const struct options *options) {
    bool asked = options->version || options->help || options->check_config;
    if (!asked || !options_process_prints()) return asked;
    if (options->version) {
        puts("halka " HALKA_VERSION);
    } else if (options->help) {
        options_print_help(stdout, options->verb);
    } else {
        options_print_changed(stdout, options);
        puts("the options are valid");
    }
    return true;
}

// Ranks that miss another one do so within a moment: the lowest of them tells of it for all, and
// ends them before their turn comes.
static void wait_turn(int rank) {
    nanosleep(&(struct timespec){.tv_sec = rank < 5 ? rank : 5}, NULL);
}

int main(int argc, char **argv) {
    struct options options;
    struct cluster cluster = {0};
    struct job job = {.options = &options, .cluster = &cluster};
    enum status parsed = options_parse(argc, argv, &options);
    if (parsed == OK && print_text(&options)) {
        options_close(&options);
        return 0;
    }
    if (parsed == OK && verb_writes(options.verb)) stop_watch();
    enum status status = cluster_start(&argc, &argv, (int)options.threads, &cluster);
    if (status == OK) status = job_open_ranks(&job, parsed);
    if (status == OK) status = do_verb(&job);
    beacon_files_close(&job, status);
    // A rank that failed alone, or lost the others, must not wait for them in MPI_Finalize.
    bool alone = job.working && !status_is_shared();
    if (status != OK && (alone || status == ERR_RANK)) {
        status_context(status, "rank %d (%s)", cluster.rank, cluster.host);
        if (status == ERR_RANK) wait_turn(cluster.rank);
        print_error(&options, status);
        cluster_abort(&cluster, status);
    }
    if (status != OK && cluster.rank == 0) print_error(&options, status);
    job_close(&job);
    cluster_stop(&cluster);
    options_close(&options);
    return status;
}
