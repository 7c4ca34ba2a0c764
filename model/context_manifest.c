// The manifest of a saved context. What it says of the session's geometry is compared, not taken
// over, so that nothing is sized by the file: every rank knows what the numbers must be.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/context_internal.h"
#include "model/json_util.h"

enum { CONTEXT_VERSION = 1, PAGE_HEX = 16 };

void context_name(enum context_file kind, int64_t generation, char out[CONTEXT_NAME_BYTES]) {
    static const char *const names[N_CONTEXT_FILE] = {"pages", "logprobs", "ids", "manifest"};
    snprintf(out, CONTEXT_NAME_BYTES, "%s-%" PRId64, names[kind], generation);
}

int64_t context_last_bytes(const struct session *s) {
    return s->forward.spec->n_hidden * (int64_t)sizeof(float);
}

int64_t context_manifest_most(const struct session *s, int64_t n_token) {
    return (64 << 10) + ceil_div(n_token, CONTEXT_PAGE) * 32 +
           (int64_t)s->forward.spec->n_layer * 512 + 2 * context_last_bytes(s);
}

enum status context_manifest_open(const struct session *s, int64_t n_token, int64_t done,
                                  struct context_manifest *out) {
    int n_layer = s->forward.spec->n_layer;
    *out = (struct context_manifest){.n_token = n_token,
                                     .done = done,
                                     .n_page = ceil_div(done, CONTEXT_PAGE),
                                     .page_bytes = context_page_bytes(&s->forward.kv)};
    out->digest = calloc((size_t)out->n_page, sizeof *out->digest);
    out->begin = calloc((size_t)n_layer, sizeof *out->begin);
    if (out->digest && out->begin) return OK;
    FAIL(ERR_MEMORY, "no memory for the manifest of %lld tokens", (long long)done);
}

void context_manifest_close(struct context_manifest *m) {
    free(m->last_state);
    free(m->begin);
    free(m->digest);
    *m = (struct context_manifest){0};
}

static const char *index_name(const struct kv_shape *shape) {
    return shape->indexed ? dtype_info[shape->index_dtype].name : NULL;
}

static json_t *print_layers(const struct context_manifest *m, const struct kv_store *kv) {
    json_t *layers = json_array();
    for (int i = 0; i < kv->n_layer; i++) {
        struct kv_part part[KV_MAX_PARTS];
        json_t *parts = json_object();
        int n = kv_store_parts(kv, i, part);
        for (int k = 0; k < n; k++)
            json_object_set_new(parts, part[k].name, json_integer(part[k].bytes));
        json_array_append_new(
            layers, json_pack("{s:I, s:o}", "begin", (json_int_t)m->begin[i], "parts", parts));
    }
    return layers;
}

static json_t *print_digests(const struct context_manifest *m) {
    json_t *digests = json_array();
    for (int64_t i = 0; i < m->n_page; i++) {
        char text[PAGE_HEX + 1];
        snprintf(text, sizeof text, "%016" PRIx64, (uint64_t)m->digest[i]);
        json_array_append_new(digests, json_string(text));
    }
    return digests;
}

static json_t *print_hex(const void *of, int64_t bytes) {
    const unsigned char *data = of;
    char *text = malloc((size_t)(2 * bytes + 1));
    if (!text) return NULL;
    for (int64_t i = 0; i < bytes; i++) snprintf(text + 2 * i, 3, "%02x", data[i]);
    json_t *value = json_string(text);
    free(text);
    return value;
}

char *context_manifest_print(const struct context_manifest *m, const struct session *s,
                             const struct context_source *source) {
    const struct kv_store *kv = &s->forward.kv;
    char pages[CONTEXT_NAME_BYTES], logprobs[CONTEXT_NAME_BYTES];
    context_name(CONTEXT_PAGES, m->generation, pages);
    context_name(CONTEXT_LOGPROBS, m->generation, logprobs);
    json_t *last = m->last_state ? print_hex(m->last_state, context_last_bytes(s)) : json_null();
    json_t *name = source->name ? json_string(source->name) : NULL; // NULL: not UTF-8
    json_t *object = json_pack(
        "{s:o?, s:s, s:i, s:s, s:s, s:I, s:I, s:i, s:s, s:s?, s:i, s:I, s:s, s:o, s:s?, s:s?, s:o, "
        "s:o}",
        "name", name, "format", CONTEXT_FORMAT, "version", CONTEXT_VERSION, "identity",
        source->identity, "token_digest", source->token_digest, "n_token", (json_int_t)m->n_token,
        "done", (json_int_t)m->done, "ranks", s->forward.comm->size, "dtype",
        dtype_info[kv->shape.dtype].name, "index_dtype", index_name(&kv->shape), "page",
        CONTEXT_PAGE, "page_bytes", (json_int_t)m->page_bytes, "pages", pages, "digests",
        print_digests(m), "logprobs", m->scored ? logprobs : NULL, "logprobs_digest",
        m->scored ? m->logprobs_digest : NULL, "layers", print_layers(m, kv), "last_state", last);
    char *text = object ? json_dumps(object, JSON_INDENT(1)) : NULL;
    json_decref(object);
    return text;
}

