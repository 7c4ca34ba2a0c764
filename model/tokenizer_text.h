// Text under rewriting: a view of some bytes that knows where each of them came from, and a builder
// that makes a rewritten copy. Offsets are kept per boundary, so spans stay in order and tile.
#ifndef HALKA_MODEL_TOKENIZER_TEXT_H
#define HALKA_MODEL_TOKENIZER_TEXT_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

struct text_view {
    const char *data; // [bytes] not terminated, not owned
    size_t bytes;
    const int64_t *origin; // [bytes + 1] offset in the caller's text of each boundary, or NULL:
    int64_t base;          // boundary i is at base + i
};
int64_t text_view_offset(const struct text_view *view, size_t boundary);
struct text_view text_view_part(const struct text_view *view, size_t begin, size_t end);

struct mapped_text {
    char *data;
    size_t bytes, capacity;
    int64_t *origin; // [bytes + 1] once finished
};
void mapped_text_close(struct mapped_text *text); // accepts a zeroed struct
// Appends bytes begin .. end - 1 of `in` unchanged.
enum status mapped_text_copy(struct mapped_text *out, const struct text_view *in, size_t begin,
                             size_t end);
// Appends `bytes` that stand for original bytes from .. to - 1: the first byte carries them all.
enum status mapped_text_write(struct mapped_text *out, const char *data, size_t bytes, int64_t from,
                              int64_t to);
// Sets the last boundary and returns the whole as a view.
enum status mapped_text_finish(struct mapped_text *out, int64_t to, struct text_view *view);

#endif
