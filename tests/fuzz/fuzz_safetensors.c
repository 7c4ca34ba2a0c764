// sources: model/safetensors.c model/tensor.c model/json_util.c
// sources: kernels/dtype.c kernels/fp8.c kernels/status.c

// One .safetensors file: parse it and touch both ends of every tensor.
#include <stddef.h>
#include <stdint.h>

#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

// A read that the compiler keeps, for the sanitizer to judge.
static void touch(const void *byte) {
    (void)*(const volatile uint8_t *)byte;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct tensor_list list = {0};
    char shape[96];
    if (safetensors_parse(data, bytes, "fuzz.safetensors", &list) == OK &&
        tensor_list_sort(&list, "fuzz.safetensors") == OK) {
        for (int64_t i = 0; i < list.n; ++i) {
            const struct tensor *tensor = &list.tensors[i];
            tensor_shape_text(tensor, shape);
            if (tensor->bytes == 0) continue;
            touch(tensor->data);
            touch((const uint8_t *)tensor->data + tensor->bytes - 1);
        }
    }
    tensor_list_close(&list);
    return 0;
}
