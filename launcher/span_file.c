#include "launcher/span_file.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define WHITE " \t\r\v\f"

// One number at *at, moving it past the number and the white space after it.
static bool read_number(const char **at, int64_t *out) {
    char *after;
    if (**at < '0' || **at > '9') return false;
    errno = 0;
    *out = strtoll(*at, &after, 10);
    if (errno || (*after && !strchr(WHITE, *after))) return false;
    *at = after + strspn(after, WHITE);
    return true;
}

static enum status read_json(const char *line, const char *name, struct span_line *out) {
    json_error_t error;
    enum status status = OK;
    json_t *object = json_loads(line, JSON_REJECT_DUPLICATES, &error);
    if (!object) FAIL(ERR_INPUT, "%s:%d: %s", name, out->line, error.text);
    const json_t *begin = json_object_get(object, "start"), *end = json_object_get(object, "end");
    const json_t *document = json_object_get(object, "document");
    if (!json_is_integer(begin) || !json_is_integer(end))
        FAIL_OR(done, ERR_INPUT, "%s:%d: a span needs whole numbers \"start\" and \"end\"", name,
                out->line);
    if (document && !json_is_string(document))
        FAIL_OR(done, ERR_INPUT, "%s:%d: \"document\" must be a name in quotes", name, out->line);
    out->begin = json_integer_value(begin);
    out->end = json_integer_value(end);
    if (document && !(out->document = strdup(json_string_value(document))))
        FAIL_OR(done, ERR_MEMORY, "no memory for a document's name");
done:
    json_decref(object);
    return status;
}

static enum status read_line(const char *line, const char *name, struct span_line *out) {
    const char *at = line;
    if (*line == '{') {
        TRY(read_json(line, name, out));
    } else if (!read_number(&at, &out->begin) || !read_number(&at, &out->end) || *at) {
        FAIL(ERR_INPUT,
             "%s:%d: '%.40s' is not a span: write START END, or {\"start\": S, \"end\": E}", name,
             out->line, line);
    }
    if (out->begin < 0 || out->end <= out->begin)
        FAIL(ERR_INPUT,
             "%s:%d: a span begins at 0 or later and ends behind its start, not %lld %lld", name,
             out->line, (long long)out->begin, (long long)out->end);
    return OK;
}

static enum status add_line(struct span_file *file, char *line, int number) {
    if (file->n == file->capacity) {
        int64_t capacity = file->capacity ? 2 * file->capacity : 64;
        struct span_line *larger = realloc(file->lines, (size_t)capacity * sizeof *larger);
        if (!larger)
            FAIL(ERR_MEMORY, "%s: no memory for %lld spans", file->name, (long long)capacity);
        file->lines = larger;
        file->capacity = capacity;
    }
    struct span_line *own = &file->lines[file->n++];
    *own = (struct span_line){.line = number};
    return read_line(line, file->name, own);
}

enum status span_file_parse(const char *text, size_t bytes, const char *name,
                            struct span_file *out) {
    digest_bytes(text, bytes, out->digest);
    char *copy = malloc(bytes + 1);
    out->name = strdup(name);
    if (!copy || !out->name) {
        free(copy);
        FAIL(ERR_MEMORY, "%s: no memory for %zu bytes", name, bytes);
    }
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    enum status status = OK;
    int number = 0;
    for (char *line = copy, *next; status == OK && line < copy + bytes; line = next) {
        char *line_end = memchr(line, '\n', (size_t)(copy + bytes - line));
        size_t length = (size_t)((line_end ? line_end : copy + bytes) - line);
        next = line + length + 1;
        line[length] = '\0';
        number++;
        if (strlen(line) < length)
            status = status_fail(ERR_INPUT, __FILE__, "%s:%d: a zero byte in a file of spans", name,
                                 number);
        line += strspn(line, WHITE);
        if (status == OK && *line) status = add_line(out, line, number);
    }
    free(copy);
    if (status == OK && out->n == 0) FAIL(ERR_INPUT, "%s holds no spans", name);
    return status;
}

enum status span_file_open(const char *path, struct span_file *out) {
    struct stat info;
    FILE *file = stat(path, &info) == 0 && S_ISDIR(info.st_mode) ? NULL : fopen(path, "rb");
    if (!file)
        FAIL(ERR_NO_INPUT,
             "task.passages: cannot read the spans of %s: it is document, paragraphs, or a file",
             path);
    char *text = NULL;
    size_t bytes = 0;
    ssize_t n = getdelim(&text, &bytes, EOF, file);
    bool failed = ferror(file);
    fclose(file);
    enum status status = failed
                             ? status_fail(ERR_IO, __FILE__, "cannot read %s", path)
                             : span_file_parse(n > 0 ? text : "", n > 0 ? (size_t)n : 0, path, out);
    free(text);
    return status;
}

void span_file_close(struct span_file *file) {
    for (int64_t i = 0; i < file->n; i++) free(file->lines[i].document);
    free(file->lines);
    free(file->name);
    *file = (struct span_file){0};
}
