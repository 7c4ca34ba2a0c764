// `halka inspect PATH`: a checkpoint, the results of a run, or what store.dir holds.
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "launcher/beacon_files.h"
#include "launcher/inspect_beacons.h"
#include "launcher/inspect_contexts.h"
#include "launcher/job.h"
#include "model/inspect.h"
#include "model/json_util.h"
#include "model/mapping.h"

static double number(const json_t *object, const char *key) {
    return json_number_value(json_object_get(object, key));
}

static const char *text(const json_t *object, const char *key) {
    const char *value = json_string_value(json_object_get(object, key));
    return value ? value : "-";
}

static void print_result(const json_t *line) {
    const json_t *perplexity = json_object_get(line, "perplexity");
    if (json_object_get(line, "family")) {
        printf("  %s: %s of %.0f tokens, depth %.0f %%, sample %.0f: %s %.6g\n",
               text(line, "method"), text(line, "family"), number(line, "length"),
               number(line, "depth"), number(line, "sample"), perplexity ? "perplexity" : "score",
               number(line, perplexity ? "perplexity" : "score"));
        return;
    }
    printf("  %s: ", text(line, "document"));
    if (strcmp(text(line, "task"), "score") == 0) {
        printf("score, %.0f tokens, perplexity ", number(line, "n_token"));
        json_is_number(perplexity) ? printf("%.6g\n", json_number_value(perplexity))
                                   : printf("none\n");
    } else if (strcmp(text(line, "task"), "embed") == 0) {
        printf("embed, %.0f vector%s of %.0f from row %.0f of vectors.npy, pooling %s\n",
               number(line, "n_row"), number(line, "n_row") == 1 ? "" : "s",
               number(line, "n_hidden"), number(line, "first_row"), text(line, "pooling"));
    } else if (strcmp(text(line, "task"), "locate") == 0) {
        const json_t *best = json_array_get(json_object_get(line, "passages"), 0);
        printf("locate: %.60s -> %.100s\n", text(line, "question"), text(best, "text"));
    } else {
        printf("%s: %.60s -> %.100s\n", text(line, "task"), text(line, "question"),
               text(line, "answer"));
    }
}

static enum status inspect_results(const char *folder, FILE *file) {
    char *line = NULL;
    size_t capacity = 0;
    int n = 0;
    enum status status = OK;
    while (status == OK && getline(&line, &capacity, file) > 0) {
        json_t *object = json_loads(line, 0, NULL);
        if (object) print_result(object);
        json_decref(object);
        if (!object && !strchr(line, '\n')) { // the next start cuts it off
            puts("  an unfinished line");
            break;
        }
        n++;
        if (!object) {
            status = status_fail(ERR_INPUT, __FILE__,
                                 "%s/results.jsonl:%d is not a whole JSON line", folder, n);
        }
    }
    free(line);
    TRY(status);
    if (ferror(file)) FAIL(ERR_IO, "reading %s/results.jsonl failed", folder);
    printf("%s: %d results\n", folder, n);
    return OK;
}

static enum status inspect_report(const char *folder) {
    struct mapping file;
    char *path;
    json_t *report = NULL;
    enum status status = mapping_open_optional(folder, "report.json", &path, &file);
    if (status == OK && path) status = json_read_text(file.data, file.bytes, path, &report);
    if (status == OK && !path) puts("no report: the run has not ended");
    mapping_close(&file);
    free(path);
    if (!report) return status;
    printf("last run: %zu ranks, %.0f tokens read, %.0f generated, %.2f s, %.1f tokens/s, "
           "products %s, K/V %s\n",
           json_array_size(json_object_get(report, "ranks")), number(report, "tokens_read"),
           number(report, "tokens_generated"), number(report, "seconds"),
           number(report, "tokens_per_second"), text(report, "precision"),
           text(report, "kv_precision"));
    json_decref(report);
    return OK;
}

static bool holds(const char *folder, const char *name) {
    char path[4096];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return stat(path, &info) == 0;
}

// Where a service listens; not the token, for which there is the file.
static enum status inspect_service(const char *folder) {
    struct mapping file;
    char *path;
    json_t *service = NULL;
    enum status status = mapping_open_optional(folder, "service.json", &path, &file);
    if (status == OK && path && file.bytes > 0) // empty until it listens
        status = json_read_text(file.data, file.bytes, path, &service);
    if (service)
        printf("%s: a service of %s at %s, process %.0f on %s\n", folder, text(service, "model"),
               text(service, "url"), number(service, "pid"), text(service, "host"));
    json_decref(service);
    mapping_close(&file);
    free(path);
    return status;
}

// What a verb wrote to its output folder.
static enum status inspect_output(const char *folder) {
    char path[4096];
    struct stat info = {0};
    snprintf(path, sizeof path, "%s/results.jsonl", folder);
    bool there = stat(path, &info) == 0;
    FILE *file = S_ISREG(info.st_mode) ? fopen(path, "r") : NULL;
    if (there && !file) FAIL(ERR_NO_INPUT, "%s is no file that can be read", path);
    enum status status = file ? inspect_results(folder, file) : inspect_service(folder);
    if (file) fclose(file);
    if (status == OK) status = inspect_report(folder);
    inspect_beacons(folder, BEACONS_ASKED, stdout);
    return status;
}

static enum status inspect(const struct options *options) {
    const char *path = options->inspect_path;
    if (holds(path, "results.jsonl") || holds(path, "service.json") || holds(path, BEACON_FOLDER))
        return inspect_output(path);
    int n_context;
    TRY(inspect_contexts(path, &n_context));
    if (n_context > 0) return OK;
    struct checkpoint checkpoint = {0};
    enum status status = checkpoint_open(path, &checkpoint);
    if (status == OK) status = checkpoint_describe(&checkpoint, options->verbose, stdout);
    checkpoint_close(&checkpoint);
    return status;
}

enum status verb_inspect(struct job *job) {
    return comm_agree(&job->comm, job->comm.rank == 0 ? inspect(job->options) : OK);
}
