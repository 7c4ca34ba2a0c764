#define QUANTIZE_BLOCKS quantize_blocks_plain
#include "kernels/cpu/quantize_body.h"
