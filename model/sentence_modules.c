// Files: sentence-transformers' save() of its modules Transformer, Pooling, Dense, Dropout and
// Normalize, in the forms of versions 2 to 6.
#include "model/sentence_modules.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "model/json_util.h"
#include "model/safetensors.h"

static const char *const kind_name[N_MODULE_KIND] = {
    [MODULE_TRANSFORMER] = "Transformer",
    [MODULE_POOLING] = "Pooling",
    [MODULE_DENSE] = "Dense",
    [MODULE_DROPOUT] = "Dropout",
    [MODULE_NORMALISE] = "Normalize",
};
#define ADVICE                                                                                     \
    "set task.pooling = none for the states of tokens, or take modules.json out of the folder"

// By the class's last name, which alone has stayed over the versions.
static enum module_kind find_kind(const char *type) {
    static const char package[] = "sentence_transformers.";
    const char *name = strrchr(type, '.');
    int kind = 0;
    if (strncmp(type, package, sizeof package - 1) != 0) return N_MODULE_KIND;
    while (kind < N_MODULE_KIND && strcmp(name + 1, kind_name[kind]) != 0) kind++;
    return (enum module_kind)kind;
}

static enum status parse_module(const json_t *json, const char *path, struct module_list *out) {
    const char *type = NULL, *folder = NULL;
    struct json_object in = {json, path};
    if (!json_is_object(json)) FAIL(ERR_INPUT, "%s: module %d is no object", path, out->n);
    TRY(json_read_string(in, "type", &type));
    TRY(json_read_string(in, "path", &folder));
    if (!type || !folder) FAIL(ERR_INPUT, "%s: module %d has no type or no path", path, out->n);
    enum module_kind kind = find_kind(type);
    if (kind == N_MODULE_KIND)
        FAIL(ERR_INPUT,
             "%s: module %d is a %.100s, which is not supported; Transformer, Pooling, Dense and "
             "Normalize of sentence_transformers are: " ADVICE,
             path, out->n, type);
    if (*folder == '.' || strchr(folder, '/') || strlen(folder) >= sizeof out->items[0].folder)
        FAIL(ERR_INPUT, "%s: module %d has the path '%.80s', which is no folder beside this file",
             path, out->n, folder);
    out->items[out->n].kind = kind;
    snprintf(out->items[out->n].folder, sizeof out->items[out->n].folder, "%s", folder);
    return OK;
}

// One Transformer, one Pooling, then any Dense and Dropout, then Normalize.
static enum status check_order(const struct module_list *list, const char *path) {
    enum module_kind before = MODULE_TRANSFORMER;
    for (int i = 0; i < list->n; i++) {
        enum module_kind kind = list->items[i].kind;
        bool repeats = kind == MODULE_DENSE || kind == MODULE_DROPOUT;
        bool hidden = repeats && (before == MODULE_DENSE || before == MODULE_DROPOUT);
        bool next = i == 0 ? kind == MODULE_TRANSFORMER : kind > before || hidden;
        if (!next || (i == 1 && kind != MODULE_POOLING))
            FAIL(ERR_INPUT,
                 "%s: module %d, %s, is not in an order that is supported (Transformer, Pooling, "
                 "Dense ..., Normalize): " ADVICE,
                 path, i, kind_name[kind]);
        before = kind;
    }
    if (list->n && *list->items[0].folder)
        FAIL(ERR_INPUT,
             "%s: the network lies in the folder %s: move what that holds beside modules.json, and "
             "set its path to \"\"",
             path, list->items[0].folder);
    return OK;
}

enum status module_list_parse(const char *text, size_t bytes, const char *path,
                              struct module_list *out) {
    json_t *root = NULL;
    enum status status = OK;
    *out = (struct module_list){0};
    TRY(json_read_list(text, bytes, path, &root));
    size_t n = json_array_size(root);
    if (n > SENTENCE_MAX_MODULE)
        FAIL_OR(done, ERR_INPUT, "%s: %zu modules; %d at most are supported", path, n,
                SENTENCE_MAX_MODULE);
    for (; out->n < (int)n; out->n++)
        TRY_OR(done, parse_module(json_array_get(root, (size_t)out->n), path, out));
    status = check_order(out, path);
done:
    json_decref(root);
    return status;
}

