// A tokenizer's parts, filled by the readers (tokenizer_json.c, tokenizer_gguf.c) and used by
// encoding and decoding: added tokens, normaliser steps, pre-split stages, the BPE model, specials.
#ifndef HALKA_MODEL_TOKENIZER_INTERNAL_H
#define HALKA_MODEL_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/bpe.h"
#include "model/charsmap.h"
#include "model/digest.h"
#include "model/tokenizer.h"
#include "model/tokenizer_text.h"
#include "model/unigram.h"
#include "model/wordpiece.h"

enum { MAX_STEP = 16, MAX_SPECIAL = 8 };

struct regex {
    char *source; // as the checkpoint writes it
    bool literal;
    pcre2_code *code;
};
// Compiles a pattern of the checkpoint's dialect (Oniguruma, as Hugging Face uses it).
enum status regex_open(const char *source, bool literal, struct regex *out);
void regex_close(struct regex *regex); // accepts a zeroed struct

enum normal_kind {
    NORMAL_FORM,
    NORMAL_PREPEND,
    NORMAL_REPLACE,
    NORMAL_CHARSMAP,
    NORMAL_STRIP,      // white space at the front (form 1), the end (2) or both (3)
    NORMAL_CLEAN,      // without control characters, all white space as spaces
    NORMAL_IDEOGRAPHS, // spaces around each
    NORMAL_MARKS,      // without non-spacing marks
    NORMAL_LOWER,
};
struct normal_step {
    enum normal_kind kind;
    int form;           // enum unicode_form
    char *text;         // PREPEND: what; REPLACE: by what
    struct regex regex; // REPLACE
    struct charsmap charsmap;
};

enum split_behavior {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_WITH_PREVIOUS,
    SPLIT_WITH_NEXT,
    SPLIT_CONTIGUOUS
};
enum stage_kind { STAGE_SPLIT, STAGE_PREFIX_SPACE, STAGE_METASPACE };
enum prefix_scheme { PREFIX_NEVER, PREFIX_FIRST, PREFIX_ALWAYS };
struct stage {
    enum stage_kind kind;
    struct regex regex;
    enum split_behavior behavior;
    bool invert;
    char *mark;                // METASPACE: stands for a space
    enum prefix_scheme prefix; // METASPACE
};

struct added_token {
    int32_t id;
    bool special, normalized, left_strip, right_strip, single_word;
    size_t bytes;
    char *content; // as written; what text must hold to match it
};

// Added tokens in byte order of their content, for longest-match search.
struct added_set {
    struct added_token *token; // [n]
    int64_t n;
    bool first[256]; // some content starts with this byte
};

struct tokenizer {
    struct bpe bpe;
    struct wordpiece wordpiece;          // with a mark: it cuts words, by bpe's vocabulary
    struct unigram unigram;              // with scores: it does
    bool *special;                       // [bpe.n_token]
    struct added_token *added;           // [n_added] in the checkpoint's order
    int64_t n_added;                     //
    struct added_set raw, normalized;    // matched before, and after normalising; borrow content
    char **normal_content;               // [n_added] normalised contents, owned; NULL where equal
    struct normal_step normal[MAX_STEP]; //
    int n_normal;                        //
    struct stage stage[MAX_STEP];        //
    int n_stage;                         //
    int32_t prefix[MAX_SPECIAL];         // ids before ...
    int32_t suffix[MAX_SPECIAL];         // ... and after the text when specials are added
    int n_prefix, n_suffix;              //
    char *mark;                          // decoded as a space; NULL in byte-level models
    int strip_spaces;                    // spaces taken off the front of decoded text
    bool drop_first_marks;               // decoding leaves out the marks of the first token
    char *join_mark;                     // decoding: a token with it joins the one before; NULL:
    bool tidies;                         // all do. Others follow a space, but for punctuation
    int32_t eos;                         //
    char *chat_template;                 //
    char digest[DIGEST_BYTES];           //
};

// Shared by the readers.
enum status tokenizer_allocate(int64_t n_token, struct tokenizer **out);
enum status tokenizer_add_stage(struct tokenizer *tokenizer, const char *pattern, bool literal,
                                enum split_behavior behavior, bool invert);
// `content` is copied. The id's piece becomes the content; text finds it by the added sets alone.
enum status tokenizer_add_token(struct tokenizer *tokenizer, struct added_token token,
                                const char *content);
// GPT-2's printable alphabet undone: writes the bytes that `literal` stands for; false when a
// character is outside of it. `out` has room for `bytes`.
bool tokenizer_undo_alphabet(const char *literal, size_t bytes, char *out, size_t *n_out);
// Byte of "<0xNN>", or -1.
int tokenizer_byte_literal(const char *literal, size_t bytes);
// After vocabulary, merges and tokens are in place: added sets and digest.
enum status tokenizer_finish(struct tokenizer *tokenizer);

// All normaliser steps on one view. `scratch` owns the result's bytes, if they are new.
enum status tokenizer_normalize(const struct tokenizer *tokenizer, const struct text_view *in,
                                bool skip_prefix, struct mapped_text *scratch,
                                struct text_view *out);

// tokenizer_bert.c: the steps that change characters one by one; `out` is not finished.
enum status tokenizer_rewrite(enum normal_kind kind, const struct text_view *in,
                              struct mapped_text *out);

extern const char tokenizer_gpt2_pattern[];

#endif
