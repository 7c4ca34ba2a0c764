// Finds, reads, checks and tokenises documents on rank 0, and shares token ids.
#include "launcher/documents.h"

#include <ctype.h>
#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char byte_order_mark[] = "\xef\xbb\xbf";
enum { MARK_BYTES = 3 };

static enum status read_stream(FILE *file, const char *name, char **text, size_t *bytes) {
    size_t capacity = 1 << 16, n = 0;
    char *data = malloc(capacity);
    while (data) {
        n += fread(data + n, 1, capacity - n - 1, file);
        if (n < capacity - 1) break;
        char *larger = realloc(data, capacity *= 2);
        if (!larger) free(data);
        data = larger;
    }
    if (!data) FAIL(ERR_MEMORY, "%s: no memory for a document of more than %zu bytes", name, n);
    if (ferror(file)) {
        free(data);
        FAIL(ERR_IO, "%s: reading stopped after %zu bytes: %s", name, n, strerror(errno));
    }
    data[n] = '\0';
    *text = data;
    *bytes = n;
    return OK;
}

static enum status read_file(const char *path, char **text, size_t *bytes) {
    struct stat info;
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
        FAIL(ERR_NO_INPUT, "%s is a folder: name a file, or a glob such as '%s/*.txt'", path, path);
    }
    FILE *file = fopen(path, "rb");
    if (!file && strncmp(path, "/dev/fd/", 8) == 0)
        FAIL(ERR_NO_INPUT,
             "%s: cannot open the document: mpirun does not pass on what the shell's <(...) opens: "
             "write it to a file, or to standard input and name '-'",
             path);
    if (!file) FAIL(ERR_NO_INPUT, "%s: cannot open the document: %s", path, strerror(errno));
    enum status status = read_stream(file, path, text, bytes);
    fclose(file);
    return status;
}

static enum status add_document(struct document_set *set, const char *name, bool is_tokens) {
    struct document *items = realloc(set->items, ((size_t)set->n + 1) * sizeof *items);
    if (!items) FAIL(ERR_MEMORY, "no memory for a list of %d documents", set->n + 1);
    set->items = items;
    items[set->n] = (struct document){.is_tokens = is_tokens};
    if (!(items[set->n].name = strdup(name))) FAIL(ERR_MEMORY, "no memory for a file name");
    set->n++;
    return OK;
}

// A path that exists is taken as it is, even with glob characters in it.
static enum status add_pattern(struct document_set *set, const char *pattern, bool is_tokens) {
    struct stat info;
    if (strcmp(pattern, "-") == 0) {
        for (int i = 0; i < set->n; i++)
            if (strcmp(set->items[i].name, "-") == 0)
                FAIL(ERR_CONFIG, "standard input (-) can be read once, but is named twice");
        TRY(add_document(set, pattern, is_tokens));
        struct document *own = &set->items[set->n - 1];
        return read_stream(stdin, "standard input", &own->kept, &own->kept_bytes);
    }
    bool exists = stat(pattern, &info) == 0;
    if (exists || !strpbrk(pattern, "*?[")) {
        TRY(add_document(set, pattern, is_tokens));
        struct document *own = &set->items[set->n - 1];
        if (!exists || S_ISREG(info.st_mode) || S_ISDIR(info.st_mode)) return OK;
        return read_file(pattern, &own->kept, &own->kept_bytes);
    }
    glob_t found = {0};
    if (glob(pattern, 0, NULL, &found) != 0) {
        globfree(&found);
        FAIL(ERR_NO_INPUT, "no file matches '%s'", pattern);
    }
    enum status status = OK;
    for (size_t i = 0; i < found.gl_pathc && status == OK; i++) {
        status = add_document(set, found.gl_pathv[i], is_tokens);
    }
    globfree(&found);
    return status;
}

static enum status add_list(struct document_set *set, const char *path) {
    char *text, *line_end;
    size_t bytes;
    TRY(read_file(path, &text, &bytes));
    enum status status = OK;
    for (char *line = text; line && *line && status == OK; line = line_end) {
        line_end = strchr(line, '\n');
        if (line_end) *line_end++ = '\0';
        line[strcspn(line, "\r")] = '\0';
        if (*line) status = add_document(set, line, false);
    }
    free(text);
    return status;
}

