// A wait against a deadline. While this process does not look, because it was stopped or its node
// was, the others could not reach it: the wait begins anew.
#ifndef HALKA_DIST_PATIENCE_H
#define HALKA_DIST_PATIENCE_H

#include <stdbool.h>

struct patience {
    double begun, looked; // cluster_seconds
};
struct patience patience_begin(void);
// Seconds that the wait lasts, since something `moved` if it did.
double patience_look(struct patience *patience, bool moved, double deadline_s);

#endif
