#define ELEMENTWISE_OPS elementwise_plain
#include "kernels/cpu/elementwise_body.h"
