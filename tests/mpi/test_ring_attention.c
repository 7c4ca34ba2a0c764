// ranks: 1 2 3 4 8
// fake device: 3
// Ring attention in every form against one process that attends the whole sequence.

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/common/cases.h"
#include "tests/common/ring_problem.h"

static struct comm *const comm = &mpi_test_comm;
static struct backend backend;

static const struct shape grouped = {6, 2, 16, 24, DTYPE_F32, DTYPE_F32};
static const struct shape rounded = {4, 1, 32, 32, DTYPE_F32, DTYPE_BF16};
static const struct shape multi_head = {3, 3, 16, 16, DTYPE_F32, DTYPE_F32};

static struct attention_shape volume_shape(const struct shape *s) {
    return (struct attention_shape){s->n_head,
                                    s->n_kv_head,
                                    s->head_dim,
                                    s->value_dim,
                                    (int)dtype_bytes(s->query_dtype, 1),
                                    (int)dtype_bytes(s->kv_dtype, 1),
                                    false};
}

static const char *const pass_names[] = {
    [PASS_KV] = "pass-KV", [PASS_Q] = "pass-Q", [PASS_HALO] = "pass-halo"};

static int64_t expected_bytes(const struct problem *p, enum pass pass) {
    struct visible_range range = problem_range(p);
    struct attention_shape shape = volume_shape(&p->shape);
    if (pass == PASS_KV) return volume_pass_kv(&range, &shape, comm->rank);
    if (pass == PASS_Q) return volume_pass_q(&range, &shape, comm->rank);
    return volume_pass_halo(&range, &shape, comm->rank);
}

static int64_t expected_flop(const struct problem *p, enum pass pass) {
    struct visible_range range = problem_range(p);
    int64_t pairs = 0;
    for (int other = 0; other < comm->size; other++) {
        int query_rank = pass == PASS_Q ? other : comm->rank;
        int key_rank = pass == PASS_Q ? comm->rank : other;
        pairs += visible_pairs(&range, query_rank, key_rank);
    }
    return 2 * pairs * p->shape.n_head * (p->shape.head_dim + p->shape.value_dim);
}

static struct ring_attention_args ring_args(const struct problem *p, const void *query,
                                            const void *key, const void *value) {
    return (struct ring_attention_args){.sequence = &p->sequence,
                                        .query_begin = p->begin,
                                        .query_end = p->end,
                                        .n_head = p->shape.n_head,
                                        .n_kv_head = p->shape.n_kv_head,
                                        .head_dim = p->shape.head_dim,
                                        .value_dim = p->shape.value_dim,
                                        .scale = 0.25f,
                                        .visibility = p->visibility,
                                        .key_begin = p->key_begin,
                                        .query = query,
                                        .query_dtype = p->shape.query_dtype,
                                        .key = key,
                                        .value = value,
                                        .kv_dtype = p->shape.kv_dtype};
}

static int64_t most_halo(const struct problem *p, int64_t shard) {
    if (p->sequence.n_extent > 1) return shard;
    return volume_halo_rows(&p->visibility, p->sequence.extents[0].layout, shard);
}

static void open_ring(struct ring_attention *ring, const struct problem *p,
                      struct profile *profile) {
    struct attention_shape shape = volume_shape(&p->shape);
    int64_t n_shard = 0, n_query = 0, n = p->end - p->begin;
    for (int r = 0; r < comm->size; r++) {
        int64_t shard = sequence_count(&p->sequence, r, 0, p->end);
        int64_t query = sequence_count(&p->sequence, r, p->begin, p->end);
        n_shard = shard > n_shard ? shard : n_shard;
        n_query = query > n_query ? query : n_query;
    }
    const struct ring_extent extent = {.memory = backend.memory,
                                       .size = comm->size,
                                       .shard = n_shard,
                                       .query = n_query,
                                       .all_query = n,
                                       .decode_query = n,
                                       .halo = most_halo(p, n_shard)};
    int64_t bytes = ring_attention_workspace_bytes(&shape, &extent);
    assert_int_equal(ring_attention_open(ring, &backend, comm, profile, bytes), OK);
    char *nothing = test_alloc(bytes);
    poison(nothing, bytes);
    assert_int_equal(backend.ops->upload(&backend, ring->workspace, nothing, bytes), OK);
    free(nothing);
}

