// Descriptions of tensors for the copy engine, made by the driver.
#include "kernels/cuda/wgmma.cuh"

enum status tensor_map_keys(const struct key_rows *rows, int key_tile, CUtensorMap *out) {
    enum { PANEL = 64 }; // columns: 128 bytes
    decltype(&cuTensorMapEncodeTiled) encode = NULL;
    cudaDriverEntryPointQueryResult found;
    TRY_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000,
                                              cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess)
        FAIL(ERR_CONFIG, "the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12.0");
    cuuint64_t size[3] = {(cuuint64_t)rows->n_col, (cuuint64_t)rows->n_kv_head,
                          (cuuint64_t)rows->n_key};
    cuuint64_t stride_bytes[2] = {(cuuint64_t)rows->n_col * 2, (cuuint64_t)rows->stride * 2};
    cuuint32_t box[3] = {PANEL, 1, (cuuint32_t)key_tile}, step[3] = {1, 1, 1};
    CUresult result =
        encode(out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void *)rows->base, size, stride_bytes,
               box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        FAIL(ERR_INTERNAL, "cuTensorMapEncodeTiled of %d keys, %d heads of %d: error %d",
             rows->n_key, rows->n_kv_head, rows->n_col, (int)result);
    return OK;
}
