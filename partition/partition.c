#include "partition/partition.h"

struct span partition_piece(int64_t length, int n_piece, int index) {
    int64_t quotient = length / n_piece, longer = length % n_piece;
    int64_t before = index < longer ? index : longer;
    return (struct span){index * quotient + before, quotient + (index < longer)};
}
