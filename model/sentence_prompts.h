// What a model folder says of the texts that sentence-transformers gives its network: prompts by
// name (config_sentence_transformers.json), which the model was trained to see before others, and
// after how many tokens it cuts.
#ifndef HALKA_MODEL_SENTENCE_PROMPTS_H
#define HALKA_MODEL_SENTENCE_PROMPTS_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

struct sentence_prompts {
    json_t *texts;        // name -> text, owned; NULL: there are none
    const char *standard; // that of texts without another; NULL: none
};

// folder: NULL has no prompts, as one without the file. ERR_INPUT where the file is damaged.
enum status sentence_prompts_open(const char *folder, struct sentence_prompts *out);
enum status sentence_prompts_parse(const char *text, size_t bytes, const char *path,
                                   struct sentence_prompts *out);
void sentence_prompts_close(struct sentence_prompts *prompts); // accepts a zeroed struct

// NULL where there is no prompt of that name; else valid while the prompts are open.
const char *sentence_prompts_find(const struct sentence_prompts *prompts, const char *name);
// "query, document" for messages; returns out.
const char *sentence_prompts_names(const struct sentence_prompts *prompts, char *out, size_t bytes);

// max_seq_length of sentence_bert_config.json, else model_max_length of tokenizer_config.json;
// 0: neither says a number that fits, as for a folder of NULL.
enum status sentence_max_tokens(const char *folder, int64_t *out);

#endif
