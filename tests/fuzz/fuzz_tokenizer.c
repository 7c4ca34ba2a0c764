// sources: model/tokenizer.c model/tokenizer_encode.c model/tokenizer_gguf.c model/tokenizer_json.c
// sources: model/tokenizer_regex.c model/tokenizer_rules.c model/tokenizer_text.c model/unicode.c
// sources: model/bpe.c model/bpe_encode.c model/gguf.c model/gguf_get.c model/utf8.c
// sources: model/mapping.c model/digest.c model/wordpiece.c model/unigram.c
// sources: model/charsmap.c model/tokenizer_bert.c kernels/status.c

// A hostile tokenizer.json (or GGUF file), then text: what opens must encode, tile and decode.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/tokenizer.h"

static void use(const struct tokenizer *tokenizer, const char *text, size_t bytes) {
    struct token_list list = {0};
    char *decoded;
    size_t n;
    int flags = ENCODE_ADD_SPECIALS | ENCODE_PARSE_SPECIALS;
    if (tokenizer_encode(tokenizer, text, bytes, flags, &list) == OK) {
        for (int64_t i = 0; i < list.n; i++)
            if (list.id[i] < 0 || list.id[i] >= tokenizer_size(tokenizer) ||
                list.byte_begin[i] > list.byte_end[i] || list.byte_end[i] > (int64_t)bytes)
                abort();
        if (tokenizer_decode(tokenizer, list.id, list.n, true, &decoded, &n) != OK) abort();
        free(decoded);
    }
    token_list_close(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const char text[] =
        "Hi there,\n  e\xCC\x81t\xC3\xA9 <s>1234</s> \xE2\x96\x81 <|im_end|>'s";
    struct tokenizer *tokenizer = NULL;
    struct gguf *gguf = NULL;
    if (bytes >= 4 && memcmp(data, "GGUF", 4) == 0) {
        if (gguf_parse(data, bytes, "input", &gguf) == OK) tokenizer_open_gguf(gguf, &tokenizer);
    } else {
        char path[64];
        snprintf(path, sizeof(path), "/tmp/halka-fuzz-tokenizer-%d", (int)getpid());
        FILE *file = fopen(path, "wb");
        if (!file) return 0;
        fwrite(data, 1, bytes, file);
        fclose(file);
        tokenizer_open_json(path, &tokenizer);
        unlink(path);
    }
    if (tokenizer) {
        use(tokenizer, text, sizeof(text) - 1);
        use(tokenizer, (const char *)data, bytes < 4096 ? bytes : 4096);
    }
    tokenizer_close(&tokenizer);
    gguf_close(&gguf);
    return 0;
}