static enum status find_documents(const struct options *options, struct document_set *set) {
    for (int i = 0; i < options->documents.n; i++) {
        TRY(add_pattern(set, options->documents.items[i], false));
    }
    for (int i = 0; i < options->token_files.n; i++) {
        TRY(add_pattern(set, options->token_files.items[i], true));
    }
    if (options->document_list) TRY(add_list(set, options->document_list));
    if (set->n == 0) FAIL(ERR_INPUT, "%s names no document", options->document_list);
    return OK;
}

enum status document_parse_tokens(const char *text, size_t bytes, const char *name, int64_t n_vocab,
                                  struct token_list *out) {
    const char *at = text, *end = text + bytes;
    int64_t capacity = 0;
    while (true) {
        while (at < end && isspace((unsigned char)*at)) at++;
        if (at == end) break;
        char *after;
        errno = 0;
        long long id = strtoll(at, &after, 10);
        if (after == at || errno || (after < end && !isspace((unsigned char)*after))) {
            size_t shown = strcspn(at, " \t\r\n\v\f");
            FAIL(ERR_INPUT, "%s: '%.*s' at byte %td is not a token id", name,
                 (int)(shown < 40 ? shown : 40), at, at - text);
        }
        if (id < 0 || id >= n_vocab) {
            FAIL(ERR_INPUT, "%s: token id %lld at byte %td is outside the vocabulary of %lld", name,
                 id, at - text, (long long)n_vocab);
        }
        if (out->n == capacity) {
            capacity = capacity ? 2 * capacity : 4096;
            int32_t *larger = realloc(out->id, (size_t)capacity * sizeof *larger);
            if (!larger)
                FAIL(ERR_MEMORY, "%s: no memory for %lld tokens", name, (long long)capacity);
            out->id = larger;
            out->capacity = capacity;
        }
        out->id[out->n++] = (int32_t)id;
        at = after;
    }
    if (out->n == 0) FAIL(ERR_INPUT, "%s holds no token ids", name);
    return OK;
}

// A prefix is read with the text, as one string; its tokens have no bytes.
enum status document_encode(const struct document_reader *reader, const char *text, size_t bytes,
                            struct token_list *list) {
    if (!reader->prefix || !*reader->prefix)
        return tokenizer_encode(reader->tokenizer, text, bytes, reader->encode_flags, list);
    size_t n_prefix = strlen(reader->prefix);
    int64_t first = list->n;
    char *whole = malloc(n_prefix + bytes + 1);
    if (!whole) FAIL(ERR_MEMORY, "no memory for a text of %zu bytes", n_prefix + bytes);
    memcpy(whole, reader->prefix, n_prefix);
    memcpy(whole + n_prefix, text, bytes);
    whole[n_prefix + bytes] = '\0';
    enum status status =
        tokenizer_encode(reader->tokenizer, whole, n_prefix + bytes, reader->encode_flags, list);
    free(whole);
    for (int64_t i = first; status == OK && i < list->n; i++) {
        int64_t begin = list->byte_begin[i] - (int64_t)n_prefix;
        int64_t end = list->byte_end[i] - (int64_t)n_prefix;
        list->byte_begin[i] = begin > 0 ? begin : 0;
        list->byte_end[i] = end > 0 ? end : 0;
    }
    return status;
}

enum status document_add_ids(struct token_list *list, const int32_t *id, int64_t n) {
    if (n == 0) return OK;
    if (list->n + n > list->capacity) {
        int64_t capacity = list->n + n + list->capacity / 2;
        int32_t *larger = realloc(list->id, (size_t)capacity * sizeof *larger);
        if (!larger) FAIL(ERR_MEMORY, "no memory for %lld tokens", (long long)capacity);
        list->id = larger;
        list->capacity = capacity;
    }
    memcpy(list->id + list->n, id, (size_t)n * sizeof *id);
    list->n += n;
    return OK;
}

static enum status tokenize(const struct document *document, const struct document_reader *reader,
                            struct document_text *out) {
    if (document->is_tokens) {
        return document_parse_tokens(out->text, out->bytes, document->name, reader->n_vocab,
                                     &out->tokens);
    }
    if (!reader->tokenizer) {
        FAIL(ERR_INPUT,
             "%s: the checkpoint has no tokenizer (tokenizer.json): give token ids with "
             "--tokens instead of --document",
             document->name);
    }
    if (out->bytes == 0) FAIL(ERR_INPUT, "%s is empty", document->name);
    enum status status = document_encode(reader, out->text, out->bytes, &out->tokens);
    if (status != OK) return status_context(status, "%s", document->name);
    for (int64_t i = 0; i < out->tokens.n; i++) {
        if (out->tokens.id[i] >= reader->n_vocab) {
            FAIL(ERR_INPUT, "%s: the tokenizer's id %d is outside the model's vocabulary of %lld",
                 document->name, out->tokens.id[i], (long long)reader->n_vocab);
        }
    }
    if (out->tokens.n == 0) FAIL(ERR_INPUT, "%s holds no tokens", document->name);
    return OK;
}

