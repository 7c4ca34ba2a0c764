#define ELEMENTWISE_OPS elementwise_avx2
#include "kernels/cpu/elementwise_body.h"
