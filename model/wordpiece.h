// WordPiece (BERT): each word is cut greedily into the longest pieces of the vocabulary, of which
// those that continue a word carry a mark. Vocabulary and work are those of bpe.h.
#ifndef HALKA_MODEL_WORDPIECE_H
#define HALKA_MODEL_WORDPIECE_H

#include "model/bpe.h"

struct wordpiece {
    char *mark;            // before pieces that continue a word: "##"; NULL: another model
    int64_t max_character; // a longer word is unknown
};

// Tokens of one word into work->symbol; the unknown token for a word that cannot be cut whole.
enum status wordpiece_encode(const struct bpe *vocabulary, const struct wordpiece *rules,
                             const char *word, size_t bytes, struct bpe_work *work);
// Whether a token that begins a word is written after a space: BERT's decoder leaves it out before
// some punctuation and English endings.
bool wordpiece_takes_space(const char *piece, size_t bytes);

#endif
