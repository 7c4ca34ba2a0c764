#define QUANTIZE_BLOCKS quantize_blocks_avx2
#include "kernels/cpu/quantize_body.h"
