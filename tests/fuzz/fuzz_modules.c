// sources: model/sentence_modules.c model/json_util.c model/safetensors.c model/tensor.c
// sources: model/mapping.c model/gguf.c model/gguf_get.c model/utf8.c model/unicode.c
// sources: model/tokenizer_text.c model/sentence_prompts.c
// sources: model/digest.c kernels/dtype.c kernels/fp8.c kernels/status.c

// modules.json, the configurations of Pooling and Dense, prompts: whatever the text, what is read
// is within bounds, or a message comes out.
#include <stdlib.h>
#include <string.h>

#include "model/sentence_modules.h"
#include "model/sentence_prompts.h"

static void check(enum status status, bool good) {
    if (status == OK ? !good : !*status_message()) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *text = (const char *)data;
    struct module_list list;
    struct dense_config dense;
    struct sentence_modules modules = {0};
    enum status status = module_list_parse(text, size, "fuzz.json", &list);
    check(status, list.n <= SENTENCE_MAX_MODULE);
    for (int i = 0; status == OK && i < list.n; i++)
        check(OK, list.items[i].kind < N_MODULE_KIND && !strchr(list.items[i].folder, '/'));
    check(pooling_parse(text, size, "fuzz.json", 32, &modules), modules.pooling < POOLING_NONE);
    status = dense_parse(text, size, "fuzz.json", &dense);
    check(status, dense.n_in > 0 && dense.n_out <= SENTENCE_MAX_WIDTH &&
                      dense.activation < N_DENSE_ACTIVATION);
    struct sentence_prompts prompts;
    char names[16];
    status = sentence_prompts_parse(text, size, "fuzz.json", &prompts);
    check(status, strlen(sentence_prompts_names(&prompts, names, sizeof names)) < sizeof names);
    sentence_prompts_close(&prompts);
    return 0;
}
