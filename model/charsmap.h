// SentencePiece's precompiled normaliser: a trie (Darts double array) of what is replaced, and by
// what. Input is hostile: every step is checked against the sizes.
#ifndef HALKA_MODEL_CHARSMAP_H
#define HALKA_MODEL_CHARSMAP_H

#include "model/tokenizer_text.h"

struct charsmap {
    unsigned char *data; // owned: as in the file, decoded
    size_t bytes;
    size_t n_unit; // of the trie, after the first 4 bytes
};

// From base64, as tokenizer.json has it.
enum status charsmap_open(const char *base64, struct charsmap *out);
void charsmap_close(struct charsmap *map); // accepts a zeroed struct
// Writes the normal form of `in`, a grapheme at a time, without finishing it.
enum status charsmap_normalize(const struct charsmap *map, const struct text_view *in,
                               struct mapped_text *out);

#endif
