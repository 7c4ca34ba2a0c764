#include "launcher/results.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/durable.h"
#include "model/utf8.h"

static enum status add_option(XXH3_state_t *hash, const struct options *o,
                              const struct option *option) {
    char value[64], digest[DIGEST_BYTES];
    digest_add_text(hash, option->path);
    if (option->type != OPTION_STRING) {
        option_format(o, option, value, sizeof value);
        digest_add_text(hash, value);
        return OK;
    }
    const char *text = *(char *const *)((const char *)o + option->offset);
    if (text && option->is_file) {
        TRY(digest_file(text, digest));
        text = digest;
    }
    digest_add_text(hash, text);
    return OK;
}

enum status options_digest(const struct options *o, enum digest_scope scope,
                           char out[DIGEST_BYTES]) {
    XXH3_state_t *hash = XXH3_createState();
    enum status status = OK;
    XXH3_128bits_reset(hash);
    for (int i = 0; status == OK && i < n_option; i++)
        if (scope == CHANGES_CONTEXT ? option_table[i].changes_context
                                     : option_table[i].changes_result)
            status = add_option(hash, o, &option_table[i]);
    digest_print(XXH3_128bits_digest(hash), out);
    XXH3_freeState(hash);
    return status;
}

static const char *const task_name[] = {"score", "answer", "embed", "locate"};

void result_id(const struct job *job, const char *option_digest, int document, int question,
               char out[RESULT_ID_BYTES]) {
    const struct options *o = job->options;
    XXH3_state_t *hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    digest_add_text(hash, job->documents.items[document].name);
    digest_add_text(hash, job->documents.items[document].digest);
    digest_add_text(hash, task_name[o->task]);
    digest_add_text(hash, question >= 0 ? o->questions.items[question] : NULL);
    digest_add_text(hash, job->checkpoint.digest);
    digest_add_text(hash, job->tokenizer ? tokenizer_digest(job->tokenizer) : NULL);
    if (model_spec_reads_length(&job->checkpoint.spec)) {
        int64_t length = job_sequence_length(job, document);
        XXH3_128bits_update(hash, &length, sizeof length);
    }
    digest_add_text(hash, option_digest);
    if (job->spans.name) digest_add_text(hash, job->spans.digest);
    const struct vector_head *head = &job->vector_head;
    digest_add_text(hash, head->modules.digest);
    digest_add_text(hash, head->prefix);
    digest_add_text(hash, head->query_prefix);
    digest_print(XXH3_128bits_digest(hash), out);
    XXH3_freeState(hash);
}

static int compare_lines(const void *a, const void *b) {
    return strcmp(((const struct result_line *)a)->id, ((const struct result_line *)b)->id);
}

static enum status list_lines(struct results *results, char (*ids)[RESULT_ID_BYTES], int n) {
    results->lines = calloc((size_t)n + 1, sizeof *results->lines);
    if (!results->lines) FAIL(ERR_MEMORY, "no memory for %d results", n);
    results->n = n;
    for (int i = 0; i < n; i++) memcpy(results->lines[i].id, ids[i], RESULT_ID_BYTES);
    qsort(results->lines, (size_t)n, sizeof *results->lines, compare_lines);
    return OK;
}