// What this rank holds of a problem, and what it makes of it.
struct own {
    int64_t n, *position; // of its queries
    struct test_buffer query, key, value, out, lse;
};

static struct own own_open(const struct problem *p) {
    const struct shape *s = &p->shape;
    struct own own = {.query = own_buffer(p, p->query, s->query_dtype, query_row(s), false),
                      .key = own_buffer(p, p->key, s->kv_dtype, key_row(s), true),
                      .value = own_buffer(p, p->value, s->kv_dtype, value_row(s), true)};
    own.position = own_positions(p, false, &own.n);
    own.out = test_buffer_open(&backend, own.n * s->n_head * s->value_dim * 4);
    own.lse = test_buffer_open(&backend, own.n * s->n_head * 4);
    return own;
}

static void own_close(struct own *own) {
    struct test_buffer *all[] = {&own->query, &own->key, &own->value, &own->out, &own->lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) test_buffer_close(all[i]);
    free(own->position);
}

static bool sees_a_key(const struct visibility *visibility, int64_t position) {
    int64_t sinks = visibility_sinks(visibility);
    return visibility_keys(visibility, position).length > 0 ||
           (sinks > 0 && visibility_end(visibility, position) > 0);
}

// Rows of queries that the call shows nothing are what they were.
static void check_kept(const struct own *own, const struct visibility *visibility,
                       const void *out_before, const void *lse_before) {
    for (int64_t i = 0; i < own->n; i++) {
        if (sees_a_key(visibility, own->position[i])) continue;
        int64_t out_row = own->out.bytes / own->n, lse_row = own->lse.bytes / own->n;
        assert_memory_equal((char *)own->out.host + i * out_row,
                            (const char *)out_before + i * out_row, (size_t)out_row);
        assert_memory_equal((char *)own->lse.host + i * lse_row,
                            (const char *)lse_before + i * lse_row, (size_t)lse_row);
    }
}

struct call {
    struct visibility visibility;
    enum pass pass;
};

static void run_call(struct ring_attention *ring, const struct problem *p, const struct call *call,
                     struct own *own, bool merge) {
    struct problem part = *p;
    part.visibility = call->visibility;
    struct ring_attention_args args =
        ring_args(&part, own->query.image, own->key.image, own->value.image);
    args.pass = call->pass;
    args.out = own->out.image;
    args.lse = own->lse.image;
    args.merge = merge;
    int64_t received = comm->bytes_received, flop = ring->profile->attention_flop;
    enum pass pass = comm->size > 1 ? call->pass : PASS_KV;
    assert_int_equal(ring_attention_run(ring, &args), OK);
    assert_int_equal(comm->bytes_received - received, expected_bytes(&part, call->pass));
    assert_int_equal(ring->profile->attention_flop - flop, expected_flop(&part, pass));
    void *out_before = test_alloc(own->out.bytes), *lse_before = test_alloc(own->lse.bytes);
    memcpy(out_before, own->out.host, (size_t)own->out.bytes);
    memcpy(lse_before, own->lse.host, (size_t)own->lse.bytes);
    test_buffer_pull(&own->out);
    test_buffer_pull(&own->lse);
    if (merge) check_kept(own, &call->visibility, out_before, lse_before);
    free(out_before);
    free(lse_before);
}

