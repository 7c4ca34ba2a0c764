#define QUANTIZE_BLOCKS quantize_blocks_avx512
#include "kernels/cpu/quantize_body.h"
