// ranks: 1 2 3 4 8
// fake device: 3
// Sharded weights: sessions give the numbers that whole weights give, to the order of the sums over
// columns; what travels and what is held are the bytes that the plan counts.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/session.h"
#include "model/weight_gather.h"
#include "tests/common/make_files.h"
#include "tests/common/mpi_test.h"
#include "tests/common/parity.h"

enum { N_TOKEN = 41, N_PROMPT = 30, GGML_F32 = 0, GGML_Q8_0 = 8 };
// fp32 sums of other order over a few layers give 1e-6 to 2e-5; float32 and float64 references of
// these networks differ by 5e-5, and a wrong shard by a thousand times that.
static const double tolerance = 5e-5;

static struct comm *const comm = &mpi_test_comm;

static void demand(enum status status) {
    if (status != OK) fail_msg("%s", status_message());
}

struct answer {
    float logprob[N_TOKEN];
    float *logits;
    int64_t gathered_bytes;
};

// A prompt in two chunks, then token by token.
static struct answer read_tokens(const struct checkpoint *checkpoint, bool sharded, bool score) {
    struct backend backend;
    struct profile profile = {0};
    struct session *session = NULL;
    struct session_facts facts;
    struct session_options options = {.precision = PRECISION_FP32,
                                      .max_tokens = N_TOKEN,
                                      .chunk = N_PROMPT / 2,
                                      .sharded = sharded};
    struct answer answer = {.logits = calloc((size_t)checkpoint->spec.n_vocab, sizeof(float))};
    int32_t token[N_TOKEN];
    for (int i = 0; i < N_TOKEN; i++)
        token[i] = (int32_t)((i * 131 + 17) % checkpoint->spec.n_vocab);
    mpi_test_open_backend(BACKEND_CPU, &backend);
    demand(session_open(checkpoint, &backend, comm, &profile, &options, &session));
    demand(session_append(session, &(struct append_args){.token = token,
                                                         .n = N_PROMPT,
                                                         .logprob = score ? answer.logprob : NULL,
                                                         .last_logits = answer.logits}));
    session_get_facts(session, &facts);
    answer.gathered_bytes = facts.gathered_bytes;
    for (int i = N_PROMPT; i < N_TOKEN; i++)
        demand(session_append(session, &(struct append_args){.token = token + i,
                                                             .n = 1,
                                                             .logprob = answer.logprob + i,
                                                             .last_logits = answer.logits}));
    session_get_facts(session, &facts);
    assert_int_equal(facts.gathered_bytes, answer.gathered_bytes); // decode gathers nothing
    session_close(&session);
    mpi_test_close_backend(&backend);
    return answer;
}

static void check_model(const char *path) {
    struct checkpoint checkpoint;
    demand(checkpoint_open(path, &checkpoint));
    struct answer whole = read_tokens(&checkpoint, false, true);
    struct answer sharded = read_tokens(&checkpoint, true, true);
    struct answer unscored = read_tokens(&checkpoint, true, false);
    for (int i = 1; i < N_TOKEN; i++)
        if (!(fabs(whole.logprob[i] - sharded.logprob[i]) <= tolerance))
            fail_msg("%s, token %d: %.7f, not %.7f", path, i, sharded.logprob[i], whole.logprob[i]);
    for (int64_t i = 0; i < checkpoint.spec.n_vocab; i++) {
        if (!(fabs(whole.logits[i] - sharded.logits[i]) <= tolerance))
            fail_msg("%s, logit %d: %.7f, not %.7f", path, (int)i, sharded.logits[i],
                     whole.logits[i]);
        assert_true(unscored.logits[i] == sharded.logits[i]);
    }
    // Two chunks, the output matrix only to score; other ranks may receive a little more.
    struct gather_extent extent;
    int64_t head_bytes = 0, most = 0;
    demand(weight_gather_measure(&checkpoint, comm->size, &extent));
    struct layer_shards head;
    demand(shards_describe(&checkpoint, checkpoint.spec.n_layer, &head));
    for (int r = 0; r < comm->size; r++)
        if (r != comm->rank) head_bytes += shard_bytes(&head.parts[0], comm->size, r);
    most = sharded.gathered_bytes;
    demand(mpi_test_host_comm.ops->all_reduce(&mpi_test_host_comm, &most, 1, REDUCE_MAX_I64));
    assert_int_equal(whole.gathered_bytes, 0);
    assert_int_equal(sharded.gathered_bytes - unscored.gathered_bytes,
                     comm->size > 1 ? 2 * head_bytes : 0);
    assert_int_equal(most, comm->size > 1 ? 2 * extent.chunk_bytes : 0);
    free(whole.logits);
    free(sharded.logits);
    free(unscored.logits);
    checkpoint_close(&checkpoint);
}

static void test_fixtures(void **state) {
    (void)state;
    check_model("tests/fixtures/tiny-llama");
    check_model("tests/fixtures/tiny-llama3"); // 6 heads, a head of its own
    check_model("tests/fixtures/tiny-qwen2");  // biases
    check_model("tests/fixtures/tiny-qwen3");
    check_model("tests/fixtures/deepseek_v3_tiny");
    check_model("tests/fixtures/deepseek_v32_fp8_tiny"); // block scales
    check_model("tests/fixtures/glm_moe_dsa_tiny");
}

static void test_parity(void **state) {
    (void)state;
    const char *const names[] = {"tiny-llama-old", "tiny-mistral", "deepseek_v32_tiny"};
    for (int i = 0; i < 3; i++)
        parity_check(&(struct parity_run){
            .name = names[i], .kind = BACKEND_REFERENCE, .chunk = 29, .sharded = true});
}