// Calls that together show each key once, merged.
static void check_calls(const struct problem *p, const struct call *calls, int n_call) {
    struct own own = own_open(p);
    struct profile profile = {0};
    struct ring_attention ring;
    open_ring(&ring, p, &profile);
    for (int i = 0; i < n_call; i++) run_call(&ring, p, &calls[i], &own, i > 0);
    ring_attention_close(&ring);
    int64_t n_head = p->shape.n_head, out_row = n_head * p->shape.value_dim;
    const char *name = pass_names[calls[n_call - 1].pass];
    for (int64_t i = 0; i < own.n; i++) {
        int64_t row = own.position[i] - p->begin;
        check_rows((float *)own.out.host + i * out_row, p->out + row * out_row, out_row, name);
        check_rows((float *)own.lse.host + i * n_head, p->lse + row * n_head, n_head, name);
    }
    own_close(&own);
}

static void check_pass(const struct problem *p, enum pass pass) {
    check_calls(p, &(struct call){p->visibility, pass}, 1);
}

// parts [n_part]: what together shows each key once.
static void check_decode(const struct problem *p, const struct visibility *parts, int n_part,
                         bool want_lse) {
    const struct shape *s = &p->shape;
    int64_t n = p->end - p->begin;
    struct span heads = partition_piece(s->n_head, comm->size, comm->rank);
    int64_t query_bytes = dtype_bytes(s->query_dtype, n * query_row(s));
    void *queries = test_alloc(query_bytes);
    memcpy(queries, (char *)p->query + dtype_bytes(s->query_dtype, p->begin * query_row(s)),
           (size_t)query_bytes);
    struct test_buffer query = test_buffer_take(&backend, queries, query_bytes);
    struct test_buffer key = own_buffer(p, p->key, s->kv_dtype, key_row(s), true);
    struct test_buffer value = own_buffer(p, p->value, s->kv_dtype, value_row(s), true);
    int64_t width = heads.length * s->value_dim, flop = 0;
    struct test_buffer out = test_buffer_open(&backend, n * width * 4);
    struct test_buffer lse = test_buffer_open(&backend, n * s->n_head * 4);
    struct profile profile = {0};
    struct ring_attention ring;
    open_ring(&ring, p, &profile);
    struct ring_attention_args args[2];
    for (int i = 0; i < n_part; i++) {
        struct problem part = *p;
        part.visibility = parts[i];
        args[i] = ring_args(p, query.image, key.image, value.image);
        args[i].visibility = parts[i];
        flop += expected_flop(&part, PASS_Q);
    }
    args->out = out.image;
    args->lse = want_lse ? lse.image : NULL;
    int64_t received = comm->bytes_received;
    assert_int_equal(decode_attention_run(&ring, args, n_part), OK);
    struct attention_shape shape = volume_shape(s);
    if (!want_lse)
        assert_int_equal(comm->bytes_received - received,
                         volume_decode(&shape, comm->size, comm->rank, n));
    assert_int_equal(profile.attention_flop, flop);
    test_buffer_pull(&out);
    test_buffer_pull(&lse);
    ring_attention_close(&ring);
    if (want_lse) check_rows(lse.host, p->lse, n * s->n_head, "decode lse");
    for (int64_t i = 0; i < n; i++)
        check_rows((float *)out.host + i * width,
                   p->out + (i * s->n_head + heads.start) * s->value_dim, width, "decode");
    struct test_buffer *all[] = {&query, &key, &value, &out, &lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) test_buffer_close(all[i]);
}

// Every form, with all keys held and with those alone that are seen.
static void check_passes(const struct shape *shape, struct sequence sequence, int64_t begin,
                         struct visibility visibility) {
    struct problem p;
    problem_open(&p, &backend, shape, sequence, begin, visibility);
    for (enum pass pass = PASS_KV; pass <= PASS_HALO; pass++) check_pass(&p, pass);
    p.key_begin = visibility_begin(&visibility, begin);
    for (enum pass pass = PASS_KV; p.key_begin > 0 && pass <= PASS_HALO; pass++)
        check_pass(&p, pass);
    problem_close(&p);
}