// The first line with this id; NULL: there is none.
static struct result_line *find_line(struct results *results, const char *id) {
    int low = 0, high = results->n;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (strcmp(results->lines[middle].id, id) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    bool found = low < results->n && strcmp(results->lines[low].id, id) == 0;
    return found ? &results->lines[low] : NULL;
}

// Sets `there` of one line with this id that has it otherwise; false: none has.
static bool turn(struct results *results, const char *id, bool there) {
    struct result_line *line = find_line(results, id), *end = results->lines + results->n;
    while (line && line < end && strcmp(line->id, id) == 0 && line->there == there) line++;
    if (!line || line == end || strcmp(line->id, id) != 0) return false;
    line->there = there;
    return true;
}

bool results_take(struct results *results, const char *id) {
    return turn(results, id, false);
}

// Checks one line of an earlier run against this job's and remembers it.
static enum status read_line(struct results *results, const char *line, int n_line) {
    json_t *object = json_loads(line, 0, NULL);
    const char *id = json_string_value(json_object_get(object, "id"));
    bool own = id && find_line(results, id);
    if (own) turn(results, id, true);
    int64_t n_row = json_integer_value(json_object_get(object, "first_row")) +
                    json_integer_value(json_object_get(object, "n_row"));
    if (own && n_row > results->n_row) results->n_row = n_row;
    json_decref(object);
    if (own) return OK;
    FAIL(ERR_CREATE,
         "%s:%d belongs to another job (other documents, task, model or options): "
         "choose another --output, or add --overwrite",
         results->path, n_line);
}

static enum status read_lines(struct results *results, FILE *file, int64_t *whole) {
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    enum status status = OK;
    int n_line = 0;
    *whole = 0;
    while (status == OK && (length = getline(&line, &capacity, file)) > 0) {
        if (line[length - 1] != '\n') break; // an earlier run ended while writing it
        status = read_line(results, line, ++n_line);
        *whole += length;
    }
    free(line);
    return status;
}

static enum status continue_file(struct results *results) {
    struct stat info;
    if (stat(results->path, &info) != 0 || !S_ISREG(info.st_mode)) return OK;
    FILE *file = fopen(results->path, "r");
    if (!file) FAIL(ERR_CREATE, "cannot read %s: %s", results->path, strerror(errno));
    int64_t whole;
    enum status status = read_lines(results, file, &whole);
    fclose(file);
    TRY(status);
    if (whole < info.st_size && truncate(results->path, whole) != 0) {
        FAIL(ERR_CREATE, "cannot cut the unfinished last line of %s: %s", results->path,
             strerror(errno));
    }
    return OK;
}

// One job at a time: the lock is this descriptor's, and goes with it however the job ends.
static enum status open_file(struct results *results) {
    int flags = O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC; // to write alone would wait at a FIFO
    struct stat info;
    results->file = open(results->path, flags, 0666);
    if (results->file >= 0 && fstat(results->file, &info) == 0 && S_ISFIFO(info.st_mode))
        FAIL(ERR_CREATE, "%s is a pipe: choose another --output", results->path);
    if (results->file < 0) FAIL(ERR_CREATE, "cannot write %s: %s", results->path, strerror(errno));
    if (flock(results->file, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        FAIL(ERR_CREATE,
             "%s is being written by another job: wait for it, or choose another --output",
             results->path);
    return OK;
}

enum status results_open(const struct options *options, char (*ids)[RESULT_ID_BYTES], int n,
                         struct results *out) {
    *out = (struct results){.file = -1};
    TRY(durable_folder(options->output, "output folder", "--output"));
    if (asprintf(&out->path, "%s/results.jsonl", options->output) < 0) {
        out->path = NULL;
        FAIL(ERR_MEMORY, "no memory for a path");
    }
    TRY(open_file(out));
    TRY(list_lines(out, ids, n));
    if (!options->overwrite) return continue_file(out);
    if (ftruncate(out->file, 0) != 0 && errno != EINVAL)
        FAIL(ERR_CREATE, "cannot empty %s: %s", out->path, strerror(errno));
    return OK;
}

void results_close(struct results *results) {
    if (results->path && results->file >= 0) close(results->file);
    free(results->path);
    free(results->lines);
    *results = (struct results){0};
}

static enum status write_all(int file, const char *path, const char *text, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(file, text + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) FAIL(ERR_IO, "cannot write %s: %s", path, strerror(errno));
        done += (size_t)n;
    }
    return OK;
}

enum status results_sync(struct results *results) {
    return durable_sync(results->file, results->path);
}

enum status results_append(struct results *results, const char *id, json_t *object) {
    char *text = NULL;
    if (object && json_object_set_new(object, "id", json_string(id)) == 0) {
        text = json_dumps(object, JSON_REAL_PRECISION(9));
    }
    json_decref(object);
    if (!text) FAIL(ERR_MEMORY, "no memory for a line of %s", results->path);
    size_t bytes = strlen(text);
    text[bytes] = '\n'; // in place of the terminator: one write, so that lines stay whole
    enum status status = write_all(results->file, results->path, text, bytes + 1);
    free(text);
    return status;
}

enum status results_write(struct results *results, const char *id, json_t *object) {
    TRY(results_append(results, id, object));
    return results_sync(results);
}

json_t *json_number(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

json_t *json_text(const char *text, size_t bytes) {
    static const char replacement[] = "\xef\xbf\xbd";
    if (utf8_is_valid(text, bytes)) return json_stringn(text, bytes);
    char *clean = malloc(3 * bytes + 1);
    size_t n = 0;
    if (!clean) return NULL;
    for (size_t at = 0, length; at < bytes; at += length) {
        for (length = 1; length < 4 && at + length < bytes; length++) {
            if (utf8_is_valid(text + at, length)) break;
        }
        bool valid = utf8_is_valid(text + at, length);
        memcpy(clean + n, valid ? text + at : replacement, valid ? length : 3);
        n += valid ? length : 3;
        if (!valid) length = 1;
    }
    json_t *value = json_stringn(clean, n);
    free(clean);
    return value;
}

enum status output_write(const struct options *options, const char *name, const char *text) {
    enum status status = OK;
    char *path = NULL, *part = NULL;
    if (asprintf(&path, "%s/%s", options->output, name) < 0 ||
        asprintf(&part, "%s/.%s.part", options->output, name) < 0)
        FAIL_OR(done, ERR_MEMORY, "no memory for a path");
    status = durable_put(part, path, text, strlen(text));
done:
    free(part);
    free(path);
    return status;
}
