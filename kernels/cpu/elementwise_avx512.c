#define ELEMENTWISE_OPS elementwise_avx512
#include "kernels/cpu/elementwise_body.h"
