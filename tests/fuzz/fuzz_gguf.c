// sources: model/gguf.c model/gguf_get.c model/utf8.c model/unicode.c model/tokenizer_text.c
// sources: model/config_gguf.c model/architecture.c model/spec.c model/rope.c kernels/status.c

// GGUF container and its metadata: parse, look up, build the spec, touch every tensor.
#include <stddef.h>
#include <stdint.h>

#include "model/gguf.h"
#include "model/spec_draft.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

// A read that the compiler keeps, for the sanitizer to judge.
static void touch(const void *byte) {
    (void)*(const volatile uint8_t *)byte;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct gguf *gguf = NULL;
    struct spec_draft draft;
    struct model_spec spec = {0};
    if (gguf_parse(data, bytes, "fuzz.gguf", &gguf) != OK) return 0;
    for (uint64_t i = 0; i < gguf->n_tensor; ++i) {
        const struct gguf_tensor *tensor = &gguf->tensors[i];
        if (tensor->bytes == 0) continue;
        touch(tensor->data);
        touch((const uint8_t *)tensor->data + tensor->bytes - 1);
    }
    for (uint64_t i = 0; i < gguf->n_value; ++i) {
        const struct gguf_value *value = &gguf->values[i];
        int64_t integer;
        double number;
        gguf_get_int(gguf, value->key, &integer);
        gguf_get_float(gguf, value->key, &number);
        gguf_array_int(value, value->count - 1, &integer);
        gguf_array_float(value, value->count - 1, &number);
        for (uint64_t k = 0; value->strings && k < value->count; ++k)
            if (value->strings[k].bytes)
                touch(value->strings[k].data + value->strings[k].bytes - 1);
    }
    spec_draft_init(&draft);
    if (spec_draft_read_gguf(gguf, "fuzz.gguf", &draft) == OK) {
        if (draft.n_vocab == 0) draft.n_vocab = 100;
        spec_build(&draft, "fuzz.gguf", &spec);
        model_spec_close(&spec);
    }
    gguf_close(&gguf);
    return 0;
}
