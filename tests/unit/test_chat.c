// Chat templates: the family and the exact prompt text for recognised templates and vocabularies.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/chat.h"

// A tokenizer of two tokens, these specials (words) and this Jinja template (either may be NULL).
static struct tokenizer *make_tokenizer(const char *specials, const char *jinja) {
    char folder[] = "/tmp/halka-chat-XXXXXX", path[64], template_path[64];
    struct tokenizer *tokenizer = NULL;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/tokenizer.json", folder);
    snprintf(template_path, sizeof(template_path), "%s/chat_template.jinja", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "{\"added_tokens\":[");
    int id = 2;
    for (const char *word = specials; word; word = strchr(word, ' ')) {
        if (*word == ' ') word++;
        fprintf(file, "%s{\"id\":%d,\"content\":\"%.*s\",\"special\":true}", id > 2 ? "," : "", id,
                (int)strcspn(word, " "), word);
        id++;
    }
    fprintf(file, "],\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]}}");
    assert_int_equal(fclose(file), 0);
    if (jinja) {
        file = fopen(template_path, "w");
        assert_non_null(file);
        fputs(jinja, file);
        assert_int_equal(fclose(file), 0);
    }
    assert_int_equal(tokenizer_open(folder, NULL, &tokenizer), OK);
    unlink(path);
    unlink(template_path);
    rmdir(folder);
    return tokenizer;
}

static void check(const char *specials, const char *jinja, enum chat_family wanted,
                  enum chat_family family, const char *prompt) {
    struct tokenizer *tokenizer = make_tokenizer(specials, jinja);
    const struct chat_template *chat = chat_template_choose(tokenizer, wanted);
    char text[1024];
    snprintf(text, sizeof(text), "%sD%sQ%s", chat->head, chat->middle, chat->tail);
    assert_int_equal(chat->family, family);
    assert_string_equal(text, prompt);
    tokenizer_close(&tokenizer);
}

#define CHATML_PROMPT "<|im_start|>user\nD\n\nQ<|im_end|>\n<|im_start|>assistant\n"
#define LLAMA3_PROMPT                                                                              \
    "<|start_header_id|>user<|end_header_id|>\n\nD\n\nQ<|eot_id|>"                                 \
    "<|start_header_id|>assistant<|end_header_id|>\n\n"

static void test_own_template(void **state) {
    (void)state;
    check(NULL,
          "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
          "Face<|im_end|>\n' }}",
          CHAT_AUTO, CHAT_CHATML,
          "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
          "Face<|im_end|>\n" CHATML_PROMPT);
    check(NULL,
          "'<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
          "assistant.<|im_end|>\\n'",
          CHAT_AUTO, CHAT_CHATML,
          "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
          "assistant.<|im_end|>\n" CHATML_PROMPT);
    check(NULL, "'<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n'", CHAT_AUTO,
          CHAT_CHATML,
          "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" CHATML_PROMPT);
    check(NULL, "'<|im_start|>' + role", CHAT_AUTO, CHAT_CHATML, CHATML_PROMPT);
    check(NULL, "'<|start_header_id|>' + role", CHAT_AUTO, CHAT_LLAMA3, LLAMA3_PROMPT);
    check(NULL, "<|start_header_id|> Cutting Knowledge Date: December 2023", CHAT_AUTO, CHAT_LLAMA3,
          "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
          "2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>" LLAMA3_PROMPT);
    check(NULL, "' [INST] ' + content + ' [/INST]'", CHAT_AUTO, CHAT_MISTRAL,
          "[INST] D\n\nQ [/INST]");
    check(NULL, "'[AVAILABLE_TOOLS]' '[INST] ' + content + '[/INST]'", CHAT_AUTO, CHAT_MISTRAL,
          "[INST] D\n\nQ[/INST]");
}

