// Chat templates as data: one row per template text that is recognised. The system messages are
// those that the templates themselves insert when a conversation has none.
#include "model/chat.h"

#include <string.h>

#define CHATML_SYSTEM(text) "<|im_start|>system\n" text "<|im_end|>\n"
#define CHATML_USER "<|im_start|>user\n"
#define CHATML_TAIL "<|im_end|>\n<|im_start|>assistant\n"
#define LLAMA3_HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define SMOLLM_SYSTEM "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#define QWEN25_SYSTEM "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
#define QWEN2_SYSTEM "You are a helpful assistant"
#define LLAMA31_SYSTEM "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

static const struct row {
    const char *sign;  // recognises the checkpoint's own template; NULL: not recognised by it
    const char *token; // recognises a vocabulary when there is no template; NULL: never
    struct chat_template pieces;
} rows[] = {
    // Of several rows that fit, the first is taken: particular ones come before general ones.
    {SMOLLM_SYSTEM,
     NULL,
     {CHAT_CHATML, "chatml (SmolLM2)", CHATML_SYSTEM(SMOLLM_SYSTEM) CHATML_USER, "\n\n",
      CHATML_TAIL, false, "<|im_end|>"}},
    {QWEN25_SYSTEM,
     NULL,
     {CHAT_CHATML, "chatml (Qwen 2.5)", CHATML_SYSTEM(QWEN25_SYSTEM) CHATML_USER, "\n\n",
      CHATML_TAIL, false, "<|im_end|>"}},
    {"<|im_start|>system\n" QWEN2_SYSTEM ".<|im_end|>",
     NULL,
     {CHAT_CHATML, "chatml (Qwen 2)", CHATML_SYSTEM(QWEN2_SYSTEM ".") CHATML_USER, "\n\n",
      CHATML_TAIL, false, "<|im_end|>"}},
    {"<|im_start|>",
     "<|im_start|>",
     {CHAT_CHATML, "chatml", CHATML_USER, "\n\n", CHATML_TAIL, false, "<|im_end|>"}},
    {"Cutting Knowledge Date: December 2023",
     NULL,
     {CHAT_LLAMA3, "llama3 (3.1)",
      LLAMA3_HEADER("system") LLAMA31_SYSTEM "<|eot_id|>" LLAMA3_HEADER("user"), "\n\n",
      "<|eot_id|>" LLAMA3_HEADER("assistant"), true, "<|eot_id|>"}},
    {"<|start_header_id|>",
     "<|start_header_id|>",
     {CHAT_LLAMA3, "llama3", LLAMA3_HEADER("user"), "\n\n", "<|eot_id|>" LLAMA3_HEADER("assistant"),
      true, "<|eot_id|>"}},
    {"[AVAILABLE_TOOLS]",
     NULL,
     {CHAT_MISTRAL, "mistral (v3)", "[INST] ", "\n\n", "[/INST]", true, "</s>"}},
    {"[INST]", "[INST]", {CHAT_MISTRAL, "mistral", "[INST] ", "\n\n", " [/INST]", true, "</s>"}},
    {NULL, NULL, {CHAT_NONE, "none", "", "\n\nQuestion: ", "\nAnswer:", true, NULL}},
};
enum { N_ROW = sizeof(rows) / sizeof(*rows) };

// Jinja sources write a line feed as "\n" in its two-character form or as itself.
static bool holds(const char *text, const char *sign) {
    for (; *text; text++) {
        const char *t = text, *s = sign;
        while (*s && *t) {
            if (*s == '\n' && t[0] == '\\' && t[1] == 'n')
                t += 2;
            else if (*s == *t)
                t++;
            else
                break;
            s++;
        }
        if (!*s) return true;
    }
    return false;
}

const struct chat_template *chat_template_choose(const struct tokenizer *tokenizer,
                                                 enum chat_family wanted) {
    const char *own = tokenizer ? tokenizer_chat_template(tokenizer) : NULL;
    const struct chat_template *general = &rows[N_ROW - 1].pieces;
    for (int i = 0; i < N_ROW; i++) {
        if (wanted != CHAT_AUTO && rows[i].pieces.family != wanted) continue;
        if (own && rows[i].sign && holds(own, rows[i].sign)) return &rows[i].pieces;
        general = &rows[i].pieces; // a family's last row is its plain one
    }
    for (int i = 0; i < N_ROW && wanted == CHAT_AUTO && tokenizer; i++)
        if (rows[i].token && tokenizer_find(tokenizer, rows[i].token) >= 0) return &rows[i].pieces;
    return general;
}

enum status chat_family_parse(const char *name, enum chat_family *out) {
    static const char *const names[] = {[CHAT_AUTO] = "auto",
                                        [CHAT_NONE] = "none",
                                        [CHAT_CHATML] = "chatml",
                                        [CHAT_LLAMA3] = "llama3",
                                        [CHAT_MISTRAL] = "mistral"};
    for (int i = CHAT_AUTO; i <= CHAT_MISTRAL; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (enum chat_family)i;
        return OK;
    }
    FAIL(ERR_CONFIG, "the chat template '%s' is none of auto, none, chatml, llama3, mistral", name);
}
