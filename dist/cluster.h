// The job around the ranks: start and end of MPI, hosts, node-local ranks, cores and threads, and
// memory as the kernel counts it. mpi.h and hwloc.h stay behind this header.
#ifndef HALKA_DIST_CLUSTER_H
#define HALKA_DIST_CLUSTER_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/status.h"

struct cluster {
    int rank, size;
    int local_rank, local_size; // among the ranks of this host
    char host[256];
    int n_core;      // cores this rank may use
    int n_thread;    // of this rank: its share of those cores
    bool cores_idle; // the node has cores that no rank of this job may use
    int node_core;   // cores of the node that this job's ranks may not all use
    bool mpi;        // MPI was started here and is ended by cluster_stop
    struct hwloc_topology *topology;
    struct hwloc_bitmap_s *share; // this rank's part of cores it shares; NULL: nothing to pin
};

// Starts MPI; a process that no launcher started becomes a job of one rank.
// n_thread 0: this rank's share of the cores that the affinity mask allows, at least 1.
enum status cluster_start(int *argc, char ***argv, int n_thread, struct cluster *out);
// Keeps this rank's OpenMP threads on its share of the cores, when ranks with one affinity mask can
// be given disjoint shares; masks that the launcher made disjoint stay as they are.
void cluster_pin_threads(const struct cluster *cluster);
void cluster_stop(struct cluster *cluster); // MPI_Finalize; accepts a zeroed struct
// Ends every rank of the job with this exit code.
_Noreturn void cluster_abort(const struct cluster *cluster, int code);

// Proportional set size of this process now (shared pages divided by their sharers), and peak
// resident size. 0 when the kernel does not tell.
int64_t cluster_pss_bytes(void);
int64_t cluster_peak_resident_bytes(void);
// Of a range of this process's memory, what is in physical memory: pages that were touched.
int64_t cluster_resident_bytes(const void *start, int64_t bytes);
// Memory that the node, or this job's cgroup, still allows.
int64_t cluster_available_bytes(void);
double cluster_seconds(void); // monotonic clock

#endif
