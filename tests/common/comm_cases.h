// What every transport must do, on host or device memory: exchanges of all lengths, whole and cut
// into tiny messages, exact reductions, and peers that stay away.
#ifndef HALKA_TESTS_COMMON_COMM_CASES_H
#define HALKA_TESTS_COMMON_COMM_CASES_H

#include "dist/comm.h"

struct comm_subject {
    struct comm *comm;
    struct backend *device; // NULL: the transport's memory is the host's
    // Opens another such transport, which is left in an unfinished state.
    enum status (*open)(struct comm *out, double deadline_s);
    bool cuts_messages; // by message_bytes
    bool host_sees;     // a missed deadline is seen by shift_wait, not by the device's next sync
};

// Runs the cases; returns how many failed.
int comm_cases_run(const struct comm_subject *subject);

#endif
