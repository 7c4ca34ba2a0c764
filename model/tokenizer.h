// Text to token ids and back. Byte-level BPE (GPT-2 family) and SentencePiece-style BPE with byte
// fallback, from tokenizer.json or from GGUF metadata; WordPiece (BERT) and Unigram (XLM-RoBERTa)
// from tokenizer.json. Equal to Hugging Face tokenizers.
#ifndef HALKA_MODEL_TOKENIZER_H
#define HALKA_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/gguf.h"

struct tokenizer;

struct token_list {
    int64_t n, capacity;
    int32_t *id;         // [n] owned
    int64_t *byte_begin; // [n] offset in the encoded text of the token's first byte ...
    int64_t *byte_end;   // [n] ... and one past its last; equal for added specials
};
void token_list_close(struct token_list *list); // accepts a zeroed struct

enum status tokenizer_open_json(const char *tokenizer_json, struct tokenizer **out);
enum status tokenizer_open_gguf(const struct gguf *gguf, struct tokenizer **out);
// The tokenizer that belongs to a checkpoint path: the GGUF's own, or tokenizer.json in the folder.
// *out = NULL (and OK) when the folder has none.
enum status tokenizer_open(const char *folder, const struct gguf *gguf, struct tokenizer **out);
void tokenizer_close(struct tokenizer **tokenizer);

// Appends the tokens of `text` to `list`.
enum {
    ENCODE_ADD_SPECIALS = 1,   // BOS/EOS as the tokenizer's post-processor says
    ENCODE_PARSE_SPECIALS = 2, // "<|im_end|>" in the text is that token; otherwise plain text
    ENCODE_CONTINUE = 4,       // text continues what came before: no SentencePiece space prefix
};
// ERR_INPUT with the byte offset when the text is not valid UTF-8. Offsets added are relative to
// the text. Memory and time are linear in the text's length.
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                             int flags, struct token_list *list);
// Text of ids, malloc'd, zero-terminated; specials are left out unless asked for. May end inside a
// UTF-8 sequence when the tokens do.
enum status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *id, int64_t n,
                             bool keep_specials, char **text, size_t *bytes);

int64_t tokenizer_size(const struct tokenizer *tokenizer);                    // ids are below this
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *token); // -1 when absent
bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id);
const char *
tokenizer_digest(const struct tokenizer *tokenizer);      // hex XXH3-128 of vocabulary + rules
int32_t tokenizer_eos(const struct tokenizer *tokenizer); // end-of-sequence id it names; -1: none
// The checkpoint's Jinja chat template text, or NULL: only to recognise the family.
const char *tokenizer_chat_template(const struct tokenizer *tokenizer);

#endif