static enum status take_text(const struct document *document, const struct document_reader *reader,
                             struct document_text *out) {
    if (out->bytes >= MARK_BYTES && memcmp(out->text, byte_order_mark, MARK_BYTES) == 0) {
        out->mark_bytes = MARK_BYTES;
        out->bytes -= MARK_BYTES;
        memmove(out->text, out->text + MARK_BYTES, out->bytes + 1);
    }
    return tokenize(document, reader, out);
}

// Reads and tokenises; `digest` is of the file's bytes.
static enum status load(const struct document *document, const struct document_reader *reader,
                        struct document_text *out, char digest[DIGEST_BYTES]) {
    if (document->kept) {
        if (!(out->text = malloc(document->kept_bytes + 1))) {
            FAIL(ERR_MEMORY, "no memory for the document");
        }
        memcpy(out->text, document->kept, document->kept_bytes + 1);
        out->bytes = document->kept_bytes;
    } else {
        TRY(read_file(document->name, &out->text, &out->bytes));
    }
    digest_bytes(out->text, out->bytes, digest);
    return take_text(document, reader, out);
}

enum status document_text_take(const char *name, char *text, size_t bytes,
                               const struct document_reader *reader, struct document_text *out) {
    *out = (struct document_text){.text = text, .bytes = bytes};
    return take_text(&(struct document){.name = (char *)name}, reader, out);
}

enum status document_set_open(const struct options *options, const struct document_reader *reader,
                              struct document_set *out) {
    TRY(find_documents(options, out));
    for (int i = 0; i < out->n; i++) {
        struct document *document = &out->items[i];
        struct document_text text = {0};
        enum status status = load(document, reader, &text, document->digest);
        document->n_token = text.tokens.n;
        if (status == OK && reader->look)
            status = reader->look(reader->user, document->name, &text);
        document_text_close(&text);
        TRY(status);
    }
    return OK;
}

enum status document_set_share(struct document_set *set, struct comm *comm) {
    int64_t n = set->n;
    TRY(comm->ops->broadcast(comm, &n, sizeof n, 0));
    int64_t *counts = calloc((size_t)n, sizeof *counts);
    if (!set->items) set->items = calloc((size_t)n, sizeof *set->items);
    bool room = counts && set->items;
    enum status status =
        comm_agree(comm, room ? OK
                              : status_fail(ERR_MEMORY, __FILE__, "no memory for %lld documents",
                                            (long long)n));
    if (status != OK || !room) goto done;
    for (int i = 0; i < set->n; i++) counts[i] = set->items[i].n_token;
    TRY_OR(done, comm->ops->broadcast(comm, counts, n * (int64_t)sizeof *counts, 0));
    set->n = (int)n;
    for (int i = 0; i < set->n; i++) set->items[i].n_token = counts[i];
done:
    free(counts);
    return status;
}

void document_set_close(struct document_set *set) {
    for (int i = 0; i < set->n; i++) {
        free(set->items[i].name);
        free(set->items[i].kept);
    }
    free(set->items);
    *set = (struct document_set){0};
}

enum status document_text_open(const struct document_set *set, int index,
                               const struct document_reader *reader, struct comm *comm,
                               struct document_text *out) {
    const struct document *document = &set->items[index];
    char digest[DIGEST_BYTES];
    *out = (struct document_text){0};
    if (comm->rank == 0) {
        TRY(load(document, reader, out, digest));
        if (strcmp(digest, document->digest) != 0) {
            FAIL(ERR_IO, "%s was changed while the job ran: submit it again", document->name);
        }
    } else {
        out->tokens.id = malloc((size_t)document->n_token * sizeof *out->tokens.id);
        if (!out->tokens.id)
            FAIL(ERR_MEMORY, "no memory for %lld tokens", (long long)document->n_token);
        out->tokens.n = document->n_token;
    }
    return comm->ops->broadcast(comm, out->tokens.id,
                                document->n_token * (int64_t)sizeof *out->tokens.id, 0);
}

void document_text_close(struct document_text *text) {
    free(text->text);
    token_list_close(&text->tokens);
    *text = (struct document_text){0};
}