static struct sequence one_extent(enum layout layout, int64_t length) {
    struct sequence sequence;
    sequence_open(&sequence, comm->size);
    assert_true(sequence_append(&sequence, layout, length));
    return sequence;
}

// A document in chunks, appended tokens, a truncation inside a zigzag extent, more tokens.
static struct sequence mixture(void) {
    struct sequence s = one_extent(LAYOUT_ZIGZAG, 41);
    assert_true(sequence_append(&s, LAYOUT_ZIGZAG, 37));
    sequence_truncate(&s, 66);
    for (int i = 0; i < 5; i++) assert_true(sequence_append(&s, LAYOUT_ROUND_ROBIN, 1));
    sequence_truncate(&s, 69);
    assert_true(sequence_append(&s, LAYOUT_CONTIGUOUS, 11));
    assert_true(sequence_append(&s, LAYOUT_ROUND_ROBIN, 7));
    return s;
}

static void every_length_and_layout(void **state) {
    (void)state;
    const int64_t n = comm->size, lengths[] = {1, 2, n - 1, n, n + 1, 2 * n + 1, 97, 211};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        if (lengths[i] < 1) continue;
        for (int causal = 0; causal < 2; causal++) {
            struct visibility visibility = causal ? VISIBILITY_CAUSAL : VISIBILITY_FULL;
            check_passes(&grouped, one_extent(LAYOUT_ZIGZAG, lengths[i]), 0, visibility);
            check_passes(&grouped, one_extent(LAYOUT_CONTIGUOUS, lengths[i]), 0, visibility);
        }
    }
}

static const int64_t packed[] = {1, 9, 10, 47, 90};
static const struct visibility visibilities[] = {
    {.back = 0},
    {.back = 10},
    {.back = 58},
    {.back = 5, .ahead = 5},
    {.back = 45, .ahead = 45},
    {.back = 10, .sinks = 3},
    {.back = 45, .sinks = 20},
    {.back = VISIBLE_ALL, .ahead = -13},
    {.back = 12, .ahead = VISIBLE_ALL},
    {.back = VISIBLE_ALL, .n_document = 5, .document_end = packed},
    {.back = VISIBLE_ALL, .ahead = VISIBLE_ALL, .n_document = 5, .document_end = packed},
    {.back = 7, .n_document = 5, .document_end = packed},
    {.back = 4, .ahead = 4, .n_document = 5, .document_end = packed},
};
enum { N_VISIBILITY = sizeof visibilities / sizeof *visibilities };