static void test_vocabulary(void **state) {
    (void)state;
    check("<|im_start|>", NULL, CHAT_AUTO, CHAT_CHATML, CHATML_PROMPT);
    check("<|start_header_id|>", NULL, CHAT_AUTO, CHAT_LLAMA3, LLAMA3_PROMPT);
    check("[INST]", "a template of no family", CHAT_AUTO, CHAT_MISTRAL, "[INST] D\n\nQ [/INST]");
    check("<|other|>", NULL, CHAT_AUTO, CHAT_NONE, "D\n\nQuestion: Q\nAnswer:");
}

#define DEEPSEEK_PROMPT "<｜begin▁of▁sentence｜><｜User｜>D\n\nQ<｜Assistant｜>"
#define DEEPSEEK_MARKS "<｜begin▁of▁sentence｜> <｜User｜> <｜Assistant｜>"

// Pieces of the published templates: V3 ends with the marker, V3.1 closes the thought after it.
static void test_deepseek(void **state) {
    (void)state;
    check(NULL,
          "{{'<｜User｜>' + message['content']}}{% if '</think>' in content %}"
          "{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}",
          CHAT_AUTO, CHAT_DEEPSEEK, DEEPSEEK_PROMPT);
    check(NULL,
          "{{'<｜User｜>' + message['content']}}{{'<｜Assistant｜></think>'}}{{'<｜Assistant｜>'}}"
          "{%- if not thinking -%}{{'</think>'}}{%- else -%}{{'<think>'}}{%- endif -%}",
          CHAT_AUTO, CHAT_DEEPSEEK, DEEPSEEK_PROMPT "</think>");
    check(NULL,
          "{%- set thinking_end_token = \"</think>\" -%}{%- set dsml_token = \"｜DSML｜\" -%}"
          "<｜User｜>{{ message.content }}<｜Assistant｜>{{ thinking_end_token }}",
          CHAT_AUTO, CHAT_DEEPSEEK, DEEPSEEK_PROMPT "</think>");
    check(DEEPSEEK_MARKS, NULL, CHAT_AUTO, CHAT_DEEPSEEK, DEEPSEEK_PROMPT);
    check(DEEPSEEK_MARKS " <think> </think>", NULL, CHAT_AUTO, CHAT_DEEPSEEK,
          DEEPSEEK_PROMPT "</think>");
    check(DEEPSEEK_MARKS " <think> </think>", NULL, CHAT_DEEPSEEK, CHAT_DEEPSEEK,
          DEEPSEEK_PROMPT "</think>");
    // Bars of ASCII are another vocabulary's; a vocabulary that can think need not be DeepSeek's.
    check("<|User|> <|Assistant|> <think>", NULL, CHAT_AUTO, CHAT_NONE,
          "D\n\nQuestion: Q\nAnswer:");
    check("<|im_start|> <think>", NULL, CHAT_AUTO, CHAT_CHATML, CHATML_PROMPT);
    assert_string_equal(chat_template_choose(NULL, CHAT_DEEPSEEK)->stop, "<｜end▁of▁sentence｜>");
    assert_false(chat_template_choose(NULL, CHAT_DEEPSEEK)->add_bos); // the head writes it
}

#define GLM_MARKS "<|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|>"

