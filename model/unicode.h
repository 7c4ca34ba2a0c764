// Unicode for the tokenizer: UTF-8 checks, character classes, normal forms with byte offsets.
#ifndef HALKA_MODEL_UNICODE_H
#define HALKA_MODEL_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/tokenizer_text.h"

// Bytes of the longest valid UTF-8 prefix (no surrogates, no overlong forms): `bytes` when all is.
size_t unicode_valid_prefix(const char *text, size_t bytes);
// Length of the sequence that a lead byte of valid UTF-8 starts.
size_t unicode_length(char lead);
// The character at `text` (valid UTF-8) and its length.
int32_t unicode_decode(const char *text, size_t *bytes);

bool unicode_is_space(int32_t character); // White_Space
bool unicode_is_word(int32_t character);  // letters, marks, decimal and letter digits, connectors

bool unicode_is_other(int32_t character);      // control, format, private use
bool unicode_is_nonspacing(int32_t character); // a mark that takes no room
bool unicode_is_ideograph(int32_t character);  // what BERT sets apart
// Bytes of the first grapheme cluster of valid UTF-8 that is not empty.
size_t unicode_grapheme(const char *text, size_t bytes);
// The lower-case form, of 1 or 2 characters; returns how many.
int unicode_lower(int32_t character, int32_t out[2]);
size_t unicode_encode(int32_t character, char out[4]); // bytes

enum unicode_form { UNICODE_NFC, UNICODE_NFD, UNICODE_NFKC, UNICODE_NFKD };
// Writes the normal form of valid UTF-8 to `out`, without finishing it. Linear in the text.
enum status unicode_normalize(enum unicode_form form, const struct text_view *in,
                              struct mapped_text *out);

#endif
