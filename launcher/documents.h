// The documents of a job. Rank 0 expands lists and globs, reads, checks and tokenises; the other
// ranks receive token ids. Texts are read once for planning and once for the work, so that a batch
// of many documents needs the memory of one.
#ifndef HALKA_LAUNCHER_DOCUMENTS_H
#define HALKA_LAUNCHER_DOCUMENTS_H

#include "dist/cluster.h"
#include "dist/comm.h"
#include "launcher/options.h"
#include "model/digest.h"
#include "model/tokenizer.h"

struct document {
    char *name;      // path as given, or "-"; rank 0
    bool is_tokens;  // a file of token ids
    int64_t n_token; // as its task will read it: with the tokenizer's specials when they are added
    char digest[DIGEST_BYTES]; // of the file's bytes; rank 0
    char *kept; // what was read, where that works only once (standard input, pipes); rank 0
    size_t kept_bytes;
};

struct document_set {
    int n;
    struct document *items;
};

// One document's text and tokens.
struct document_text {
    char *text; // as read, without its byte order mark; rank 0, NULL for token files
    size_t bytes;
    int64_t mark_bytes;       // of the byte order mark: offsets in the file are this much larger
    struct token_list tokens; // ids on every rank; byte ranges on rank 0, none for token files
};

struct document_reader {
    const struct tokenizer *tokenizer; // NULL: only token files can be read
    int64_t n_vocab;
    int encode_flags;   // of texts
    const char *prefix; // before each text, without bytes of its own; NULL: none
    // NULL, or called with each document while all are opened, for what a task plans by.
    enum status (*look)(void *user, const char *name, const struct document_text *text);
    void *user;
};

// On rank 0: finds, checks and measures all documents. On the others: only the counts, after
// document_set_share. ERR_NO_INPUT: missing; ERR_INPUT: empty, not UTF-8, bad token ids.
enum status document_set_open(const struct options *options, const struct document_reader *reader,
                              struct document_set *out);
enum status document_set_share(struct document_set *set, struct comm *comm);
void document_set_close(struct document_set *set); // accepts a zeroed struct

// Reads one again, on rank 0, and sends its ids to every rank. ERR_IO when the file has changed.
enum status document_text_open(const struct document_set *set, int index,
                               const struct document_reader *reader, struct comm *comm,
                               struct document_text *out);
// Of text[bytes] in memory, with a zero behind it, which it takes; close it even after a failure.
enum status document_text_take(const char *name, char *text, size_t bytes,
                               const struct document_reader *reader, struct document_text *out);
void document_text_close(struct document_text *text); // accepts a zeroed struct

// Appends the tokens of a text, or of a list of ids.
enum status document_encode(const struct document_reader *reader, const char *text, size_t bytes,
                            struct token_list *list);
enum status document_add_ids(struct token_list *list, const int32_t *id, int64_t n);

// Whitespace-separated ids below n_vocab; `name` is for messages.
enum status document_parse_tokens(const char *text, size_t bytes, const char *name, int64_t n_vocab,
                                  struct token_list *out);

#endif
