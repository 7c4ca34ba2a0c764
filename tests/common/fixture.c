#include "tests/common/fixture.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int32_t *read_ids(const json_t *array, int64_t *n) {
    *n = (int64_t)json_array_size(array);
    int32_t *out = calloc((size_t)*n + 1, sizeof *out);
    if (!out) abort();
    for (int64_t i = 0; i < *n; i++) {
        out[i] = (int32_t)json_integer_value(json_array_get(array, (size_t)i));
    }
    return out;
}

static double *read_numbers(const json_t *array, int64_t *n) {
    *n = (int64_t)json_array_size(array);
    double *out = calloc((size_t)*n + 1, sizeof *out);
    if (!out) abort();
    for (int64_t i = 0; i < *n; i++) {
        const json_t *value = json_array_get(array, (size_t)i);
        out[i] = json_is_null(value) ? NAN : json_number_value(value);
    }
    return out;
}

static void read_ends(const json_t *array, struct fixture_case *out) {
    out->n_document = (int)json_array_size(array);
    out->document_end = calloc((size_t)out->n_document + 1, sizeof *out->document_end);
    if (!out->document_end) abort();
    for (int i = 0; i < out->n_document; i++)
        out->document_end[i] = json_integer_value(json_array_get(array, (size_t)i));
}

static bool read_case(const json_t *from, struct fixture_case *out) {
    int64_t n_logprob;
    snprintf(out->name, sizeof out->name, "%s", json_string_value(json_object_get(from, "name")));
    out->token = read_ids(json_object_get(from, "token"), &out->n_token);
    out->logprob = read_numbers(json_object_get(from, "logprob"), &n_logprob);
    out->last_logits = read_numbers(json_object_get(from, "last_logits"), &out->n_logit);
    out->state = read_numbers(json_object_get(from, "state"), &out->n_state);
    read_ends(json_object_get(from, "document_end"), out);
    if (out->n_token == 0) return false;
    return out->n_state ? out->n_state % out->n_token == 0 : n_logprob == out->n_token;
}

static bool read_greedy(const json_t *from, struct fixture_greedy *out) {
    int64_t n_margin;
    out->prompt = read_ids(json_object_get(from, "prompt"), &out->n_prompt);
    out->token = read_ids(json_object_get(from, "token"), &out->n_token);
    out->margin = read_numbers(json_object_get(from, "margin"), &n_margin);
    return out->n_prompt > 0 && out->n_token > 0 && n_margin == out->n_token;
}

bool fixture_open(const char *path, struct fixture *out) {
    memset(out, 0, sizeof *out);
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (!root) {
        fprintf(stderr, "%s:%d: %s\n", path, error.line, error.text);
        return false;
    }
    const json_t *cases = json_object_get(root, "cases"), *greedy = json_object_get(root, "greedy");
    bool good = json_array_size(cases) > 0 && json_array_size(cases) <= FIXTURE_MAX &&
                json_array_size(greedy) <= FIXTURE_MAX;
    for (size_t i = 0; good && i < json_array_size(cases); i++) {
        good = read_case(json_array_get(cases, i), &out->cases[out->n_case++]);
    }
    for (size_t i = 0; good && i < json_array_size(greedy); i++) {
        good = read_greedy(json_array_get(greedy, i), &out->greedy[out->n_greedy++]);
    }
    json_decref(root);
    if (!good) fprintf(stderr, "%s: not a reference file\n", path);
    return good;
}

void fixture_close(struct fixture *fixture) {
    for (int i = 0; i < fixture->n_case; i++) {
        free(fixture->cases[i].token);
        free(fixture->cases[i].logprob);
        free(fixture->cases[i].last_logits);
        free(fixture->cases[i].state);
        free(fixture->cases[i].document_end);
    }
    for (int i = 0; i < fixture->n_greedy; i++) {
        free(fixture->greedy[i].prompt);
        free(fixture->greedy[i].token);
        free(fixture->greedy[i].margin);
    }
    memset(fixture, 0, sizeof *fixture);
}
