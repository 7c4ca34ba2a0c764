// ranks: 1 2 3
// fake device: 2
// The verbs of the program where the backend computes that HALKA_TEST_BACKEND names, and then on
// the cpu: verify passes, plan knows of the memory, run writes the same results.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include <cmocka.h>

#include "launcher/job.h"
#include "tests/common/mpi_test.h"

enum { MAX_ARGUMENTS = 24 };
static char folder[200];

static const char *in_folder(const char *name) {
    static char path[4][256];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

// One job of a verb, as launcher/main.c runs it, on an open backend and transport.
static enum status run_job(const char *const *arguments, enum status (*verb)(struct job *),
                           struct backend *backend, struct comm *comm) {
    char *argv[MAX_ARGUMENTS];
    int argc = 0;
    while (arguments[argc]) {
        argv[argc] = strdup(arguments[argc]);
        argc++;
    }
    struct options options;
    assert_int_equal(options_parse(argc, argv, &options), OK);
    struct job job = {.options = &options,
                      .cluster = &mpi_test_cluster,
                      .backend = *backend,
                      .comm = *comm,
                      .started = cluster_seconds()};
    enum status status = verb(&job);
    if (status != OK) print_error("%s\n", status_message());
    session_close(&job.session); // it uses both, which are the caller's
    *comm = job.comm;            // with what it counted
    job.comm = (struct comm){0};
    job.backend = (struct backend){0};
    job_close(&job);
    options_close(&options);
    for (int i = 0; i < argc; i++) free(argv[i]);
    return status;
}

static void run_here(const char *const *arguments, enum status (*verb)(struct job *)) {
    struct backend backend;
    mpi_test_open_backend(BACKEND_CPU, &backend);
    assert_int_equal(run_job(arguments, verb, &backend, &mpi_test_comm), OK);
    mpi_test_close_backend(&backend);
}

static void run_on_cpu(const char *const *arguments) {
    struct backend backend;
    assert_int_equal(
        backend_open(&(struct backend_options){.kind = BACKEND_CPU, .n_thread = 1}, &backend), OK);
    assert_int_equal(run_job(arguments, verb_run, &backend, &mpi_test_host_comm), OK);
    backend_close(&backend);
}

// Runs the same job in both places and returns what each wrote, on rank 0.
static void run_both(const char *const *arguments, json_t **here, json_t **cpu) {
    const char *all[MAX_ARGUMENTS] = {"halka", "run", "--output", in_folder("here"), "--overwrite"};
    int n = 5;
    while (*arguments) all[n++] = *arguments++;
    run_here(all, verb_run);
    all[3] = in_folder("cpu");
    run_on_cpu(all);
    *here = *cpu = NULL;
    if (mpi_test_comm.rank != 0) return;
    *here = json_load_file(in_folder("here/results.jsonl"), 0, NULL);
    *cpu = json_load_file(in_folder("cpu/results.jsonl"), 0, NULL);
    assert_non_null(*here);
    assert_non_null(*cpu);
}

static void check_score(const char *const *arguments) {
    json_t *here, *cpu;
    run_both(arguments, &here, &cpu);
    if (!here) return;
    double a = json_number_value(json_object_get(here, "perplexity"));
    double b = json_number_value(json_object_get(cpu, "perplexity"));
    if (!(fabs(a - b) <= 1e-4 * b)) fail_msg("perplexity %.8g, on the cpu %.8g", a, b);
    json_decref(here);
    json_decref(cpu);
}

static void test_verify(void **state) {
    (void)state;
    run_here((const char *[]){"halka", "verify", NULL}, verb_verify);
}

static void test_plan(void **state) {
    (void)state;
    run_here((const char *[]){"halka", "plan", "--model", "tests/fixtures/tiny-llama", "--tokens",
                              in_folder("ids"), NULL},
             verb_plan);
}

static void test_score(void **state) {
    (void)state;
    check_score((const char *[]){"--model", "tests/fixtures/tiny-llama", "--tokens",
                                 in_folder("ids"), "--set", "run.precision=fp32", NULL});
    check_score((const char *[]){"--model", "tests/fixtures/tiny-qwen3", "--tokens",
                                 in_folder("ids"), "--set", "run.precision=fp32", "--set",
                                 "prefill.chunk=50", NULL});
}

static void test_sparse(void **state) {
    (void)state;
    check_score((const char *[]){"--model", "tests/fixtures/deepseek_v32_tiny", "--tokens",
                                 in_folder("ids"), "--set", "run.precision=fp32", "--set",
                                 "dsa.precision=fp32", "--set", "dsa.study=true", NULL});
    if (mpi_test_comm.rank != 0) return;
    json_t *report = json_load_file(in_folder("here/report.json"), 0, NULL);
    const json_t *rank = json_array_get(json_object_get(report, "ranks"), 0);
    const json_t *seconds = json_object_get(rank, "seconds");
    assert_true(json_number_value(json_object_get(seconds, "index")) > 0);
    assert_true(json_number_value(json_object_get(seconds, "attention")) > 0);
    json_int_t planned = json_integer_value(json_object_get(rank, "planned_bytes"));
    json_int_t peak = json_integer_value(json_object_get(rank, "peak_bytes"));
    if (!(peak > 0 && peak <= planned)) // a device's memory; the host's counts libraries as well
        assert_null(json_object_get(rank, "device"));
    const json_t *recall = json_object_get(json_object_get(report, "dsa"), "recall");
    assert_true(json_array_size(recall) > 0);
    json_decref(report);
}

// Greedy answers with the passages that they were read from: the demo model's.
static void test_answer(void **state) {
    (void)state;
    const char *model = getenv("HALKA_MODEL");
    if (!model) skip();
    json_t *here, *cpu;
    run_both((const char *[]){"--model", model, "--document", in_folder("text"), "--question",
                              "Where is the key?", "--task", "answer", "--set", "task.max_tokens=5",
                              "--set", "run.precision=fp32", "--set", "task.evidence=2", NULL},
             &here, &cpu);
    if (!here) return;
    assert_string_equal(json_string_value(json_object_get(here, "answer")),
                        json_string_value(json_object_get(cpu, "answer")));
    const json_t *a = json_array_get(json_object_get(here, "evidence"), 0);
    const json_t *b = json_array_get(json_object_get(cpu, "evidence"), 0);
    assert_string_equal(json_string_value(json_object_get(a, "text")),
                        json_string_value(json_object_get(b, "text")));
    double weight = json_number_value(json_object_get(b, "weight"));
    assert_true(fabs(json_number_value(json_object_get(a, "weight")) - weight) <= 1e-2 * weight);
    json_decref(here);
    json_decref(cpu);
}

static void write_inputs(void) {
    FILE *ids = fopen(in_folder("ids"), "w"), *text = fopen(in_folder("text"), "w");
    if (!ids || !text) exit(1);
    for (int i = 0; i < 120; i++) fprintf(ids, "%d\n", i * 37 % 101);
    fputs("The garden behind the house has three old apple trees and a well.\n\n"
          "The key to the cellar lies under the blue flower pot beside the door.\n\n"
          "In winter the road over the hill is closed, and letters come by boat.\n",
          text);
    fclose(ids);
    fclose(text);
}

int main(int argc, char **argv) {
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s", temporary ? temporary : "/tmp");
    mpi_test_start(&argc, &argv);
    if (mpi_test_comm.rank == 0) write_inputs();
    if (mpi_test_host_comm.ops->barrier(&mpi_test_host_comm) != OK) return mpi_test_stop(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verify), cmocka_unit_test(test_plan),   cmocka_unit_test(test_score),
        cmocka_unit_test(test_sparse), cmocka_unit_test(test_answer),
    };
    return mpi_test_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
