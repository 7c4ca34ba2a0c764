#include "dist/patience.h"

#include "dist/cluster.h"

struct patience patience_begin(void) {
    double now = cluster_seconds();
    return (struct patience){now, now};
}

double patience_look(struct patience *patience, bool moved, double deadline_s) {
    double now = cluster_seconds();
    if (moved || now - patience->looked > deadline_s / 2) patience->begun = now;
    patience->looked = now;
    return now - patience->begun;
}
