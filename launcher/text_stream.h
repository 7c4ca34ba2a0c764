// The text of tokens as they come: whole characters, up to the first of some texts that end it.
#ifndef HALKA_LAUNCHER_TEXT_STREAM_H
#define HALKA_LAUNCHER_TEXT_STREAM_H

#include "model/tokenizer.h"

struct text_stream {
    const struct tokenizer *tokenizer;
    char *const *stop; // [n_stop] none is empty
    int n_stop;
    bool stopped;       // one of them came: there is no more text
    int64_t begin, end; // tokens whose text is known
    char *text;         // owned: of them, what was not yet given
    size_t bytes, n_given;
};
void text_stream_close(struct text_stream *stream); // accepts a zeroed struct

// The text of token[n], the first of which the stream has already, as far as it is certain: gives
// *text[*bytes], which is valid until the next call. whole: no more tokens come.
enum status text_stream_add(struct text_stream *stream, const int32_t *token, int64_t n, bool whole,
                            const char **text, size_t *bytes);

#endif