// How each mode is called: as a flag, and as a word. AUTO: Halka does not pool so.
static const struct {
    const char *flag, *word;
    enum pooling pooling;
} modes[] = {{"pooling_mode_mean_tokens", "mean", POOLING_MEAN},
             {"pooling_mode_cls_token", "cls", POOLING_CLS},
             {"pooling_mode_lasttoken", "lasttoken", POOLING_LAST},
             {"pooling_mode_max_tokens", "max", POOLING_AUTO},
             {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", POOLING_AUTO},
             {"pooling_mode_weightedmean_tokens", "weightedmean", POOLING_AUTO}};
enum { N_MODE = sizeof modes / sizeof modes[0] };

static enum status take_mode(const char *path, const char *word, enum pooling *out) {
    int m = 0;
    while (m < N_MODE && strcmp(word, modes[m].word) != 0) m++;
    if (m == N_MODE || modes[m].pooling == POOLING_AUTO)
        FAIL(ERR_INPUT,
             "%s: pooling by %.40s is not supported: set task.pooling to mean, cls or last in its "
             "place",
             path, word);
    if (*out != POOLING_AUTO)
        FAIL(ERR_INPUT,
             "%s: vectors of %s and %s side by side are not supported: set task.pooling to one of "
             "mean, cls and last",
             path, pooling_name(*out), word);
    *out = modes[m].pooling;
    return OK;
}

// The mode as a word or a list of words, else as flags.
static enum status read_mode(struct json_object in, enum pooling *out) {
    const json_t *mode = json_object_get(in.json, "pooling_mode");
    size_t n = json_is_array(mode) ? json_array_size(mode) : 1;
    for (size_t i = 0; mode && !json_is_null(mode) && i < n; i++) {
        const json_t *word = json_is_array(mode) ? json_array_get(mode, i) : mode;
        if (!json_is_string(word)) FAIL(ERR_INPUT, "%s: pooling_mode is no word", in.path);
        TRY(take_mode(in.path, json_string_value(word), out));
    }
    for (int m = 0; (!mode || json_is_null(mode)) && m < N_MODE; m++) {
        bool on = false;
        TRY(json_read_bool(in, modes[m].flag, &on));
        if (on) TRY(take_mode(in.path, modes[m].word, out));
    }
    return OK; // AUTO: no mode, and sentence-transformers takes the mean
}

enum status pooling_parse(const char *text, size_t bytes, const char *path, int64_t n_hidden,
                          struct sentence_modules *out) {
    json_t *root = NULL;
    int64_t width = n_hidden;
    bool prompt = true;
    enum status status = OK;
    TRY(json_read_text(text, bytes, path, &root));
    struct json_object in = {root, path};
    TRY_OR(done, json_read_int(in, "word_embedding_dimension", n_hidden, n_hidden, &width));
    TRY_OR(done, json_read_int(in, "embedding_dimension", n_hidden, n_hidden, &width));
    TRY_OR(done, json_read_bool(in, "include_prompt", &prompt));
    if (out->pooling == POOLING_AUTO) TRY_OR(done, read_mode(in, &out->pooling));
    out->without_prompt = !prompt;
done:
    json_decref(root);
    return status;
}

const char *dense_activation_name(enum dense_activation activation) {
    static const char *const names[] = {"Identity", "Tanh", "ReLU", "Sigmoid", "GELU"};
    return names[activation];
}

static enum status read_activation(struct json_object in, enum dense_activation *out) {
    const char *class = "torch.nn.modules.activation.Tanh"; // sentence-transformers' default
    TRY(json_read_string(in, "activation_function", &class));
    const char *dot = strrchr(class, '.'), *name = dot ? dot + 1 : class;
    int i = 0;
    while (i < N_DENSE_ACTIVATION && strcmp(name, dense_activation_name(i)) != 0) i++;
    if (i == N_DENSE_ACTIVATION || strncmp(class, "torch.nn.", 9) != 0)
        FAIL(ERR_INPUT,
             "%s: the activation %.100s is not supported; torch.nn's Identity, Tanh, ReLU, Sigmoid "
             "and GELU are: " ADVICE,
             in.path, class);
    *out = (enum dense_activation)i;
    return OK;
}

// Newer files name what the layer reads and writes.
static enum status check_names(struct json_object in) {
    static const char *const keys[] = {"module_input_name", "module_output_name"};
    for (int i = 0; i < 2; i++) {
        const char *name = "sentence_embedding";
        TRY(json_read_string(in, keys[i], &name));
        if (strcmp(name, "sentence_embedding") != 0)
            FAIL(ERR_INPUT,
                 "%s: %s is %.60s; a Dense layer is only supported on pooled vectors "
                 "(sentence_embedding): " ADVICE,
                 in.path, keys[i], name);
    }
    return OK;
}

enum status dense_parse(const char *text, size_t bytes, const char *path,
                        struct dense_config *out) {
    json_t *root = NULL;
    bool residual = false;
    enum status status = OK;
    *out = (struct dense_config){.bias = true};
    TRY(json_read_text(text, bytes, path, &root));
    struct json_object in = {root, path};
    TRY_OR(done, json_read_int(in, "in_features", 1, SENTENCE_MAX_WIDTH, &out->n_in));
    TRY_OR(done, json_read_int(in, "out_features", 1, SENTENCE_MAX_WIDTH, &out->n_out));
    TRY_OR(done, json_read_bool(in, "bias", &out->bias));
    if (out->n_in == 0 || out->n_out == 0)
        FAIL_OR(done, ERR_INPUT, "%s has no in_features or no out_features", path);
    TRY_OR(done, json_read_bool(in, "use_residual", &residual));
    if (residual) FAIL_OR(done, ERR_INPUT, "%s: use_residual is not supported: " ADVICE, path);
    TRY_OR(done, check_names(in));
    status = read_activation(in, &out->activation);
done:
    json_decref(root);
    return status;
}

// A folder of modules while it is read.
struct reader {
    const char *folder;
    int64_t width; // of the vectors so far
    XXH3_state_t *hash;
    struct sentence_modules *out;
};

// folder/part/file, with `part` "" the folder's own.
static enum status map_file(struct reader *r, const char *part, const char *file, char **path,
                            struct mapping *out) {
    if (asprintf(path, "%s/%s%s%s", r->folder, part, *part ? "/" : "", file) < 0) {
        *path = NULL;
        FAIL(ERR_MEMORY, "no memory for the path of %s", file);
    }
    TRY(mapping_open(*path, out));
    if (out->bytes) XXH3_128bits_update(r->hash, out->data, out->bytes);
    return OK;
}

static enum status read_pooling(struct reader *r, const char *part) {
    char *path = NULL;
    struct mapping text = {0};
    enum status status = map_file(r, part, "config.json", &path, &text);
    if (status == OK) status = pooling_parse(text.data, text.bytes, path, r->width, r->out);
    mapping_close(&text);
    free(path);
    return status;
}

static enum status find_tensor(const struct tensor_list *list, const char *path, const char *name,
                               int64_t n_row, int64_t n_col, const struct tensor **out) {
    char shape[96];
    const struct tensor *t = *out = tensor_find(list->tensors, list->n, name);
    if (!t) FAIL(ERR_INPUT, "%s has no tensor %s", path, name);
    bool is_vector = n_col == 0;
    if (t->n_dim != 2 - is_vector || t->shape[0] != n_row || (!is_vector && t->shape[1] != n_col))
        FAIL(ERR_INPUT, "%s: tensor %s is %s, not [%" PRId64 "%s%.0" PRId64 "]", path, name,
             tensor_shape_text(t, shape), n_row, is_vector ? "" : ", ", n_col);
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_F16 && t->dtype != DTYPE_BF16)
        FAIL(ERR_INPUT, "%s: tensor %s is of %s; F32, F16 and BF16 are supported", path, name,
             t->format);
    return OK;
}

