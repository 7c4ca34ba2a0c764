// Byte-pair encoding: a vocabulary of byte strings and ranked merges of adjacent tokens. Works on
// raw bytes (byte-level models, GPT-2's printable alphabet already undone) or on characters
// (SentencePiece models). Equal ranks merge from left to right.
#ifndef HALKA_MODEL_BPE_H
#define HALKA_MODEL_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

struct bpe_piece {
    uint64_t begin; // in bpe.text
    uint32_t bytes;
    bool defined;  // the id exists
    bool findable; // text can become this token; false for specials and unused literals
};

struct bpe_merge {
    int32_t left, right, merged;
    uint32_t rank; // UINT32_MAX: empty slot
};

struct bpe {
    int64_t n_token;
    struct bpe_piece *piece; // [n_token]
    char *text;              // all pieces
    uint64_t text_bytes, text_capacity;
    int32_t *slot; // [n_slot] open addressing over findable pieces; -1 empty
    uint64_t n_slot;
    struct bpe_merge *merge; // [n_merge_slot] open addressing over (left, right)
    uint64_t n_merge_slot, n_merge;
    int32_t single[256];     // token of each one-byte piece, -1: none
    int32_t byte_token[256]; // token of each byte for fallback, -1: none
    int32_t unknown;         // -1: characters without a token are left out
    bool by_bytes;           // symbols start as bytes, not as characters
    bool byte_fallback, fuse_unknown, whole_pieces;
    bool cuts_before_mark; // no token holds "x▁": a piece may be cut there without change
};

enum status bpe_open(struct bpe *bpe, int64_t n_token);
void bpe_close(struct bpe *bpe); // accepts a zeroed struct
enum status bpe_set_piece(struct bpe *bpe, int64_t id, const char *data, size_t bytes,
                          bool findable);
const char *bpe_piece_data(const struct bpe *bpe, int64_t id, size_t *bytes); // NULL: no such id
// Builds the look-up table of the pieces; call once, after all are set.
enum status bpe_index(struct bpe *bpe);
int32_t bpe_find(const struct bpe *bpe, const char *data, size_t bytes); // -1 when absent

// Makes room for `n` merges, then adds them; a pair named twice takes the later rank.
enum status bpe_reserve_merges(struct bpe *bpe, uint64_t n);
void bpe_add_merge(struct bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t merged);
const struct bpe_merge *bpe_find_merge(const struct bpe *bpe, int32_t left, int32_t right);
// Merges as SentencePiece has them: any two pieces whose concatenation is a piece, by the score of
// that piece, largest first. score: [n_token].
enum status bpe_merges_from_scores(struct bpe *bpe, const float *score);

struct bpe_symbol {
    int32_t id;
    int32_t previous, next; // indices of neighbours, -1 at the ends
    uint32_t begin, end;    // bytes of the piece
};

struct bpe_work {
    struct bpe_symbol *symbol; // [n] the tokens of the last piece, in order
    int32_t n, capacity;
    struct bpe_candidate *heap;
    int64_t n_heap, heap_capacity;
};
void bpe_work_close(struct bpe_work *work); // accepts a zeroed struct
// Room for n symbols; adds one, of bytes begin .. end - 1 of the piece.
enum status bpe_work_reserve(struct bpe_work *work, size_t n);
void bpe_work_add(struct bpe_work *work, int32_t id, size_t begin, size_t end);
// Tokens of one piece of text into work->symbol. O(n log n); pieces of 1 GiB at most.
enum status bpe_encode(const struct bpe *bpe, const char *data, size_t bytes,
                       struct bpe_work *work);

#endif
