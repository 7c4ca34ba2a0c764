// What the ranks of a job say of themselves in OUTPUT/status, for people. Files that are damaged,
// foreign or of another job are left out, and counted.
#ifndef HALKA_LAUNCHER_INSPECT_BEACONS_H
#define HALKA_LAUNCHER_INSPECT_BEACONS_H

#include <stdio.h>

enum beacons_when {
    BEACONS_BEFORE_START, // the job is over: nothing is said of one that ended or stopped
    BEACONS_ASKED         // it may be running
};
// One line a rank, or a group of ranks alike where there are many, unless all ended.
void inspect_beacons(const char *output, enum beacons_when when, FILE *out);

#endif
