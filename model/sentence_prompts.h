// The prompts of a model folder's config_sentence_transformers.json: texts, by name, that the model
// was trained to see before others.
#ifndef HALKA_MODEL_SENTENCE_PROMPTS_H
#define HALKA_MODEL_SENTENCE_PROMPTS_H

#include <jansson.h>
#include <stddef.h>

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

#endif
