#include "model/tensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status tensor_list_add(struct tensor_list *list, struct tensor tensor) {
    if (list->n == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 64;
        struct tensor *grown = realloc(list->tensors, (size_t)capacity * sizeof *grown);
        if (!grown) {
            free(tensor.name);
            FAIL(ERR_MEMORY, "no memory for a table of %" PRId64 " tensors", capacity);
        }
        list->tensors = grown;
        list->capacity = capacity;
    }
    list->tensors[list->n++] = tensor;
    return OK;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

enum status tensor_list_sort(struct tensor_list *list, const char *path) {
    if (list->n) qsort(list->tensors, (size_t)list->n, sizeof *list->tensors, compare_names);
    for (int64_t i = 1; i < list->n; ++i)
        if (strcmp(list->tensors[i - 1].name, list->tensors[i].name) == 0)
            FAIL(ERR_INPUT, "%s: tensor %s occurs twice", path, list->tensors[i].name);
    return OK;
}

void tensor_list_close(struct tensor_list *list) {
    for (int64_t i = 0; i < list->n; ++i) free(list->tensors[i].name);
    free(list->tensors);
    *list = (struct tensor_list){0};
}

static int compare_to_name(const void *key, const void *tensor) {
    return strcmp(key, ((const struct tensor *)tensor)->name);
}

const struct tensor *tensor_find(const struct tensor *tensors, int64_t n, const char *name) {
    return n ? bsearch(name, tensors, (size_t)n, sizeof *tensors, compare_to_name) : NULL;
}

int64_t tensor_elements(const struct tensor *tensor) {
    int64_t n = 1;
    for (int i = 0; i < tensor->n_dim; ++i) n *= tensor->shape[i];
    return n;
}

enum dtype tensor_format_dtype(const char *format) {
    for (int i = 0; i < N_DTYPE; ++i) {
        if (strcmp(dtype_info[i].name, format) == 0) return (enum dtype)i;
    }
    return N_DTYPE;
}

const char *tensor_shape_text(const struct tensor *tensor, char out[96]) {
    int at = snprintf(out, 96, "[");
    for (int i = 0; i < tensor->n_dim; ++i)
        at += snprintf(out + at, (size_t)(96 - at), "%s%" PRId64, i ? ", " : "", tensor->shape[i]);
    snprintf(out + at, (size_t)(96 - at), "]");
    return out;
}