// Each fails where the key is absent or null.
static enum status need_int(struct json_object in, const char *key, int64_t low, int64_t high,
                            int64_t *out) {
    *out = low - 1;
    TRY(json_read_int(in, key, low, high, out));
    if (*out < low) FAIL(ERR_INPUT, "%s: %s is missing", in.path, key);
    return OK;
}

static enum status need_same_int(struct json_object in, const char *key, int64_t expected) {
    int64_t got;
    TRY(need_int(in, key, 0, INT64_MAX, &got));
    if (got != expected)
        FAIL(ERR_INPUT, "%s: %s is %lld, and %lld in this job", in.path, key, (long long)got,
             (long long)expected);
    return OK;
}

// expected NULL: null, or absent.
static enum status need_same_text(struct json_object in, const char *key, const char *expected) {
    const char *got = NULL;
    TRY(json_read_string(in, key, &got));
    if (!got && !expected) return OK;
    if (!got || !expected || strcmp(got, expected) != 0)
        FAIL(ERR_INPUT, "%s: %s is %.80s, and %s in this job", in.path, key, got ? got : "none",
             expected ? expected : "none");
    return OK;
}

static enum status need_list(struct json_object in, const char *key, int64_t n,
                             const json_t **out) {
    *out = NULL;
    TRY(json_read_array(in, key, out));
    int64_t got = *out ? (int64_t)json_array_size(*out) : -1;
    if (got != n) FAIL(ERR_INPUT, "%s: %s is no list of %lld", in.path, key, (long long)n);
    return OK;
}

// What the next token sees must be there.
static bool reaches(const struct layer_spec *layer, int64_t begin, int64_t n) {
    return begin == 0 || (layer->window && begin > layer->sinks && begin <= n - layer->window + 1);
}

bool context_manifest_reaches(const struct context_manifest *m, const struct session *s,
                              int64_t n) {
    for (int i = 0; i < s->forward.spec->n_layer; i++)
        if (!reaches(&s->forward.spec->layers[i], m->begin[i], n)) return false;
    return true;
}

static enum status parse_layer(struct json_object in, int layer, const struct session *s,
                               struct context_manifest *m) {
    const struct layer_spec *spec = &s->forward.spec->layers[layer];
    struct kv_part part[KV_MAX_PARTS];
    struct json_object parts = {.path = in.path};
    int n = kv_store_parts(&s->forward.kv, layer, part);
    int64_t begin;
    TRY(need_int(in, "begin", 0, m->done, &begin));
    if (!reaches(spec, begin, m->done))
        FAIL(ERR_INPUT, "%s: tokens before %lld are missing in layer %d", in.path, (long long)begin,
             layer);
    m->begin[layer] = begin;
    TRY(json_read_object(in, "parts", &parts.json));
    if ((int)json_object_size(parts.json) != n)
        FAIL(ERR_INPUT, "%s: layer %d has %d parts, and %d in this job", in.path, layer,
             (int)json_object_size(parts.json), n);
    for (int k = 0; k < n; k++) {
        if (need_same_int(parts, part[k].name, part[k].bytes) != OK)
            return status_context(ERR_INPUT, "rows of layer %d", layer);
    }
    return OK;
}

static enum status parse_layers(struct json_object in, const struct session *s,
                                struct context_manifest *m) {
    const json_t *layers;
    TRY(need_list(in, "layers", s->forward.spec->n_layer, &layers));
    for (int i = 0; i < s->forward.spec->n_layer; i++) {
        struct json_object layer = {json_array_get(layers, (size_t)i), in.path};
        if (!json_is_object(layer.json))
            FAIL(ERR_INPUT, "%s: layer %d is not an object", in.path, i);
        TRY(parse_layer(layer, i, s, m));
    }
    return OK;
}

