// Questions about a long text whose answers are known: the families of RULER (Hsieh et al. 2024)
// and the pass key of Mohtashami and Jaggi 2023, in a text that the user names. Every number and
// place is a pure function of (seed, family, length, depth, sample).
#ifndef HALKA_LAUNCHER_RETRIEVAL_H
#define HALKA_LAUNCHER_RETRIEVAL_H

#include "model/chat.h"
#include "model/digest.h"
#include "model/tokenizer.h"

enum retrieval_family {
    RETRIEVAL_PASSKEY,
    RETRIEVAL_SINGLE,     // one key and its number
    RETRIEVAL_MULTIKEY,   // one of four
    RETRIEVAL_MULTIVALUE, // all four numbers of one key
    RETRIEVAL_TRACKING,   // all names in a chain of assignments
    RETRIEVAL_WORDS,      // the three most frequent of many coded words; no depth, no text
    N_RETRIEVAL
};
extern const char *const retrieval_family_name[N_RETRIEVAL];

struct retrieval_cell {
    enum retrieval_family family;
    int64_t length; // tokens of prompt and longest answer together
    int depth;      // percent of the text before the needle; of several, before the first
    int64_t sample;
    uint64_t seed;
};

// What prompts are made of, on the rank that makes them.
struct retrieval_source {
    const struct tokenizer *tokenizer;
    const struct chat_template *chat;
    const int32_t *text;     // [n_text] tokens that needles are hidden in, read again from the
    const bool *is_boundary; // start where they do not suffice; [n_text] a sentence ends after it
    int64_t n_text;
};

enum { RETRIEVAL_MAX_EXPECTED = 5, RETRIEVAL_WORD_BYTES = 24 };
struct retrieval_prompt {
    int32_t *token; // [n] owned
    int64_t n;
    int64_t max_tokens; // of the answer
    int n_expected;
    char expected[RETRIEVAL_MAX_EXPECTED][RETRIEVAL_WORD_BYTES];
    char digest[DIGEST_BYTES]; // of tokens and expected answers
};

// ERR_CONFIG when the length has no room for the question.
enum status retrieval_build(const struct retrieval_source *source,
                            const struct retrieval_cell *cell, struct retrieval_prompt *out);
void retrieval_prompt_close(struct retrieval_prompt *prompt); // accepts a zeroed struct
// Share of the expected words that the answer contains, in upper or lower case.
double retrieval_score(const struct retrieval_prompt *prompt, const char *answer);
int64_t retrieval_max_tokens(enum retrieval_family family);

// Marks where sentences end. byte_end: [n] offsets in `text` after each token.
void retrieval_mark_boundaries(const char *text, size_t bytes, const int64_t *byte_end, int64_t n,
                               bool *is_boundary);

#endif
