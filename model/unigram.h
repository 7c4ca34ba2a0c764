// Unigram language model (SentencePiece; Kudo 2018): of all ways to cut a piece of text into pieces
// of the vocabulary, the one whose scores sum to most. Vocabulary and work are those of bpe.h.
#ifndef HALKA_MODEL_UNIGRAM_H
#define HALKA_MODEL_UNIGRAM_H

#include "model/bpe.h"

struct unigram {
    double
        *score; // [n] log-probabilities of the first n ids of the vocabulary; NULL: another model
    int32_t *order; // [n] ids in byte order of their pieces
    int64_t n;
    double unknown_score; // of a character without a piece
};

// After the pieces are set: `score` becomes the unigram's.
enum status unigram_open(struct unigram *unigram, const struct bpe *vocabulary, double *score,
                         int64_t n);
void unigram_close(struct unigram *unigram); // accepts a zeroed struct
// Tokens of one piece of text into work->symbol. Characters without a piece that follow one another
// are one unknown token, or their bytes' tokens.
enum status unigram_encode(const struct bpe *vocabulary, const struct unigram *unigram,
                           const char *data, size_t bytes, struct bpe_work *work);

#endif
