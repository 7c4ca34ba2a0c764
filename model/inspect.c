#include "model/inspect.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "model/sentence_modules.h"
#include "model/sentence_prompts.h"

static void describe_rope(const struct rope_spec *rope, FILE *out) {
    if (rope->dim == 0) return; // positions are learned
    fprintf(out, "rope          base %.0f, %d elements, %s, %s", rope->base, rope->dim,
            rope->interleaved ? "adjacent pairs" : "halves",
            rope->method == ROPE_DEFAULT ? "unscaled" : rope_method_name(rope->method));
    if (rope->method != ROPE_DEFAULT) fprintf(out, " by %g", rope->factor);
    if (rope->method >= ROPE_DYNAMIC) fprintf(out, " from %.0f tokens", rope->original_context);
    fprintf(out, "%s\n", rope->has_divisors ? ", divisors by frequency" : "");
}

static void describe_network(const struct model_spec *spec, FILE *out) {
    const struct layer_spec *layer = &spec->layers[0];
    fprintf(out, "architecture  %s%s\n", spec->architecture, spec->causal ? "" : ", an encoder");
    fprintf(out, "layers        %d of width %d, feed-forward %d\n", spec->n_layer, spec->n_hidden,
            layer->n_feed_forward);
    fprintf(out, "attention     %d heads of %d, %d key/value heads%s%s\n", layer->n_head,
            layer->head_dim, layer->n_kv_head, layer->attention_bias ? ", biases" : "",
            layer->query_key_norm ? ", query and key norms" : "");
    for (int i = 0; i < spec->n_rope; ++i) describe_rope(&spec->ropes[i], out);
    fprintf(out, "context       %" PRId64 " tokens", spec->context);
    int n_windowed = 0;
    for (int i = 0; i < spec->n_layer; ++i) n_windowed += spec->layers[i].window > 0;
    if (n_windowed)
        fprintf(out, ", %d layers see a window of %" PRId64, n_windowed, model_spec_window(spec));
    fprintf(out, "\nvocabulary    %" PRId64 "%s\n", spec->n_vocab,
            spec->causal && spec->tied_head ? ", output tied to the embedding" : "");
    fprintf(out, "stops at     ");
    for (int i = 0; i < spec->n_stop; ++i) fprintf(out, " %" PRId32, spec->stop[i]);
    fprintf(out, "%s\n", spec->n_stop ? "" : " no token");
}

static int compare_formats(const void *a, const void *b) {
    const struct tensor *x = *(const struct tensor *const *)a;
    const struct tensor *y = *(const struct tensor *const *)b;
    int order = strcmp(x->format, y->format);
    return order ? order : strcmp(x->name, y->name);
}

// One line per format that occurs, Halka's own or not.
static enum status describe_formats(const struct checkpoint *checkpoint, FILE *out) {
    int64_t n = checkpoint->n_tensor, n_element = 0, bytes = 0;
    const struct tensor **sorted = calloc((size_t)n + 1, sizeof *sorted);
    if (!sorted) FAIL(ERR_MEMORY, "no memory to list %" PRId64 " tensors", n);
    for (int64_t i = 0; i < n; ++i) {
        sorted[i] = &checkpoint->tensors[i];
        n_element += tensor_elements(sorted[i]);
        bytes += sorted[i]->bytes;
    }
    qsort(sorted, (size_t)n, sizeof *sorted, compare_formats);
    fprintf(out, "parameters    %" PRId64 " in %" PRId64 " tensors, %" PRId64 " bytes\n", n_element,
            n, bytes);
    for (int64_t begin = 0, end; begin < n; begin = end) {
        const struct tensor *first = sorted[begin];
        n_element = bytes = 0;
        for (end = begin; end < n && strcmp(sorted[end]->format, first->format) == 0; ++end) {
            n_element += tensor_elements(sorted[end]);
            bytes += sorted[end]->bytes;
        }
        fprintf(out, "  %-11s %" PRId64 " in %" PRId64 " tensors, %" PRId64 " bytes%s\n",
                first->format, n_element, end - begin, bytes,
                first->dtype == N_DTYPE ? " (not used)" : "");
    }
    free(sorted);
    return OK;
}

static void describe_modules(const struct sentence_modules *modules, int64_t n_hidden, FILE *out) {
    fprintf(out, "vectors       %s of states", pooling_name(modules->pooling));
    for (int i = 0; i < modules->n_dense; ++i) {
        const struct sentence_dense *dense = &modules->dense[i];
        fprintf(out, ", Dense %" PRId64 " to %" PRId64 " (%s%s)", dense->weight.n_col,
                dense->weight.n_row, dense_activation_name(dense->activation),
                dense->bias ? ", bias" : "");
    }
    fprintf(out, "%s: %" PRId64 " elements\n", modules->normalise ? ", length 1" : "",
            sentence_modules_width(modules, n_hidden));
}

// As JSON, since prompts hold line ends.
static void describe_prompts(const struct sentence_prompts *prompts, FILE *out) {
    const char *name;
    json_t *value;
    json_object_foreach(prompts->texts, name, value) {
        fprintf(out, "prompt        %s%s: ", name,
                json_string_value(value) == prompts->standard ? " (default)" : "");
        json_dumpf(value, out, JSON_ENCODE_ANY);
        fputc('\n', out);
    }
}

// What embed and locate make of the states. A folder whose modules they refuse is sound otherwise.
static void describe_vectors(const struct checkpoint *checkpoint, FILE *out) {
    struct sentence_modules modules;
    struct sentence_prompts prompts = {0};
    int64_t max_tokens = 0;
    const struct model_spec *spec = &checkpoint->spec;
    enum status status = sentence_modules_open(checkpoint, POOLING_AUTO, &modules);
    if (status == OK) status = sentence_prompts_open(checkpoint->folder, &prompts);
    if (status == OK) status = sentence_max_tokens(checkpoint->folder, &max_tokens);
    bool said = *modules.digest || modules.pooling != POOLING_MEAN;
    if (status != OK)
        fprintf(out, "vectors       refused: %s\n", status_message());
    else if (said || !spec->causal)
        describe_modules(&modules, spec->n_hidden, out);
    if (*modules.digest && max_tokens > 0)
        fprintf(out, "cut after     %" PRId64 " tokens by sentence-transformers\n", max_tokens);
    describe_prompts(&prompts, out);
    sentence_prompts_close(&prompts);
    sentence_modules_close(&modules);
}

enum status checkpoint_describe(const struct checkpoint *checkpoint, bool all, FILE *out) {
    char shape[96];
    fprintf(out, "model         %s\n", checkpoint->path);
    if (checkpoint->gguf)
        fprintf(out, "format        GGUF version %" PRIu32 "\n", checkpoint->gguf->version);
    else // config.json is mapped, too
        fprintf(out, "format        safetensors, %d file%s\n", checkpoint->n_mapping - 1,
                checkpoint->n_mapping == 2 ? "" : "s");
    fprintf(out, "digest        %s\n", checkpoint->digest);
    describe_network(&checkpoint->spec, out);
    describe_vectors(checkpoint, out);
    TRY(describe_formats(checkpoint, out));
    for (int64_t i = 0; all && i < checkpoint->n_tensor; ++i) {
        const struct tensor *tensor = &checkpoint->tensors[i];
        fprintf(out, "  %-48s %-8s %s\n", tensor->name, tensor->format,
                tensor_shape_text(tensor, shape));
    }
    if (ferror(out)) FAIL(ERR_IO, "writing the description of %s failed", checkpoint->path);
    return OK;
}