// Blocks of 32 elements: two heads of 16 share each block of the output matrix, of three.
struct matrix {
    const char *name;
    uint64_t n_row, n_col; // n_col 0: a vector of ones
};
static const struct matrix quantised[] = {
    {"token_embd.weight", 96, 64},    {"output.weight", 96, 64},
    {"output_norm.weight", 64, 0},    {"blk.0.attn_norm.weight", 64, 0},
    {"blk.0.attn_q.weight", 96, 64},  {"blk.0.attn_k.weight", 32, 64},
    {"blk.0.attn_v.weight", 32, 64},  {"blk.0.attn_output.weight", 64, 96},
    {"blk.0.ffn_norm.weight", 64, 0}, {"blk.0.ffn_gate.weight", 96, 64},
    {"blk.0.ffn_up.weight", 96, 64},  {"blk.0.ffn_down.weight", 64, 96},
};

static void add_quantised(struct gguf_maker *maker, const struct matrix *m, unsigned *seed) {
    struct buffer data = {0};
    for (uint64_t block = 0; block < m->n_row * m->n_col / 32; block++) {
        const uint8_t scale[2] = {0x00, 0x18}; // fp16 2^-9
        buffer_add(&data, scale, sizeof scale);
        for (int i = 0; i < 32; i++) {
            *seed = *seed * 1664525u + 1013904223u;
            buffer_add(&data, &(uint8_t){(uint8_t)(*seed >> 24)}, 1);
        }
    }
    gguf_maker_tensor(maker, m->name, m->n_col, m->n_row, GGML_Q8_0, data.data, data.n);
    buffer_close(&data);
}

static void test_quantised(void **state) {
    (void)state;
    static const struct {
        const char *key;
        uint32_t value;
    } keys[] = {{"llama.block_count", 1},           {"llama.embedding_length", 64},
                {"llama.attention.head_count", 6},  {"llama.attention.head_count_kv", 2},
                {"llama.attention.key_length", 16}, {"llama.attention.value_length", 16},
                {"llama.rope.dimension_count", 16}, {"llama.feed_forward_length", 96},
                {"llama.context_length", 64},       {"tokenizer.ggml.eos_token_id", 3}};
    struct gguf_maker maker = {0};
    float ones[96];
    unsigned seed = 7;
    for (int i = 0; i < 96; i++) ones[i] = 1;
    gguf_maker_string(&maker, "general.architecture", "llama");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        gguf_maker_u32(&maker, keys[i].key, keys[i].value);
    gguf_maker_f32(&maker, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    for (size_t i = 0; i < sizeof quantised / sizeof *quantised; i++) {
        const struct matrix *m = &quantised[i];
        if (m->n_col)
            add_quantised(&maker, m, &seed);
        else
            gguf_maker_tensor(&maker, m->name, m->n_row, 0, GGML_F32, ones, 4 * m->n_row);
    }
    struct buffer file = gguf_maker_finish(&maker);
    char *folder = folder_make(), *path = folder_write(folder, "m.gguf", file.data, file.n);
    check_model(path);
    buffer_close(&file);
    free(path);
    folder_remove(folder);
}

// Every row, column and block belongs to one rank's part of the sums, and to what it holds.
static void test_pieces(void **state) {
    (void)state;
    struct shard_part part = {.columns = true, .whole = {.dtype = DTYPE_Q8_0, .n_row = 5}};
    for (int n_head = 1; n_head <= 12; n_head++) {
        for (int size = 1; size <= 16; size++) {
            int64_t end = 0;
            part.whole.n_col = 64 * n_head;
            part.n_unit = n_head * 4;
            part.unit = 16;
            for (int r = 0; r < size; r++) {
                struct span held = shard_span(&part, size, r);
                struct span summed = shard_summed_columns(&part, size, r);
                assert_int_equal(summed.start, end);
                assert_true(summed.start >= held.start || summed.length == 0);
                end += summed.length;
                assert_true(end <= held.start + held.length || summed.length == 0);
                assert_int_equal(shard_bytes(&part, size, r), 5 * held.length / 32 * 34);
            }
            assert_int_equal(end, part.whole.n_col);
        }
    }
}

// What sharding saves and what it costs is all that differs.
static void test_plan(void **state) {
    (void)state;
    struct checkpoint checkpoint;
    struct backend backend;
    struct memory_plan plans[2];
    struct session_options options = {.max_tokens = N_TOKEN};
    demand(checkpoint_open("tests/fixtures/tiny-llama3", &checkpoint));
    demand(backend_open(&(struct backend_options){.kind = BACKEND_CPU, .n_thread = 1}, &backend));
    demand(session_plan(&checkpoint, &backend, 4, 1, &options, &plans[0]));
    options.sharded = true;
    demand(session_plan(&checkpoint, &backend, 4, 1, &options, &plans[1]));
    assert_int_equal(plans[0].gathered, 0);
    assert_true(plans[1].gathered > 0 && plans[1].gather_traffic > 0);
    assert_true(plans[1].weights < plans[0].weights);
    assert_int_equal(plans[1].total - plans[0].total,
                     plans[1].gathered + plans[1].weights - plans[0].weights);
    backend_close(&backend);
    checkpoint_close(&checkpoint);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),   cmocka_unit_test(test_plan),
        cmocka_unit_test(test_fixtures), cmocka_unit_test(test_quantised),
        cmocka_unit_test(test_parity),
    };
    return mpi_test_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