// GLM 4, GLM 4.5 and 4.6, GLM 4.7 and 5.
static void test_glm(void **state) {
    (void)state;
    check(NULL,
          "[gMASK]<sop>{% for m in messages %}<|user|>\n{{ m.content }}{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
          CHAT_AUTO, CHAT_GLM, "[gMASK]<sop><|user|>\nD\n\nQ<|assistant|>\n");
    check(NULL,
          "[gMASK]<sop>\n<|user|>\n{{ visible_text(m.content) }}{{- '/nothink' if (enable_thinking "
          "is defined and not enable_thinking) else '' -}}<|assistant|>{{- '\\n<think></think>' if "
          "(enable_thinking is defined and not enable_thinking) else '' -}}",
          CHAT_AUTO, CHAT_GLM,
          "[gMASK]<sop><|user|>\nD\n\nQ/nothink<|assistant|>\n<think></think>");
    check(NULL,
          "[gMASK]<sop>\n<|user|>{{ visible_text(m.content) }}<|assistant|>{{- '</think>' if "
          "(enable_thinking is defined and not enable_thinking) else '<think>' -}}",
          CHAT_AUTO, CHAT_GLM, "[gMASK]<sop><|user|>D\n\nQ<|assistant|></think>");
    check(GLM_MARKS, NULL, CHAT_AUTO, CHAT_GLM, "[gMASK]<sop><|user|>\nD\n\nQ<|assistant|>\n");
    check(GLM_MARKS " <think> </think> /nothink", NULL, CHAT_AUTO, CHAT_GLM,
          "[gMASK]<sop><|user|>D\n\nQ<|assistant|></think>");
    check("<|user|> <|assistant|> <think>", NULL, CHAT_AUTO, CHAT_NONE,
          "D\n\nQuestion: Q\nAnswer:");
    assert_string_equal(chat_template_choose(NULL, CHAT_GLM)->stop, "<|user|>");
    assert_false(chat_template_choose(NULL, CHAT_GLM)->add_bos);
}

static void test_gemma(void **state) {
    (void)state;
    static const char prompt[] = "<start_of_turn>user\nD\n\nQ<end_of_turn>\n<start_of_turn>model\n";
    check(NULL,
          "{{ bos_token }}{{ '<start_of_turn>' + role + '\n' }}{{ message['content'] | trim }}"
          "{{ '<end_of_turn>\n' }}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}",
          CHAT_AUTO, CHAT_GEMMA, prompt);
    check("<bos> <start_of_turn> <end_of_turn>", NULL, CHAT_AUTO, CHAT_GEMMA, prompt);
    assert_string_equal(chat_template_choose(NULL, CHAT_GEMMA)->stop, "<end_of_turn>");
    assert_true(chat_template_choose(NULL, CHAT_GEMMA)->add_bos);
}

static void test_wanted(void **state) {
    (void)state;
    check("<|im_start|>", "<|im_start|>", CHAT_LLAMA3, CHAT_LLAMA3, LLAMA3_PROMPT);
    check(NULL, "'<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n'", CHAT_CHATML,
          CHAT_CHATML,
          "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" CHATML_PROMPT);
    check("<|im_start|>", "<|im_start|>", CHAT_NONE, CHAT_NONE, "D\n\nQuestion: Q\nAnswer:");
    assert_int_equal(chat_template_choose(NULL, CHAT_CHATML)->family, CHAT_CHATML);
    assert_int_equal(chat_template_choose(NULL, CHAT_AUTO)->family, CHAT_NONE);
    assert_string_equal(chat_template_choose(NULL, CHAT_LLAMA3)->stop, "<|eot_id|>");
    assert_true(chat_template_choose(NULL, CHAT_LLAMA3)->add_bos);
    assert_null(chat_template_choose(NULL, CHAT_NONE)->stop);
}

static void test_names(void **state) {
    (void)state;
    enum chat_family family = CHAT_NONE;
    assert_int_equal(chat_family_parse("auto", &family), OK);
    assert_int_equal(family, CHAT_AUTO);
    assert_int_equal(chat_family_parse("mistral", &family), OK);
    assert_int_equal(family, CHAT_MISTRAL);
    assert_int_equal(chat_family_parse("deepseek", &family), OK);
    assert_int_equal(family, CHAT_DEEPSEEK);
    assert_int_equal(chat_family_parse("glm", &family), OK);
    assert_int_equal(family, CHAT_GLM);
    assert_int_equal(chat_family_parse("gemma", &family), OK);
    assert_int_equal(family, CHAT_GEMMA);
    assert_int_equal(chat_family_parse("alpaca", &family), ERR_CONFIG);
    assert_non_null(strstr(status_message(), "alpaca"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_template), cmocka_unit_test(test_vocabulary),
        cmocka_unit_test(test_deepseek),     cmocka_unit_test(test_glm),
        cmocka_unit_test(test_gemma),        cmocka_unit_test(test_wanted),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
