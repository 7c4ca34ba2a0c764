// The parts of a document that get vectors: the whole, paragraphs (runs of lines that blank ones
// part, without the white space around them), or given spans. A token lies in the passage that
// holds its first byte that is not white space; specials and prefix, which have no bytes, lie in
// none.
#ifndef HALKA_LAUNCHER_PASSAGES_H
#define HALKA_LAUNCHER_PASSAGES_H

#include "launcher/documents.h"
#include "launcher/span_file.h"

enum span_unit { SPAN_BYTE, SPAN_TOKEN };

struct text_passage {
    int64_t byte_begin, byte_end;   // of the text; -1 for token files
    int64_t token_begin, token_end; // of the document's tokens, specials counted
};

struct passage_list {
    int64_t n, capacity;
    struct text_passage *items; // owned; in the order of the text, or of the file of spans
};
void passage_list_close(struct passage_list *list); // accepts a zeroed struct

// The whole document, specials and prefix too.
enum status passages_whole(const struct document_text *text, struct passage_list *out);
// ERR_INPUT for token files. A paragraph in which no token begins is left out.
enum status passages_paragraphs(const struct document_text *text, const char *name,
                                struct passage_list *out);
// ERR_INPUT, naming the line, where a span does not lie in the document or holds no token.
enum status passages_given(const struct document_text *text, const char *name,
                           const struct span_file *file, enum span_unit unit,
                           struct passage_list *out);

// Tokens without bytes at the beginning and the end: specials and prefix; 0 for token files.
void passages_frame(const struct document_text *text, int64_t *n_head, int64_t *n_tail);

#endif
