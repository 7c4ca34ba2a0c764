#include "launcher/text_stream.h"

#include <stdlib.h>
#include <string.h>

void text_stream_close(struct text_stream *stream) {
    free(stream->text);
    *stream = (struct text_stream){0};
}

static enum status append(struct text_stream *stream, const char *text, size_t bytes) {
    stream->bytes -= stream->n_given;
    if (stream->bytes > 0) memmove(stream->text, stream->text + stream->n_given, stream->bytes);
    stream->n_given = 0;
    char *longer = realloc(stream->text, stream->bytes + bytes + 1);
    if (!longer) FAIL(ERR_MEMORY, "no memory for an answer's text");
    memcpy(longer + stream->bytes, text, bytes);
    stream->text = longer;
    stream->bytes += bytes;
    return OK;
}

// Decoded behind the token before them, as some tokenizers write the first token of a text
// otherwise.
static enum status append_tokens(struct text_stream *stream, const int32_t *token, int64_t n) {
    char *before = NULL, *both = NULL;
    size_t n_before, n_both;
    int64_t begin = stream->begin;
    enum status status = OK;
    TRY_OR(done, tokenizer_decode(stream->tokenizer, token + begin, stream->end - begin, false,
                                  &before, &n_before));
    TRY_OR(done,
           tokenizer_decode(stream->tokenizer, token + begin, n - begin, false, &both, &n_both));
    size_t from = n_before < n_both ? n_before : n_both;
    TRY_OR(done, append(stream, both + from, n_both - from));
    if (n > stream->end) {
        stream->begin = stream->end;
        stream->end = n;
    }
done:
    free(before);
    free(both);
    return status;
}

// Bytes at the end that begin a character and do not complete it.
static size_t part_of_character(const char *text, size_t bytes) {
    for (size_t back = 1; back <= 3 && back <= bytes; back++) {
        unsigned char c = (unsigned char)text[bytes - back];
        if (c < 0x80) return 0;
        if (c < 0xc0) continue;
        size_t length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
        return length > back ? back : 0;
    }
    return 0;
}

// Bytes at the end that may become a text that stops.
static size_t part_of_stop(const struct text_stream *stream) {
    size_t most = 0;
    for (int i = 0; i < stream->n_stop; i++) {
        size_t n = strlen(stream->stop[i]) - 1;
        if (n > stream->bytes) n = stream->bytes;
        for (; n > most; n--)
            if (memcmp(stream->text + stream->bytes - n, stream->stop[i], n) == 0) most = n;
    }
    return most;
}

// Cuts before the first text that stops.
static void find_stop(struct text_stream *stream) {
    for (int i = 0; i < stream->n_stop; i++) {
        size_t n = strlen(stream->stop[i]);
        const char *at =
            stream->bytes ? memmem(stream->text, stream->bytes, stream->stop[i], n) : NULL;
        if (!at) continue;
        stream->bytes = (size_t)(at - stream->text);
        stream->stopped = true;
    }
}

enum status text_stream_add(struct text_stream *stream, const int32_t *token, int64_t n, bool whole,
                            const char **text, size_t *bytes) {
    *text = "";
    *bytes = 0;
    if (stream->stopped) return OK;
    TRY(append_tokens(stream, token, n));
    find_stop(stream);
    size_t kept = 0;
    if (!stream->stopped && !whole) {
        size_t character = part_of_character(stream->text, stream->bytes);
        kept = part_of_stop(stream);
        if (character > kept) kept = character;
    }
    *text = stream->text;
    *bytes = stream->n_given = stream->bytes - kept;
    return OK;
}
