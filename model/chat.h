// Chat templates by family, as text around a document and a question. The document precedes the
// question in every template, so that it is read once for many questions. A model that can think
// before it answers gets the form in which it does not.
#ifndef HALKA_MODEL_CHAT_H
#define HALKA_MODEL_CHAT_H

#include "model/tokenizer.h"

enum chat_family {
    CHAT_AUTO,
    CHAT_NONE,
    CHAT_CHATML,
    CHAT_LLAMA3,
    CHAT_MISTRAL,
    CHAT_DEEPSEEK,
    CHAT_GLM,
    CHAT_GEMMA,
    N_CHAT_FAMILY
};

// Pieces of the prompt: head + DOCUMENT + middle + QUESTION + tail. Constant strings; specials in
// them are to be parsed, in DOCUMENT and QUESTION they are not.
struct chat_template {
    enum chat_family family;
    const char *name;
    const char *head, *middle, *tail;
    bool add_bos;     // the tokenizer's BOS comes first
    const char *stop; // token that ends an answer, besides EOS
};

// The row that fits the checkpoint's own template, else its vocabulary, of the wanted family or
// (CHAT_AUTO) of any. Without a fit the family's plain form; for CHAT_AUTO that of CHAT_NONE.
const struct chat_template *chat_template_choose(const struct tokenizer *tokenizer,
                                                 enum chat_family wanted);
enum status chat_family_parse(const char *name, enum chat_family *out);

#endif
