#include "launcher/passages.h"

#include <stdlib.h>
#include <string.h>

void passage_list_close(struct passage_list *list) {
    free(list->items);
    *list = (struct passage_list){0};
}

static enum status add(struct passage_list *list, struct text_passage passage) {
    if (list->n == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 16;
        struct text_passage *larger = realloc(list->items, (size_t)capacity * sizeof *larger);
        if (!larger) FAIL(ERR_MEMORY, "no memory for %lld passages", (long long)capacity);
        list->items = larger;
        list->capacity = capacity;
    }
    list->items[list->n++] = passage;
    return OK;
}

static bool is_white(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

void passages_frame(const struct document_text *text, int64_t *n_head, int64_t *n_tail) {
    const struct token_list *t = &text->tokens;
    *n_head = *n_tail = 0;
    if (!t->byte_begin) return;
    while (*n_head < t->n && t->byte_begin[*n_head] == t->byte_end[*n_head]) ++*n_head;
    while (*n_tail < t->n - *n_head &&
           t->byte_begin[t->n - 1 - *n_tail] == t->byte_end[t->n - 1 - *n_tail])
        ++*n_tail;
}

// Where a token begins, for its place in a passage.
static int64_t token_start(const struct document_text *text, int64_t token) {
    int64_t begin = text->tokens.byte_begin[token], end = text->tokens.byte_end[token];
    for (int64_t i = begin; i < end; i++)
        if (!is_white(text->text[i])) return i;
    return begin;
}

// The first token in [from, to) that begins at `byte` or later; `to` where none does.
static int64_t first_token(const struct document_text *text, int64_t from, int64_t to,
                           int64_t byte) {
    while (from < to) {
        int64_t middle = from + (to - from) / 2;
        if (token_start(text, middle) < byte) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    return from;
}

static struct text_passage of_bytes(const struct document_text *text, int64_t begin, int64_t end) {
    int64_t n_head, n_tail;
    passages_frame(text, &n_head, &n_tail);
    int64_t last = text->tokens.n - n_tail;
    int64_t token = first_token(text, n_head, last, begin);
    return (struct text_passage){begin, end, token, first_token(text, token, last, end)};
}

enum status passages_whole(const struct document_text *text, struct passage_list *out) {
    bool has_text = text->tokens.byte_begin != NULL;
    return add(out, (struct text_passage){.byte_begin = has_text ? 0 : -1,
                                          .byte_end = has_text ? (int64_t)text->bytes : -1,
                                          .token_begin = 0,
                                          .token_end = text->tokens.n});
}

enum status passages_paragraphs(const struct document_text *text, const char *name,
                                struct passage_list *out) {
    if (!text->tokens.byte_begin)
        FAIL(ERR_INPUT,
             "%s holds token ids, which have no paragraphs: set task.passages to document, or to a "
             "file of spans with task.span_unit = token",
             name);
    int64_t n = (int64_t)text->bytes, begin = -1, end = 0; // begin -1: between paragraphs
    for (int64_t at = 0; at <= n;) {
        const char *line_end = at < n ? memchr(text->text + at, '\n', (size_t)(n - at)) : NULL;
        int64_t next = line_end ? line_end - text->text + 1 : n + 1;
        int64_t first = at, last = next - 1;
        while (first < last && is_white(text->text[first])) first++;
        while (last > first && is_white(text->text[last - 1])) last--;
        if (first < last) {
            if (begin < 0) begin = first;
            end = last;
        }
        if (begin >= 0 && (first == last || next > n)) {
            struct text_passage passage = of_bytes(text, begin, end);
            if (passage.token_end > passage.token_begin) TRY(add(out, passage));
            begin = -1;
        }
        at = next;
    }
    return OK;
}

static enum status add_given(const struct document_text *text, const char *name,
                             const struct span_file *file, const struct span_line *line,
                             enum span_unit unit, struct passage_list *out) {
    const struct token_list *tokens = &text->tokens;
    int64_t n = unit == SPAN_TOKEN ? tokens->n : (int64_t)text->bytes + text->mark_bytes;
    const char *word = unit == SPAN_TOKEN ? "tokens" : "bytes";
    if (line->end > n)
        FAIL(ERR_INPUT, "%s:%d: the span ends at %lld, but %s has %lld %s", file->name, line->line,
             (long long)line->end, name, (long long)n, word);
    if (unit == SPAN_TOKEN) {
        bool has_text = tokens->byte_begin != NULL;
        return add(out, (struct text_passage){
                            .byte_begin = has_text ? tokens->byte_begin[line->begin] : -1,
                            .byte_end = has_text ? tokens->byte_end[line->end - 1] : -1,
                            .token_begin = line->begin,
                            .token_end = line->end});
    }
    // Bytes are those of the file, whose byte order mark is no part of the text.
    int64_t mark = text->mark_bytes;
    int64_t begin = line->begin > mark ? line->begin - mark : 0;
    int64_t end = line->end > mark ? line->end - mark : 0;
    struct text_passage passage = of_bytes(text, begin, end);
    if (passage.token_begin == passage.token_end)
        FAIL(ERR_INPUT, "%s:%d: no token of %s begins in the span of bytes %lld to %lld",
             file->name, line->line, name, (long long)line->begin, (long long)line->end);
    return add(out, passage);
}

enum status passages_given(const struct document_text *text, const char *name,
                           const struct span_file *file, enum span_unit unit,
                           struct passage_list *out) {
    if (unit == SPAN_BYTE && !text->tokens.byte_begin)
        FAIL(ERR_INPUT,
             "%s holds token ids, in which bytes mean nothing: set task.span_unit = token", name);
    for (int64_t i = 0; i < file->n; i++) {
        const struct span_line *line = &file->lines[i];
        if (line->document && strcmp(line->document, name) != 0) continue;
        TRY(add_given(text, name, file, line, unit, out));
    }
    return OK;
}
