// Views and rewritten copies of text with the origin of each boundary.
#include "model/tokenizer_text.h"

#include <stdlib.h>
#include <string.h>

int64_t text_view_offset(const struct text_view *view, size_t boundary) {
    return view->origin ? view->origin[boundary] : view->base + (int64_t)boundary;
}

struct text_view text_view_part(const struct text_view *view, size_t begin, size_t end) {
    return (struct text_view){
        .data = view->data + begin,
        .bytes = end - begin,
        .origin = view->origin ? view->origin + begin : NULL,
        .base = view->base + (int64_t)begin,
    };
}

void mapped_text_close(struct mapped_text *text) {
    free(text->data);
    free(text->origin);
    *text = (struct mapped_text){0};
}

static enum status reserve(struct mapped_text *text, size_t more) {
    if (text->data && text->bytes + more <= text->capacity) return OK;
    size_t capacity = text->capacity + text->capacity / 2;
    if (capacity < text->bytes + more + 64) capacity = text->bytes + more + 64;
    char *data = realloc(text->data, capacity);
    if (data) text->data = data;
    int64_t *origin = realloc(text->origin, (capacity + 1) * sizeof(*origin));
    if (origin) text->origin = origin;
    if (!data || !origin) FAIL(ERR_MEMORY, "no memory to normalise %zu bytes of text", capacity);
    text->capacity = capacity;
    return OK;
}

enum status mapped_text_copy(struct mapped_text *out, const struct text_view *in, size_t begin,
                             size_t end) {
    size_t n = end - begin;
    TRY(reserve(out, n));
    memcpy(out->data + out->bytes, in->data + begin, n);
    for (size_t i = 0; i < n; i++) out->origin[out->bytes + i] = text_view_offset(in, begin + i);
    out->bytes += n;
    return OK;
}

enum status mapped_text_write(struct mapped_text *out, const char *data, size_t bytes, int64_t from,
                              int64_t to) {
    TRY(reserve(out, bytes));
    memcpy(out->data + out->bytes, data, bytes);
    for (size_t i = 0; i < bytes; i++) out->origin[out->bytes + i] = i == 0 ? from : to;
    out->bytes += bytes;
    return OK;
}

enum status mapped_text_finish(struct mapped_text *out, int64_t to, struct text_view *view) {
    TRY(reserve(out, 1));
    out->origin[out->bytes] = to;
    *view = (struct text_view){.data = out->data, .bytes = out->bytes, .origin = out->origin};
    return OK;
}
