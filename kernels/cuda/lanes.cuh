// Products of one operation that do not depend on each other, side by side: queues beside the
// compute stream, each with a cuBLAS handle. Few rows leave most of a device to the others.
#ifndef HALKA_KERNELS_CUDA_LANES_CUH
#define HALKA_KERNELS_CUDA_LANES_CUH

#include "kernels/cuda/cuda.cuh"

enum { N_LANE = 4 }; // the compute stream is the first

// What is queued from here on may go into lanes, which wait for what was queued before. Opens them
// at first.
enum status cuda_lanes_fork(struct backend *backend);
// What is queued next goes into this lane.
void cuda_lanes_enter(struct backend *backend, int lane);
// Back to the compute stream, which waits for the others. Also after a failure.
enum status cuda_lanes_join(struct backend *backend);

void cuda_lanes_close(struct backend *backend);
// Device memory, for `plan`.
int64_t cuda_lanes_bytes(void);

#endif
