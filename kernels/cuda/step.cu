// Steps of work as CUDA graphs: what is queued is captured, and replaces the parameters of a graph
// made for an earlier step of as many nodes. A step is captured while the one before it runs, so
// there are two sides, used in turn: the tables and graphs of one rest until its launch has ended.
// Capture is relaxed: memory may grow in it, and what a step may use is freed before a later one.
#include <stdlib.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/memory.cuh"

// Shapes differ by a few nodes in each of 32, 64, ... layers: a prime tells them apart.
enum { N_SIDE = 2, N_SHAPE = 61 };
static const int64_t kBlockBytes = 1 << 20;
// Of a graph on the device, which CUDA does not tell: an allowance for a hundred layers of 40
// nodes, 2 KiB each. bench_gpu_model prints the memory that is free with steps and without: no
// difference shows on an H100.
static const int64_t kGraphBytes = 8 << 20;

struct table_block {
    uint8_t *host, *device; // pinned, and its twin
    int64_t bytes, used;
};

struct side {
    std::vector<table_block> tables;
    cudaGraphExec_t graph[N_SHAPE]; // by the number of nodes, modulo N_SHAPE
    cudaEvent_t ended;              // of the last launch
};

struct cuda_steps {
    struct side side[N_SIDE];
    int current;             // side of the step being kept, or kept last
    bool keeping;            // between begin and end
    cudaGraphExec_t kept;    // to be launched; NULL: nothing
    std::vector<void *> old; // scratch that a step may use
};

// A step's tables fill less than a block. Graphs of several shapes are rare: a layer begins to
// select, attention mass is asked for.
int64_t cuda_steps_bytes(void) {
    return N_SIDE * (kBlockBytes + kGraphBytes);
}

bool cuda_steps_keeping(const struct cuda_state *state) {
    return state->steps && state->steps->keeping;
}

enum status cuda_steps_open(struct backend *backend) {
    struct cuda_steps *steps = new cuda_steps();
    cuda_state(backend)->steps = steps;
    for (struct side &side : steps->side)
        TRY_CUDA(cudaEventCreateWithFlags(&side.ended, cudaEventDisableTiming));
    return OK;
}

static void free_old(struct backend *backend, struct cuda_steps *steps) {
    for (void *scratch : steps->old) cuda_free(backend, scratch);
    steps->old.clear();
}

// NCCL's communicators do not close while a graph holds work of theirs.
static void steps_forget(struct backend *backend) {
    struct cuda_steps *steps = cuda_state(backend)->steps;
    steps->kept = NULL;
    for (struct side &side : steps->side) {
        for (cudaGraphExec_t &graph : side.graph) {
            if (graph) (void)cudaGraphExecDestroy(graph);
            graph = NULL;
        }
    }
}

void cuda_steps_close(struct backend *backend) {
    struct cuda_steps *steps = cuda_state(backend)->steps;
    if (!steps) return;
    free_old(backend, steps);
    steps_forget(backend);
    for (struct side &side : steps->side) {
        for (const table_block &block : side.tables) {
            (void)cudaFreeHost(block.host);
            cuda_free(backend, block.device);
        }
        if (side.ended) (void)cudaEventDestroy(side.ended);
    }
    delete steps;
    cuda_state(backend)->steps = NULL;
}

static enum status add_block(struct backend *backend, struct side *side, int64_t bytes) {
    table_block block = {};
    void *device = NULL;
    block.bytes = std::max(bytes, kBlockBytes);
    TRY_CUDA(cudaHostAlloc(&block.host, (size_t)block.bytes, cudaHostAllocDefault));
    enum status status = cuda_memory_take(backend, block.bytes, &device);
    block.device = (uint8_t *)device;
    if (status == OK)
        side->tables.push_back(block);
    else
        (void)cudaFreeHost(block.host);
    return status;
}

enum status cuda_steps_stage(struct backend *backend, int64_t bytes, uint8_t **host,
                             uint8_t **device) {
    struct cuda_steps *steps = cuda_state(backend)->steps;
    struct side *side = &steps->side[steps->current];
    size_t i = 0;
    while (i < side->tables.size() && side->tables[i].used + bytes > side->tables[i].bytes) i++;
    if (i == side->tables.size()) TRY(add_block(backend, side, bytes));
    table_block &block = side->tables[i];
    *host = block.host + block.used;
    *device = block.device + block.used;
    block.used += bytes;
    return OK;
}

bool cuda_steps_retire(struct backend *backend, void *scratch) {
    struct cuda_steps *steps = cuda_state(backend)->steps;
    if (!steps || (!steps->keeping && !steps->kept)) return false;
    steps->old.push_back(scratch);
    return true;
}

static enum status steps_begin(struct backend *backend) {
    struct cuda_state *state = cuda_state(backend);
    struct cuda_steps *steps = state->steps;
    steps->kept = NULL;
    steps->current = (steps->current + 1) % N_SIDE;
    struct side *side = &steps->side[steps->current];
    TRY(cuda_wait_event(backend, side->ended)); // at once when it was never launched
    for (table_block &block : side->tables) block.used = 0;
    free_old(backend, steps);
    TRY_CUDA(cudaStreamBeginCapture(state->compute, cudaStreamCaptureModeRelaxed));
    steps->keeping = true;
    return OK;
}

// A graph that does what was captured: an earlier one of the same shape with new parameters, which
// takes a fraction of the time of making one.
static enum status settle_graph(struct side *side, cudaGraph_t captured, cudaGraphExec_t *out) {
    size_t n_node = 0;
    TRY_CUDA(cudaGraphGetNodes(captured, NULL, &n_node));
    cudaGraphExec_t *graph = &side->graph[n_node % N_SHAPE];
    *out = NULL;
    if (*graph) {
        cudaGraphExecUpdateResultInfo info;
        if (cudaGraphExecUpdate(*graph, captured, &info) != cudaSuccess) {
            (void)cudaGetLastError();
            TRY_CUDA(cudaGraphExecDestroy(*graph));
            *graph = NULL;
        }
    }
    if (!*graph) TRY_CUDA(cudaGraphInstantiate(graph, captured, 0));
    *out = *graph;
    return OK;
}

static enum status steps_end(struct backend *backend, bool keep) {
    struct cuda_state *state = cuda_state(backend);
    struct cuda_steps *steps = state->steps;
    cudaGraph_t captured = NULL;
    steps->keeping = false;
    cudaError_t error = cudaStreamEndCapture(state->compute, &captured);
    enum status status = OK;
    if (keep && error != cudaSuccess)
        status = cuda_fail(error, __FILE__ ":" STATUS_TEXT(__LINE__), "cudaStreamEndCapture");
    else if (keep)
        status = settle_graph(&steps->side[steps->current], captured, &steps->kept);
    else
        (void)cudaGetLastError();
    if (captured) (void)cudaGraphDestroy(captured);
    return status;
}

static enum status steps_launch(struct backend *backend) {
    struct cuda_state *state = cuda_state(backend);
    struct cuda_steps *steps = state->steps;
    if (!steps->kept) FAIL(ERR_INTERNAL, "there is no step to launch");
    TRY_CUDA(cudaGraphLaunch(steps->kept, state->compute));
    TRY_CUDA(cudaEventRecord(steps->side[steps->current].ended, state->compute));
    steps->kept = NULL;
    return OK;
}

const struct step_ops cuda_steps_ops = {
    .begin = steps_begin,
    .end = steps_end,
    .launch = steps_launch,
    .forget = steps_forget,
};
