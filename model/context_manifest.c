// The manifest of a saved context. What it says of the session's geometry is compared, not taken
// over, so that nothing is sized by the file: every rank knows what the numbers must be.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/context_internal.h"
#include "model/json_util.h"

enum { CONTEXT_VERSION = 2, PAGE_HEX = 16 };

void context_name(enum context_file kind, int64_t generation, char out[CONTEXT_NAME_BYTES]) {
    static const char *const names[N_CONTEXT_FILE] = {"pages", "logprobs", "ids", "manifest"};
    snprintf(out, CONTEXT_NAME_BYTES, "%s-%" PRId64, names[kind], generation);
}

int64_t context_last_bytes(const struct session *s) {
    return s->forward.spec->n_hidden * (int64_t)sizeof(float);
}

int64_t context_manifest_most(const struct session *s, int64_t n_token) {
    int64_t n_layer = s->forward.spec->n_layer, n_digest = ceil_div(n_token, CONTEXT_PAGE);
    return (64 << 10) + (n_digest + CONTEXT_MOST_SEGMENTS) * 32 + n_layer * 512 +
           CONTEXT_MOST_SEGMENTS * (512 + n_layer * 32) + 2 * context_last_bytes(s);
}

void context_manifest_open(const struct session *s, int64_t n_token, struct context_manifest *out) {
    *out = (struct context_manifest){
        .n_token = n_token, .page_bytes = context_page_bytes(&s->forward.kv), .scored = true};
}

enum status context_manifest_add(struct context_manifest *m, const struct session *s,
                                 int64_t done) {
    size_t n = (size_t)m->n_segment + 1;
    struct context_segment *list = realloc(m->segment, n * sizeof *list);
    if (!list) FAIL(ERR_MEMORY, "no memory for the manifest of %lld tokens", (long long)done);
    m->segment = list;
    struct context_segment *added = &list[m->n_segment++];
    *added = (struct context_segment){.from = m->done, .done = done};
    added->n_page = ceil_div(done, CONTEXT_PAGE) - m->done / CONTEXT_PAGE;
    added->digest = calloc((size_t)added->n_page, sizeof *added->digest);
    added->begin = calloc((size_t)s->forward.spec->n_layer, sizeof *added->begin);
    m->done = done;
    if (added->digest && added->begin) return OK;
    FAIL(ERR_MEMORY, "no memory for the manifest of %lld tokens", (long long)done);
}

void context_manifest_close(struct context_manifest *m) {
    for (int i = 0; i < m->n_segment; i++) {
        free(m->segment[i].begin);
        free(m->segment[i].digest);
    }
    free(m->segment);
    free(m->last_state);
    *m = (struct context_manifest){0};
}

static const char *index_name(const struct kv_shape *shape) {
    return shape->indexed ? dtype_info[shape->index_dtype].name : NULL;
}

static json_t *print_layers(const struct kv_store *kv) {
    json_t *layers = json_array();
    for (int i = 0; i < kv->n_layer; i++) {
        struct kv_part part[KV_MAX_PARTS];
        json_t *parts = json_object();
        int n = kv_store_parts(kv, i, part);
        for (int k = 0; k < n; k++)
            json_object_set_new(parts, part[k].name, json_integer(part[k].bytes));
        json_array_append_new(layers, parts);
    }
    return layers;
}

static json_t *print_segment(const struct context_segment *segment, int n_layer) {
    char text[PAGE_HEX + 1], pages[CONTEXT_NAME_BYTES], logprobs[CONTEXT_NAME_BYTES];
    json_t *begin = json_array(), *digests = json_array();
    context_name(CONTEXT_PAGES, segment->generation, pages);
    context_name(CONTEXT_LOGPROBS, segment->generation, logprobs);
    for (int i = 0; i < n_layer; i++)
        json_array_append_new(begin, json_integer((json_int_t)segment->begin[i]));
    for (int64_t i = 0; i < segment->n_page; i++) {
        snprintf(text, sizeof text, "%016" PRIx64, (uint64_t)segment->digest[i]);
        json_array_append_new(digests, json_string(text));
    }
    return json_pack("{s:I, s:s, s:o, s:o, s:s?, s:s?}", "done", (json_int_t)segment->done, "pages",
                     pages, "begin", begin, "digests", digests, "logprobs",
                     segment->scored ? logprobs : NULL, "logprobs_digest",
                     segment->scored ? segment->logprobs_digest : NULL);
}