static enum status take_tensors(const struct tensor_list *list, const char *path,
                                const struct dense_config *config, struct sentence_dense *out) {
    const struct tensor *t;
    TRY(find_tensor(list, path, "linear.weight", config->n_out, config->n_in, &t));
    out->weight = (struct weight){.data = t->data,
                                  .dtype = t->dtype,
                                  .n_row = config->n_out,
                                  .n_col = config->n_in,
                                  .row_bytes = dtype_bytes(t->dtype, config->n_in)};
    out->activation = config->activation;
    if (!config->bias) return OK;
    TRY(find_tensor(list, path, "linear.bias", config->n_out, 0, &t));
    out->bias = malloc((size_t)config->n_out * sizeof *out->bias);
    if (!out->bias) FAIL(ERR_MEMORY, "no memory for a bias of %s", path);
    dtype_to_float(t->dtype, t->data, config->n_out, out->bias);
    return OK;
}

static enum status read_weights(struct reader *r, const char *part,
                                const struct dense_config *config, struct sentence_dense *out) {
    char *path = NULL;
    struct tensor_list tensors = {0};
    enum status status = map_file(r, part, "model.safetensors", &path, &out->file);
    if (status == ERR_NO_INPUT)
        FAIL_OR(done, ERR_NO_INPUT,
                "cannot read %s: if its weights are in pytorch_model.bin, "
                "save the model again with sentence-transformers 3 or later",
                path);
    if (status != OK) goto done;
    TRY_OR(done, safetensors_parse(out->file.data, out->file.bytes, path, &tensors));
    TRY_OR(done, tensor_list_sort(&tensors, path));
    status = take_tensors(&tensors, path, config, out);
done:
    tensor_list_close(&tensors);
    free(path);
    return status;
}

