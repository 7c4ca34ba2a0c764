// Chat templates by family, as text around a document and a question. The document precedes the
// question in every template, so that it is read once for many questions.
#ifndef HALKA_MODEL_CHAT_H
#define HALKA_MODEL_CHAT_H

#include "model/tokenizer.h"

enum chat_family { CHAT_AUTO, CHAT_NONE, CHAT_CHATML, CHAT_LLAMA3, CHAT_MISTRAL };

// Pieces of the prompt: head + DOCUMENT + middle + QUESTION + tail. Constant strings; specials in
// them are to be parsed, in DOCUMENT and QUESTION they are not.
struct chat_template {
    enum chat_family family;
    const char *name;
    const char *head, *middle, *tail;
    bool add_bos;     // the tokenizer's BOS comes first
    const char *stop; // token that ends an answer, besides EOS
};

// CHAT_AUTO recognises the family from the checkpoint's own template, else from its vocabulary;
// CHAT_NONE when nothing fits.
const struct chat_template *chat_template_choose(const struct tokenizer *tokenizer,
                                                 enum chat_family wanted);
enum status chat_family_parse(const char *name, enum chat_family *out);

#endif