static bool is_hex(const char *text, int64_t n) {
    return text && (int64_t)strlen(text) == n && (int64_t)strspn(text, "0123456789abcdef") == n;
}

static enum status parse_digests(struct json_object in, struct context_manifest *m) {
    const json_t *digests;
    TRY(need_list(in, "digests", m->n_page, &digests));
    for (int64_t i = 0; i < m->n_page; i++) {
        const char *text = json_string_value(json_array_get(digests, (size_t)i));
        if (!is_hex(text, PAGE_HEX) || text[0] > '7')
            FAIL(ERR_INPUT, "%s: the digest of page %lld is none", in.path, (long long)i);
        m->digest[i] = strtoll(text, NULL, 16);
    }
    return OK;
}

static enum status parse_last_state(struct json_object in, const struct session *s,
                                    struct context_manifest *m) {
    const char *text = NULL;
    int64_t bytes = context_last_bytes(s);
    TRY(json_read_string(in, "last_state", &text));
    if (!text) return OK;
    if (!is_hex(text, 2 * bytes))
        FAIL(ERR_INPUT, "%s: last_state is not of %lld bytes", in.path, (long long)bytes);
    m->last_state = malloc((size_t)bytes);
    if (!m->last_state) FAIL(ERR_MEMORY, "no memory for a state");
    for (int64_t i = 0; i < bytes; i++) {
        const char byte[3] = {text[2 * i], text[2 * i + 1], '\0'};
        ((unsigned char *)m->last_state)[i] = (unsigned char)strtol(byte, NULL, 16);
    }
    return OK;
}

// The names say one generation.
static enum status parse_files(struct json_object in, struct context_manifest *m) {
    char expected[CONTEXT_NAME_BYTES];
    const char *pages = NULL, *logprobs = NULL, *digest = NULL;
    TRY(json_read_string(in, "pages", &pages));
    TRY(json_read_string(in, "logprobs", &logprobs));
    TRY(json_read_string(in, "logprobs_digest", &digest));
    m->generation = pages && strncmp(pages, "pages-", 6) == 0 ? strtoll(pages + 6, NULL, 10) : 0;
    context_name(CONTEXT_PAGES, m->generation, expected);
    if (m->generation < 1 || strcmp(pages, expected) != 0)
        FAIL(ERR_INPUT, "%s: pages does not name a file", in.path);
    m->scored = logprobs != NULL;
    if (!m->scored) return OK;
    context_name(CONTEXT_LOGPROBS, m->generation, expected);
    if (strcmp(logprobs, expected) != 0 || !is_hex(digest, DIGEST_BYTES - 1))
        FAIL(ERR_INPUT, "%s: logprobs or its digest is none", in.path);
    memcpy(m->logprobs_digest, digest, DIGEST_BYTES);
    return OK;
}

static enum status parse(struct json_object in, const struct session *s,
                         const struct context_source *source, struct context_manifest *out) {
    const struct kv_store *kv = &s->forward.kv;
    const char *name = NULL;
    int64_t done;
    TRY(need_same_text(in, "format", CONTEXT_FORMAT));
    TRY(need_same_int(in, "version", CONTEXT_VERSION));
    TRY(need_same_text(in, "identity", source->identity));
    TRY(need_same_text(in, "token_digest", source->token_digest));
    TRY(need_same_int(in, "n_token", source->n_token));
    TRY(need_int(in, "done", 1, source->n_token, &done));
    TRY(context_manifest_open(s, source->n_token, done, out));
    TRY(json_read_string(in, "name", &name));
    snprintf(out->name, sizeof out->name, "%s", name ? name : "");
    TRY(need_same_text(in, "dtype", dtype_info[kv->shape.dtype].name));
    TRY(need_same_text(in, "index_dtype", index_name(&kv->shape)));
    TRY(parse_layers(in, s, out));
    TRY(need_same_int(in, "page", CONTEXT_PAGE));
    TRY(need_same_int(in, "page_bytes", out->page_bytes));
    TRY(parse_files(in, out));
    TRY(parse_digests(in, out));
    return parse_last_state(in, s, out);
}

enum status context_manifest_parse(const struct context_text *text, const struct session *session,
                                   const struct context_source *source,
                                   struct context_manifest *out) {
    json_t *root;
    *out = (struct context_manifest){0};
    TRY(json_read_text(text->text, (size_t)text->bytes, text->path, &root));
    enum status status = parse((struct json_object){root, text->path}, session, source, out);
    json_decref(root);
    if (status != OK) context_manifest_close(out);
    return status;
}
