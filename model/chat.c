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

#define DEEPSEEK_BEGIN "<｜begin▁of▁sentence｜>"
#define DEEPSEEK_HEAD DEEPSEEK_BEGIN "<｜User｜>"
#define DEEPSEEK_STOP "<｜end▁of▁sentence｜>"
#define GLM_HEAD "[gMASK]<sop><|user|>"

#define CHATML_TURNS                                                                               \
    { "", "<|im_start|>system\n", "<|im_end|>\n", CHATML_USER, "", "<|im_end|>\n", false }
#define LLAMA3_TURNS(system)                                                                       \
    {                                                                                              \
        "", LLAMA3_HEADER("system") system, "<|eot_id|>", LLAMA3_HEADER("user"), "", "<|eot_id|>", \
            true                                                                                   \
    }
#define DEEPSEEK_TURNS                                                                             \
    { DEEPSEEK_BEGIN, "", "", "<｜User｜>", "", DEEPSEEK_STOP, false }
#define GLM_TURNS(line, reply)                                                                     \
    { "[gMASK]<sop>", "<|system|>" line, "", "<|user|>" line, reply, "", false }
#define MISTRAL_TURNS                                                                              \
    { "", NULL, NULL, "[INST] ", " ", "</s>", false }

static const struct row {
    const char *sign;  // recognises the checkpoint's own template; NULL: not recognised by it
    const char *token; // recognises a vocabulary when there is no template; NULL: never
    const char *also;  // a second token that the vocabulary must have; NULL: none
    struct chat_template pieces;
} rows[] = {
    // Of several rows that fit, the first is taken: particular ones come before general ones.
    {SMOLLM_SYSTEM,
     NULL,
     NULL,
     {CHAT_CHATML, "chatml (SmolLM2)", CHATML_SYSTEM(SMOLLM_SYSTEM) CHATML_USER, "\n\n",
      CHATML_TAIL, false, "<|im_end|>", CHATML_TURNS}},
    {QWEN25_SYSTEM,
     NULL,
     NULL,
     {CHAT_CHATML, "chatml (Qwen 2.5)", CHATML_SYSTEM(QWEN25_SYSTEM) CHATML_USER, "\n\n",
      CHATML_TAIL, false, "<|im_end|>", CHATML_TURNS}},
    {"<|im_start|>system\n" QWEN2_SYSTEM ".<|im_end|>",
     NULL,
     NULL,
     {CHAT_CHATML, "chatml (Qwen 2)", CHATML_SYSTEM(QWEN2_SYSTEM ".") CHATML_USER, "\n\n",
      CHATML_TAIL, false, "<|im_end|>", CHATML_TURNS}},
    {"<|im_start|>",
     "<|im_start|>",
     NULL,
     {CHAT_CHATML, "chatml", CHATML_USER, "\n\n", CHATML_TAIL, false, "<|im_end|>", CHATML_TURNS}},
    {"Cutting Knowledge Date: December 2023",
     NULL,
     NULL,
     {CHAT_LLAMA3, "llama3 (3.1)",
      LLAMA3_HEADER("system") LLAMA31_SYSTEM "<|eot_id|>" LLAMA3_HEADER("user"), "\n\n",
      "<|eot_id|>" LLAMA3_HEADER("assistant"), true, "<|eot_id|>", LLAMA3_TURNS(LLAMA31_SYSTEM)}},
    {"<|start_header_id|>",
     "<|start_header_id|>",
     NULL,
     {CHAT_LLAMA3, "llama3", LLAMA3_HEADER("user"), "\n\n", "<|eot_id|>" LLAMA3_HEADER("assistant"),
      true, "<|eot_id|>", LLAMA3_TURNS("")}},
    // DeepSeek from V3.1 on answers at once after a closed thought; its vocabulary then has
    // <think>, where V3 has a place holder. V3.2 has no template of its own, others add one.
    {"<｜Assistant｜></think>",
     "<｜Assistant｜>",
     "<think>",
     {CHAT_DEEPSEEK, "deepseek (V3.1)", DEEPSEEK_HEAD, "\n\n", "<｜Assistant｜></think>", false,
      DEEPSEEK_STOP, DEEPSEEK_TURNS}},
    {"｜DSML｜",
     NULL,
     NULL,
     {CHAT_DEEPSEEK, "deepseek (V3.2)", DEEPSEEK_HEAD, "\n\n", "<｜Assistant｜></think>", false,
      DEEPSEEK_STOP, DEEPSEEK_TURNS}},
    {"<｜Assistant｜>",
     "<｜Assistant｜>",
     NULL,
     {CHAT_DEEPSEEK, "deepseek", DEEPSEEK_HEAD, "\n\n", "<｜Assistant｜>", false, DEEPSEEK_STOP,
      DEEPSEEK_TURNS}},
    // GLM 4.5 and 4.6 open a line after each role and are told not to think; 4.7 and 5 do neither.
    {"/nothink",
     NULL,
     NULL,
     {CHAT_GLM, "glm (4.5)", GLM_HEAD "\n", "\n\n", "/nothink<|assistant|>\n<think></think>", false,
      "<|user|>", GLM_TURNS("\n", "\n")}},
    {"<|user|>{{",
     "[gMASK]",
     "<think>",
     {CHAT_GLM, "glm (5)", GLM_HEAD, "\n\n", "<|assistant|></think>", false, "<|user|>",
      GLM_TURNS("", "")}},
    {"[gMASK]<sop>",
     "[gMASK]",
     "<|assistant|>",
     {CHAT_GLM, "glm", GLM_HEAD "\n", "\n\n", "<|assistant|>\n", false, "<|user|>",
      GLM_TURNS("\n", "")}},
    {"<start_of_turn>",
     "<start_of_turn>",
     NULL,
     {CHAT_GEMMA,
      "gemma",
      "<start_of_turn>user\n",
      "\n\n",
      "<end_of_turn>\n<start_of_turn>model\n",
      true,
      "<end_of_turn>",
      {"", NULL, NULL, "<start_of_turn>user\n", "", "<end_of_turn>\n", true}}},
    {"[AVAILABLE_TOOLS]",
     NULL,
     NULL,
     {CHAT_MISTRAL, "mistral (v3)", "[INST] ", "\n\n", "[/INST]", true, "</s>", MISTRAL_TURNS}},
    {"[INST]",
     "[INST]",
     NULL,
     {CHAT_MISTRAL, "mistral", "[INST] ", "\n\n", " [/INST]", true, "</s>", MISTRAL_TURNS}},
    {NULL,
     NULL,
     NULL,
     {CHAT_NONE,
      "none",
      "",
      "\n\nQuestion: ",
      "\nAnswer:",
      true,
      NULL,
      {"", NULL, NULL, "Question: ", " ", "\n\n", false}}},
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

static bool has(const struct tokenizer *tokenizer, const char *token) {
    return tokenizer_find(tokenizer, token) >= 0;
}

const struct chat_template *chat_template_choose(const struct tokenizer *tokenizer,
                                                 enum chat_family wanted) {
    const char *own = tokenizer ? tokenizer_chat_template(tokenizer) : NULL;
    const struct chat_template *plain = &rows[N_ROW - 1].pieces, *by_vocabulary = NULL;
    for (int i = 0; i < N_ROW; i++) {
        const struct row *row = &rows[i];
        if (wanted != CHAT_AUTO && row->pieces.family != wanted) continue;
        if (own && row->sign && holds(own, row->sign)) return &row->pieces;
        if (!by_vocabulary && tokenizer && row->token && has(tokenizer, row->token) &&
            (!row->also || has(tokenizer, row->also)))
            by_vocabulary = &row->pieces;
        plain = &row->pieces; // a family's last row is its plain one
    }
    return by_vocabulary ? by_vocabulary : plain;
}

enum status chat_family_parse(const char *name, enum chat_family *out) {
    static const char *const names[N_CHAT_FAMILY] = {
        [CHAT_AUTO] = "auto",     [CHAT_NONE] = "none",       [CHAT_CHATML] = "chatml",
        [CHAT_LLAMA3] = "llama3", [CHAT_MISTRAL] = "mistral", [CHAT_DEEPSEEK] = "deepseek",
        [CHAT_GLM] = "glm",       [CHAT_GEMMA] = "gemma",
    };
    for (int i = 0; i < N_CHAT_FAMILY; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (enum chat_family)i;
        return OK;
    }
    FAIL(ERR_CONFIG,
         "the chat template '%s' is none of auto, none, chatml, llama3, mistral, deepseek, glm, "
         "gemma",
         name);
}