static json_t *print_segments(const struct context_manifest *m, int n_layer) {
    json_t *segments = json_array();
    for (int i = 0; i < m->n_segment; i++)
        json_array_append_new(segments, print_segment(&m->segment[i], n_layer));
    return segments;
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
    json_t *last = m->last_state ? print_hex(m->last_state, context_last_bytes(s)) : json_null();
    json_t *name = source->name ? json_string(source->name) : NULL; // NULL: not UTF-8
    json_t *object = json_pack(
        "{s:o?, s:s, s:i, s:s, s:s, s:I, s:I, s:i, s:s, s:s?, s:i, s:I, s:o, s:o, s:o}", "name",
        name, "format", CONTEXT_FORMAT, "version", CONTEXT_VERSION, "identity", source->identity,
        "token_digest", source->token_digest, "n_token", (json_int_t)m->n_token, "done",
        (json_int_t)m->done, "ranks", s->forward.comm->size, "dtype",
        dtype_info[kv->shape.dtype].name, "index_dtype", index_name(&kv->shape), "page",
        CONTEXT_PAGE, "page_bytes", (json_int_t)m->page_bytes, "layers", print_layers(kv), "saves",
        print_segments(m, kv->n_layer), "last_state", last);
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

// n -1: of any length.
static enum status need_list(struct json_object in, const char *key, int64_t n,
                             const json_t **out) {
    *out = NULL;
    TRY(json_read_array(in, key, out));
    int64_t got = *out ? (int64_t)json_array_size(*out) : -1;
    if (n < 0 && got >= 0) return OK;
    if (n < 0) FAIL(ERR_INPUT, "%s: %s is missing", in.path, key);
    if (got != n) FAIL(ERR_INPUT, "%s: %s is no list of %lld", in.path, key, (long long)n);
    return OK;
}

static enum status need_object(const json_t *list, int64_t i, const char *what,
                               struct json_object *out) {
    out->json = json_array_get(list, (size_t)i);
    if (!json_is_object(out->json))
        FAIL(ERR_INPUT, "%s: %s %lld is not an object", out->path, what, (long long)i);
    return OK;
}

int64_t context_manifest_held(const struct context_manifest *m, int layer, int64_t n) {
    for (int i = m->n_segment - 1; i >= 0; i--) {
        const struct context_segment *segment = &m->segment[i];
        if (segment->from < n && segment->begin[layer] > segment->from)
            return segment->begin[layer];
    }
    return 0;
}

// What the next token sees must be there.
static bool reaches(const struct layer_spec *layer, int64_t begin, int64_t n) {
    return begin == 0 || (layer->window && begin > layer->sinks && begin <= n - layer->window + 1);
}

bool context_manifest_reaches(const struct context_manifest *m, const struct session *s,
                              int64_t n) {
    for (int i = 0; i < s->forward.spec->n_layer; i++)
        if (!reaches(&s->forward.spec->layers[i], context_manifest_held(m, i, n), n)) return false;
    return true;
}

static enum status parse_layers(struct json_object in, const struct session *s) {
    const struct kv_store *kv = &s->forward.kv;
    struct json_object layer = {.path = in.path};
    const json_t *layers;
    TRY(need_list(in, "layers", kv->n_layer, &layers));
    for (int i = 0; i < kv->n_layer; i++) {
        struct kv_part part[KV_MAX_PARTS];
        int n = kv_store_parts(kv, i, part);
        TRY(need_object(layers, i, "layer", &layer));
        if ((int)json_object_size(layer.json) != n)
            FAIL(ERR_INPUT, "%s: layer %d has %d parts, and %d in this job", in.path, i,
                 (int)json_object_size(layer.json), n);
        for (int k = 0; k < n; k++)
            if (need_same_int(layer, part[k].name, part[k].bytes) != OK)
                return status_context(ERR_INPUT, "rows of layer %d", i);
    }
    return OK;
}

static bool is_hex(const char *text, int64_t n) {
    return text && (int64_t)strlen(text) == n && (int64_t)strspn(text, "0123456789abcdef") == n;
}

static enum status parse_digests(struct json_object in, struct context_segment *out) {
    const json_t *digests;
    TRY(need_list(in, "digests", out->n_page, &digests));
    for (int64_t i = 0; i < out->n_page; i++) {
        const char *text = json_string_value(json_array_get(digests, (size_t)i));
        if (!is_hex(text, PAGE_HEX) || text[0] > '7')
            FAIL(ERR_INPUT, "%s: the digest of page %lld is none", in.path,
                 (long long)(out->from / CONTEXT_PAGE + i));
        out->digest[i] = strtoll(text, NULL, 16);
    }
    return OK;
}

static enum status parse_begins(struct json_object in, const struct session *s,
                                struct context_segment *out) {
    const json_t *begins;
    TRY(need_list(in, "begin", s->forward.spec->n_layer, &begins));
    for (int i = 0; i < s->forward.spec->n_layer; i++) {
        const json_t *begin = json_array_get(begins, (size_t)i);
        out->begin[i] = json_is_integer(begin) ? json_integer_value(begin) : -1;
        if (out->begin[i] < 0 || out->begin[i] > out->done)
            FAIL(ERR_INPUT, "%s: begin of layer %d is none of %lld tokens", in.path, i,
                 (long long)out->done);
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
static enum status parse_files(struct json_object in, struct context_segment *out) {
    char expected[CONTEXT_NAME_BYTES];
    const char *pages = NULL, *logprobs = NULL, *digest = NULL;
    TRY(json_read_string(in, "pages", &pages));
    TRY(json_read_string(in, "logprobs", &logprobs));
    TRY(json_read_string(in, "logprobs_digest", &digest));
    out->generation = pages && strncmp(pages, "pages-", 6) == 0 ? strtoll(pages + 6, NULL, 10) : 0;
    context_name(CONTEXT_PAGES, out->generation, expected);
    if (out->generation < 1 || strcmp(pages, expected) != 0)
        FAIL(ERR_INPUT, "%s: pages does not name a file", in.path);
    out->scored = logprobs != NULL;
    if (!out->scored) return OK;
    context_name(CONTEXT_LOGPROBS, out->generation, expected);
    if (strcmp(logprobs, expected) != 0 || !is_hex(digest, DIGEST_BYTES - 1))
        FAIL(ERR_INPUT, "%s: logprobs or its digest is none", in.path);
    memcpy(out->logprobs_digest, digest, DIGEST_BYTES);
    return OK;
}

// The one behind those that are there.
static enum status parse_segment(struct json_object in, const struct session *s, int64_t last,
                                 struct context_manifest *m) {
    int64_t done;
    TRY(need_int(in, "done", m->done + 1, last, &done));
    TRY(context_manifest_add(m, s, done));
    struct context_segment *segment = &m->segment[m->n_segment - 1];
    TRY(parse_files(in, segment));
    TRY(parse_begins(in, s, segment));
    m->scored = m->scored && segment->scored;
    return parse_digests(in, segment);
}

static enum status parse_segments(struct json_object in, const struct session *s, int64_t done,
                                  struct context_manifest *m) {
    struct json_object segment = {.path = in.path};
    const json_t *list;
    TRY(need_list(in, "saves", -1, &list));
    int64_t n = (int64_t)json_array_size(list);
    if (n > CONTEXT_MOST_SEGMENTS)
        FAIL(ERR_INPUT, "%s: saves are %lld, more than %d", in.path, (long long)n,
             CONTEXT_MOST_SEGMENTS);
    for (int64_t i = 0; i < n; i++) {
        TRY(need_object(list, i, "save", &segment));
        TRY(parse_segment(segment, s, done, m));
    }
    if (m->done != done)
        FAIL(ERR_INPUT, "%s: saves are of %lld tokens, and done is %lld", in.path,
             (long long)m->done, (long long)done);
    if (!context_manifest_reaches(m, s, done))
        FAIL(ERR_INPUT, "%s: tokens that the next one sees are missing", in.path);
    return OK;
}

static enum status parse_version(struct json_object in) {
    int64_t version;
    TRY(need_same_text(in, "format", CONTEXT_FORMAT));
    TRY(need_int(in, "version", 0, INT64_MAX, &version));
    if (version != CONTEXT_VERSION)
        FAIL(ERR_INPUT, "%s: version is %lld: another version of Halka saved it, this one knows %d",
             in.path, (long long)version, CONTEXT_VERSION);
    return OK;
}

static enum status parse(struct json_object in, const struct session *s,
                         const struct context_source *source, struct context_manifest *out) {
    const struct kv_store *kv = &s->forward.kv;
    const char *name = NULL;
    int64_t done;
    TRY(parse_version(in));
    TRY(need_same_text(in, "identity", source->identity));
    TRY(need_same_text(in, "token_digest", source->token_digest));
    TRY(need_same_int(in, "n_token", source->n_token));
    TRY(need_int(in, "done", 1, source->n_token, &done));
    context_manifest_open(s, source->n_token, out);
    TRY(json_read_string(in, "name", &name));
    snprintf(out->name, sizeof out->name, "%s", name ? name : "");
    TRY(need_same_text(in, "dtype", dtype_info[kv->shape.dtype].name));
    TRY(need_same_text(in, "index_dtype", index_name(&kv->shape)));
    TRY(parse_layers(in, s));
    TRY(need_same_int(in, "page", CONTEXT_PAGE));
    TRY(need_same_int(in, "page_bytes", out->page_bytes));
    TRY(parse_segments(in, s, done, out));
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
