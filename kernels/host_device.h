// Functions of C headers that kernels of both languages call.
#ifndef HALKA_KERNELS_HOST_DEVICE_H
#define HALKA_KERNELS_HOST_DEVICE_H

#ifdef __CUDACC__
#define HOST_DEVICE static __host__ __device__ inline
#else
#define HOST_DEVICE static inline
#endif

#endif
