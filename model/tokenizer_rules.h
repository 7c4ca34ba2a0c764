// The rules of a tokenizer.json, each from its JSON value; null or absent: none. What cannot be
// honoured exactly is refused by name with ERR_INPUT.
#ifndef HALKA_MODEL_TOKENIZER_RULES_H
#define HALKA_MODEL_TOKENIZER_RULES_H

#include <jansson.h>

#include "model/tokenizer_internal.h"

enum status tokenizer_read_normalizer(struct tokenizer *tokenizer, json_t *value);
// As the first step, unless there is such a step: how sentence-transformers applies do_lower_case.
enum status tokenizer_add_lower_case(struct tokenizer *tokenizer);
// Also finds out whether the model works on bytes.
enum status tokenizer_read_pre_tokenizer(struct tokenizer *tokenizer, json_t *value);
enum status tokenizer_read_post_processor(struct tokenizer *tokenizer, json_t *value);
enum status tokenizer_read_decoder(struct tokenizer *tokenizer, json_t *value);

#endif
