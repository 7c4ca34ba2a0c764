// How much each key was read. A block owns a tile of keys and goes through the rows of all heads,
// so that a key's sum has one order; a warp takes kWarpRows rows at a time, a lane one key.
#include "kernels/cuda/attention_plain.cuh"

namespace {

using namespace attention_plain;

__device__ bool sees_key(const struct attention_work &w, int64_t row, int key) {
    struct attention_interval v = attention_sees(w, row);
    return key < v.end && (key < w.n_sink || key >= v.begin);
}

__global__ void __launch_bounds__(kThreads)
    column_mass(struct attention_work w, float factor, float *mass) {
    DYNAMIC_SHARED(shared);
    float *query = (float *)shared, *key = query + kRowTile * pitch(w.head_dim);
    float *part = key + kKeyTile * pitch(w.head_dim); // [kWarps, kKeyTile]
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int first = blockIdx.x * kKeyTile, n_key = min(w.n_key - first, kKeyTile);
    float sum = 0, score[kWarpRows];
    for (int kv_head = 0; kv_head < w.n_kv_head; kv_head++) {
        __syncthreads();
        load_tile(w, w.key, w.key_stride, w.head_dim, kv_head, first, n_key, key);
        for (int64_t tile = 0; tile < w.n_row; tile += kRowTile) {
            int64_t last = min(tile + kRowTile, w.n_row) - 1;
            int begin = attention_sees(w, tile).begin, end = attention_sees(w, last).end;
            if (begin >= first + n_key && first >= w.n_sink) break; // and so do later rows
            if (end <= first) continue;
            __syncthreads();
            load_queries(w, kv_head, tile, query);
            __syncthreads();
            score_tile(w, query + warp * kWarpRows * pitch(w.head_dim), key, score);
            for (int r = 0; r < kWarpRows; r++) {
                int64_t row = tile + warp * kWarpRows + r;
                if (row > last || !sees_key(w, row, first + lane)) continue;
                float lse = w.lse[row / w.group * w.n_head + kv_head * w.group + row % w.group];
                if (lse != -INFINITY) sum += exp2f(score[r] - lse * 1.44269504f);
            }
        }
    }
    part[warp * kKeyTile + lane] = sum;
    __syncthreads();
    if (warp > 0 || lane >= n_key) return;
    sum = 0;
    for (int i = 0; i < kWarps; i++) sum += part[i * kKeyTile + lane];
    mass[first + lane] += factor * sum;
}

} // namespace

enum status cuda_attention_mass(struct backend *backend, const struct attention_mass_args *args) {
    struct attention_work work;
    TRY(attention_describe(backend, &args->attention, &work));
    if (args->attention.n_query == 0) return OK;
    int n_float = (kRowTile + kKeyTile) * (work.head_dim + kPad) + kWarps * kKeyTile;
    int bytes = n_float * (int)sizeof(float);
    TRY(reserve_shared(backend, column_mass, bytes));
    LAUNCH(backend, column_mass, (unsigned)divide_up(work.n_key, kKeyTile), kThreads, bytes, work,
           args->factor, args->mass);
    return OK;
}