static enum status read_dense(struct reader *r, const char *part) {
    char *path = NULL;
    struct mapping text = {0};
    struct dense_config config;
    enum status status = OK;
    TRY_OR(done, map_file(r, part, "config.json", &path, &text));
    TRY_OR(done, dense_parse(text.data, text.bytes, path, &config));
    if (config.n_in != r->width)
        FAIL_OR(done, ERR_INPUT,
                "%s: in_features is %" PRId64 ", and what comes before gives %" PRId64, path,
                config.n_in, r->width);
    TRY_OR(done, read_weights(r, part, &config, &r->out->dense[r->out->n_dense++]));
    r->width = config.n_out;
done:
    mapping_close(&text);
    free(path);
    return status;
}

static enum status read_modules(struct reader *r, const struct mapping *text, const char *path) {
    struct module_list list = {0};
    TRY(module_list_parse(text->data, text->bytes, path, &list));
    XXH3_128bits_update(r->hash, text->data, text->bytes);
    for (int i = 0; i < list.n; i++) {
        const char *part = list.items[i].folder;
        if (list.items[i].kind == MODULE_POOLING) TRY(read_pooling(r, part));
        if (list.items[i].kind == MODULE_DENSE) TRY(read_dense(r, part));
        r->out->normalise |= list.items[i].kind == MODULE_NORMALISE;
    }
    digest_print(XXH3_128bits_digest(r->hash), r->out->digest);
    return OK;
}

static enum status open_folder(const struct checkpoint *checkpoint, struct sentence_modules *out) {
    struct reader reader = {
        .folder = checkpoint->folder, .width = checkpoint->spec.n_hidden, .out = out};
    struct mapping text;
    char *path;
    enum status status = mapping_open_optional(checkpoint->folder, "modules.json", &path, &text);
    if (status != OK || !path) goto done;
    reader.hash = XXH3_createState();
    if (!reader.hash)
        FAIL_OR(done, ERR_MEMORY, "no memory for the modules of %s", checkpoint->folder);
    XXH3_128bits_reset(reader.hash);
    status = read_modules(&reader, &text, path);
    XXH3_freeState(reader.hash);
done:
    mapping_close(&text);
    free(path);
    return status;
}

// llama.cpp's numbers: 0 says nothing, 4 is a reranker's.
static enum status open_gguf(const struct checkpoint *checkpoint, struct sentence_modules *out) {
    static const enum pooling types[] = {POOLING_AUTO, POOLING_MEAN, POOLING_CLS, POOLING_LAST};
    char key[64];
    int64_t type = 0;
    snprintf(key, sizeof key, "%s.pooling_type", checkpoint->spec.architecture);
    if (out->pooling != POOLING_AUTO || !gguf_find(checkpoint->gguf, key)) return OK;
    if (!gguf_get_int(checkpoint->gguf, key, &type) || type < 0 || type > 3)
        FAIL(ERR_INPUT,
             "%s: %s is not 0 to 3 (none, mean, cls, last): set task.pooling to mean, cls or last",
             checkpoint->path, key);
    out->pooling = types[type];
    return OK;
}

enum status sentence_modules_open(const struct checkpoint *checkpoint, enum pooling wanted,
                                  struct sentence_modules *out) {
    *out = (struct sentence_modules){.pooling = wanted};
    if (wanted == POOLING_NONE) return OK;
    TRY(checkpoint->folder ? open_folder(checkpoint, out) : open_gguf(checkpoint, out));
    if (out->pooling == POOLING_AUTO) out->pooling = POOLING_MEAN;
    return OK;
}

void sentence_modules_close(struct sentence_modules *modules) {
    for (int i = 0; i < modules->n_dense; i++) {
        free(modules->dense[i].bias);
        mapping_close(&modules->dense[i].file);
    }
    *modules = (struct sentence_modules){0};
}

int64_t sentence_modules_width(const struct sentence_modules *modules, int64_t n_hidden) {
    return modules->n_dense ? modules->dense[modules->n_dense - 1].weight.n_row : n_hidden;
}

void sentence_activate(enum dense_activation activation, float *x, int64_t n) {
    for (int64_t i = 0; i < n && activation != DENSE_IDENTITY; i++) {
        double y = x[i];
        if (activation == DENSE_TANH) y = tanh(y);
        if (activation == DENSE_RELU) y = y > 0 ? y : 0;
        if (activation == DENSE_SIGMOID) y = 1 / (1 + exp(-y));
        if (activation == DENSE_GELU) y = y * 0.5 * (1 + erf(y * M_SQRT1_2));
        x[i] = (float)y;
    }
}

const char *pooling_name(enum pooling pooling) {
    static const char *const names[] = {"auto", "mean", "cls", "last", "none"};
    return names[pooling];
}
