// Encoding speed on one core: plain English made from a word list, the multilingual corpus, and a
// megabyte without a break, under each small tokenizer of the fixtures and under a given GGUF file.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/tokenizer.h"

enum { TEXT_BYTES = 4 << 20, N_REPEAT = 3 };

static char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*bytes + 1);
    if (data && fread(data, 1, *bytes, file) != *bytes) *bytes = 0;
    fclose(file);
    return data;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

// Pseudo-random sentences over common words: enough variety that no cache of pieces would help.
static void fill_english(char *text) {
    static const char *const words[] = {
        "the",       "of",      "and",        "a",       "to",       "in",       "is",
        "you",       "that",    "it",         "he",      "was",      "for",      "on",
        "are",       "with",    "document",   "reading", "machine",  "sequence", "attention",
        "neighbour", "quickly", "because",    "answer",  "question", "between",  "computation",
        "without",   "nothing", "remembered", "garden"};
    uint32_t random = 12345;
    size_t n = 0;
    while (n + 32 < TEXT_BYTES) {
        random = random * 1664525 + 1013904223;
        const char *word = words[random >> 27];
        n += (size_t)sprintf(text + n, "%s%s", word, random & 0xF0000 ? " " : ".\n");
    }
    memset(text + n, ' ', TEXT_BYTES - n);
}

static void fill_repeated(char *text, const char *unit, size_t bytes) {
    size_t n = 0;
    for (; n + bytes <= TEXT_BYTES; n += bytes) memcpy(text + n, unit, bytes);
    memset(text + n, ' ', TEXT_BYTES - n);
}

static void measure(const struct tokenizer *tokenizer, const char *name, const char *what,
                    const char *text, size_t bytes) {
    double best = 1e30;
    struct token_list list = {0};
    for (int i = 0; i < N_REPEAT; i++) {
        double start = now();
        list.n = 0;
        if (tokenizer_encode(tokenizer, text, bytes, 0, &list) != OK) {
            printf("%-12s %-12s %s\n", name, what, status_message());
            break;
        }
        double seconds = now() - start;
        if (seconds < best) best = seconds;
    }
    printf("%-12s %-12s %8.2f MB/s %8.2f bytes/token\n", name, what, (double)bytes / best / 1e6,
           list.n ? (double)bytes / (double)list.n : 0);
    token_list_close(&list);
}

static void measure_all(const struct tokenizer *tokenizer, const char *name) {
    size_t bytes = 0;
    char *corpus = read_file("tests/fixtures/tokenizers/corpus.txt", &bytes);
    char *text = malloc(TEXT_BYTES);
    if (text && corpus && bytes > 0) {
        fill_english(text);
        measure(tokenizer, name, "english", text, TEXT_BYTES);
        fill_repeated(text, corpus, bytes);
        measure(tokenizer, name, "multilingual", text, TEXT_BYTES);
        fill_repeated(text, "ab", 2);
        measure(tokenizer, name, "no break", text, 1 << 20);
    }
    free(text);
    free(corpus);
}

int main(int n_argument, char **argument) {
    static const char *const names[] = {"smollm", "llama3", "qwen2", "llama2", "gemma"};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        char path[128];
        struct tokenizer *tokenizer;
        snprintf(path, sizeof(path), "tests/fixtures/tokenizers/%s.json", names[i]);
        if (tokenizer_open_json(path, &tokenizer) != OK) return printf("%s\n", status_message()), 1;
        measure_all(tokenizer, names[i]);
        tokenizer_close(&tokenizer);
    }
    size_t bytes = 0;
    char *data = n_argument > 1 ? read_file(argument[1], &bytes) : NULL;
    struct gguf *gguf = NULL;
    struct tokenizer *tokenizer = NULL;
    if (data && gguf_parse(data, bytes, argument[1], &gguf) == OK &&
        tokenizer_open_gguf(gguf, &tokenizer) == OK)
        measure_all(tokenizer, "gguf");
    tokenizer_close(&tokenizer);
    gguf_close(&gguf);
    free(data);
    return 0;
}