static void windows_sinks_and_packed_documents(void **state) {
    (void)state;
    const int64_t lengths[] = {1, 11, 12, 97};
    const enum layout layouts[] = {LAYOUT_ZIGZAG, LAYOUT_CONTIGUOUS, LAYOUT_ROUND_ROBIN};
    for (int v = 0; v < N_VISIBILITY; v++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            for (int l = 0; l < 3; l++)
                check_passes(&grouped, one_extent(layouts[l], lengths[i]), 0, visibilities[v]);
}

static void windows_over_chunks(void **state) {
    (void)state;
    for (int v = 0; v < N_VISIBILITY; v++) {
        check_passes(&grouped, mixture(), 35, visibilities[v]);
        check_passes(&rounded, mixture(), 80, visibilities[v]);
    }
}

static void other_heads_and_bf16_keys(void **state) {
    (void)state;
    check_passes(&rounded, one_extent(LAYOUT_ZIGZAG, 97), 0, VISIBILITY_CAUSAL);
    check_passes(&multi_head, one_extent(LAYOUT_ZIGZAG, 61), 0, VISIBILITY_CAUSAL);
    check_passes(&rounded, one_extent(LAYOUT_ROUND_ROBIN, 53), 0, VISIBILITY_FULL);
}

static void chunks_appends_and_truncations(void **state) {
    (void)state;
    for (int64_t begin = 0; begin <= 86; begin += begin < 70 ? 35 : 8)
        check_passes(&grouped, mixture(), begin, VISIBILITY_CAUSAL);
    check_passes(&rounded, mixture(), 80, VISIBILITY_CAUSAL);
    check_passes(&grouped, mixture(), 80, VISIBILITY_FULL);
}

// More rows than one slice: each slice merges into its own rows.
static void long_enough_for_several_slices(void **state) {
    (void)state;
    check_passes(&multi_head, one_extent(LAYOUT_ZIGZAG, 600 * (comm->size > 2 ? 2 : 1) + 7), 0,
                 VISIBILITY_CAUSAL);
}

static void transfers_may_be_cut(void **state) {
    (void)state;
    int64_t limit = comm->message_bytes;
    comm->message_bytes = 100;
    check_passes(&grouped, one_extent(LAYOUT_ZIGZAG, 97), 0, VISIBILITY_CAUSAL);
    comm->message_bytes = limit;
}

// What is seen, and two parts that together show each key of it once.
struct split {
    struct visibility whole, parts[2];
};
static const struct split splits[] = {
    {{.back = VISIBLE_ALL}, {{.back = 11}, {.back = VISIBLE_ALL, .ahead = -12}}},
    {{.back = VISIBLE_ALL}, {{.block = 24}, {.block = 24, .back = VISIBLE_ALL, .ahead = -1}}},
    {{.back = 45}, {{.back = 10}, {.back = 45, .ahead = -11}}},
    {{.back = 19, .sinks = 3}, {{.back = 19}, {.back = 19, .ahead = -20, .sinks = 3}}},
    {{.back = 45, .sinks = 20}, {{.back = 10}, {.back = 45, .ahead = -11, .sinks = 20}}},
    {{.back = 45, .ahead = 45}, {{.back = -3, .ahead = 45}, {.back = 45, .ahead = 2}}},
    {{.back = VISIBLE_ALL, .n_document = 5, .document_end = packed},
     {{.back = 6, .n_document = 5, .document_end = packed},
      {.back = VISIBLE_ALL, .ahead = -7, .n_document = 5, .document_end = packed}}},
};
enum { N_SPLIT = sizeof splits / sizeof *splits };

static void check_split(const struct problem *p, const struct split *split) {
    for (enum pass first = PASS_KV; first <= PASS_HALO; first++)
        for (enum pass second = PASS_KV; second <= PASS_HALO; second++)
            for (int swap = 0; swap < 2; swap++) {
                const struct call calls[] = {{split->parts[swap], first},
                                             {split->parts[1 - swap], second}};
                check_calls(p, calls, 2);
            }
}

static void calls_merge_into_one_attention(void **state) {
    (void)state;
    for (int i = 0; i < N_SPLIT; i++) {
        const struct visibility whole = splits[i].whole;
        struct problem p;
        problem_open(&p, &backend, &grouped, one_extent(LAYOUT_ZIGZAG, 97), 0, whole);
        check_split(&p, &splits[i]);
        problem_close(&p);
        problem_open(&p, &backend, &grouped, one_extent(LAYOUT_CONTIGUOUS, 3), 0, whole);
        check_split(&p, &splits[i]); // ranks without tokens
        problem_close(&p);
        problem_open(&p, &backend, &rounded, mixture(), 60, whole);
        check_split(&p, &splits[i]);
        if (!whole.sinks) p.key_begin = visibility_begin(&whole, p.begin);
        if (p.key_begin > 0) check_split(&p, &splits[i]);
        problem_close(&p);
    }
}

static void decode_in_parts_is_one_attention(void **state) {
    (void)state;
    for (int i = 0; i < N_SPLIT; i++)
        for (int64_t n_query = 1; n_query <= 3; n_query += 2) {
            struct problem p;
            struct sequence s = mixture();
            problem_open(&p, &backend, &grouped, s, s.length - n_query, splits[i].whole);
            for (int want_lse = 0; want_lse < 2; want_lse++) {
                const struct visibility swapped[] = {splits[i].parts[1], splits[i].parts[0]};
                check_decode(&p, splits[i].parts, 2, want_lse);
                check_decode(&p, swapped, 2, want_lse);
            }
            problem_close(&p);
        }
}

static void decode_equals_the_whole(void **state) {
    (void)state;
    const struct shape *shapes[] = {&grouped, &rounded, &multi_head};
    for (size_t i = 0; i < 3; i++)
        for (int64_t n_query = 1; n_query <= 3; n_query += 2)
            for (int want_lse = 0; want_lse < 2; want_lse++) {
                struct problem p;
                struct sequence s = i ? one_extent(LAYOUT_ZIGZAG, 40) : mixture();
                assert_true(sequence_append(&s, LAYOUT_ROUND_ROBIN, 3));
                problem_open(&p, &backend, shapes[i], s, s.length - n_query, VISIBILITY_CAUSAL);
                check_decode(&p, &p.visibility, 1, want_lse);
                problem_close(&p);
            }
    for (int v = 0; v < N_VISIBILITY; v++)
        for (int64_t n_query = 1; n_query <= 3; n_query += 2) {
            struct problem p;
            struct sequence s = mixture();
            problem_open(&p, &backend, &grouped, s, s.length - n_query, visibilities[v]);
            check_decode(&p, &p.visibility, 1, v % 2);
            p.key_begin = visibility_begin(&visibilities[v], p.begin);
            check_decode(&p, &p.visibility, 1, v % 2);
            problem_close(&p);
        }
    struct problem p; // most ranks hold nothing
    problem_open(&p, &backend, &grouped, one_extent(LAYOUT_ROUND_ROBIN, 1), 0, VISIBILITY_CAUSAL);
    check_decode(&p, &p.visibility, 1, true);
    problem_close(&p);
}

static void small_workspace_is_refused(void **state) {
    (void)state;
    if (comm->size == 1) return;
    struct problem p;
    problem_open(&p, &backend, &grouped, one_extent(LAYOUT_ZIGZAG, 40), 0, VISIBILITY_CAUSAL);
    struct profile profile = {0};
    struct ring_attention ring;
    assert_int_equal(ring_attention_open(&ring, &backend, comm, &profile, 64), OK);
    struct ring_attention_args args = ring_args(&p, p.query, p.key, p.value);
    for (args.pass = PASS_KV; args.pass <= PASS_HALO; args.pass++)
        assert_int_equal(ring_attention_run(&ring, &args), ERR_INTERNAL);
    assert_int_equal(decode_attention_run(&ring, &args, 1), ERR_INTERNAL);
    ring_attention_close(&ring);
    ring_attention_close(&ring);
    problem_close(&p);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_length_and_layout),
        cmocka_unit_test(windows_sinks_and_packed_documents),
        cmocka_unit_test(windows_over_chunks),
        cmocka_unit_test(other_heads_and_bf16_keys),
        cmocka_unit_test(chunks_appends_and_truncations),
        cmocka_unit_test(long_enough_for_several_slices),
        cmocka_unit_test(transfers_may_be_cut),
        cmocka_unit_test(calls_merge_into_one_attention),
        cmocka_unit_test(decode_equals_the_whole),
        cmocka_unit_test(decode_in_parts_is_one_attention),
        cmocka_unit_test(small_workspace_is_refused),
    };
    int n_failed = 0;
    static const enum backend_kind kinds[] = {BACKEND_REFERENCE, BACKEND_CPU};
    for (int i = 0; i < 2; i++) {
        if (mpi_test_repeats(kinds[i])) continue;
        mpi_test_open_backend(kinds[i], &backend);
        n_failed += cmocka_run_group_tests_name(backend.ops->name, tests, NULL, NULL);
        mpi_test_close_backend(&backend);
    }
    return mpi_test_stop(n_failed);
}
