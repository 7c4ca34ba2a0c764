// Start and end of the job, and each rank's share of its node's cores.
#include "dist/cluster.h"

#include <hwloc.h>
#include <mpi.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "partition/partition.h"

enum { MASK_WORDS = 64 }; // 4096 processing units
struct mask {
    unsigned long words[MASK_WORDS];
};

double cluster_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool core_usable(hwloc_obj_t core, hwloc_const_bitmap_t set) {
    return hwloc_bitmap_intersects(core->cpuset, set);
}

static int count_cores(hwloc_topology_t topology, hwloc_const_bitmap_t set) {
    int n = 0;
    for (hwloc_obj_t core = NULL;
         (core = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_CORE, core));)
        n += core_usable(core, set);
    return n ? n : hwloc_bitmap_weight(set); // some virtual machines show no cores
}

// This rank's piece of the usable cores, cut over n_sharer ranks that have the same mask.
static hwloc_bitmap_t cut_share(const struct cluster *cluster, hwloc_const_bitmap_t own,
                                int n_sharer, int index) {
    struct span piece = partition_piece(cluster->n_core, n_sharer, index);
    hwloc_bitmap_t share = hwloc_bitmap_alloc();
    int64_t core_index = 0;
    for (hwloc_obj_t core = NULL;
         share && (core = hwloc_get_next_obj_by_type(cluster->topology, HWLOC_OBJ_CORE, core));) {
        if (!core_usable(core, own)) continue;
        if (core_index >= piece.start && core_index < piece.start + piece.length)
            hwloc_bitmap_or(share, share, core->cpuset);
        core_index++;
    }
    if (!share) return NULL;
    hwloc_bitmap_and(share, share, own);
    if (!hwloc_bitmap_iszero(share)) return share;
    hwloc_bitmap_free(share);
    return NULL;
}

// masks: [local_size] affinity masks of this node's ranks.
static enum status share_cores(struct cluster *cluster, const struct mask *masks) {
    enum status status = OK;
    hwloc_bitmap_t own = hwloc_bitmap_alloc(), other = hwloc_bitmap_alloc();
    hwloc_bitmap_t all = hwloc_bitmap_alloc();
    if (!own || !other || !all) FAIL_OR(done, ERR_MEMORY, "no memory for affinity masks");
    hwloc_bitmap_from_ulongs(own, MASK_WORDS, masks[cluster->local_rank].words);
    int n_same = 0, n_overlap = 0, index = 0;
    for (int r = 0; r < cluster->local_size; r++) {
        hwloc_bitmap_from_ulongs(other, MASK_WORDS, masks[r].words);
        hwloc_bitmap_or(all, all, other);
        n_overlap += hwloc_bitmap_intersects(own, other);
        if (!hwloc_bitmap_isequal(own, other)) continue;
        index += r < cluster->local_rank;
        n_same++;
    }
    cluster->n_core = count_cores(cluster->topology, own);
    cluster->node_core =
        count_cores(cluster->topology, hwloc_topology_get_topology_cpuset(cluster->topology));
    cluster->cores_idle = count_cores(cluster->topology, all) < cluster->node_core;
    if (n_overlap > 1 && n_same == n_overlap && n_same <= cluster->n_core) {
        cluster->share = cut_share(cluster, own, n_same, index);
        if (cluster->share) cluster->n_core = count_cores(cluster->topology, cluster->share);
    } else if (n_overlap > 1) {
        cluster->n_core = cluster->n_core > n_overlap ? cluster->n_core / n_overlap : 1;
    }
done:
    hwloc_bitmap_free(all);
    hwloc_bitmap_free(other);
    hwloc_bitmap_free(own);
    return status;
}

// MPI calls block here, and only here: the job is starting.
static enum status find_cores(struct cluster *cluster, MPI_Comm local) {
    enum status status = OK;
    hwloc_bitmap_t bound = hwloc_bitmap_alloc();
    struct mask *masks = calloc((size_t)cluster->local_size, sizeof *masks);
    struct mask own = {{0}};
    if (!masks || !bound) FAIL_OR(done, ERR_MEMORY, "no memory for affinity masks");
    if (hwloc_topology_init(&cluster->topology) != 0)
        FAIL_OR(done, ERR_INTERNAL, "hwloc cannot start");
    hwloc_topology_set_all_types_filter(cluster->topology, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_topology_set_type_filter(cluster->topology, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL);
    if (hwloc_topology_load(cluster->topology) != 0)
        FAIL_OR(done, ERR_INTERNAL, "hwloc cannot read this node's topology");
    if (hwloc_get_cpubind(cluster->topology, bound, HWLOC_CPUBIND_PROCESS) != 0)
        hwloc_bitmap_copy(bound, hwloc_topology_get_topology_cpuset(cluster->topology));
    hwloc_bitmap_and(bound, bound, hwloc_topology_get_topology_cpuset(cluster->topology));
    for (unsigned i = 0; i < MASK_WORDS; i++) own.words[i] = hwloc_bitmap_to_ith_ulong(bound, i);
    MPI_Allgather(&own, sizeof own, MPI_BYTE, masks, sizeof own, MPI_BYTE, local);
    status = share_cores(cluster, masks);
done:
    free(masks);
    hwloc_bitmap_free(bound);
    return status;
}

enum status cluster_start(int *argc, char ***argv, int n_thread, struct cluster *out) {
    *out = (struct cluster){.size = 1, .local_size = 1};
    if (gethostname(out->host, sizeof out->host - 1) != 0) strcpy(out->host, "unknown host");
    int provided;
    if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
        FAIL(ERR_RANK, "MPI did not start on %s: check the launcher and its MPI version",
             out->host);
    out->mpi = true;
    if (provided < MPI_THREAD_FUNNELED)
        FAIL(ERR_RANK, "this MPI library does not support programs with threads "
                       "(MPI_THREAD_FUNNELED): use another build of it");
    MPI_Comm_rank(MPI_COMM_WORLD, &out->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &out->size);
    MPI_Comm local;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
    MPI_Comm_rank(local, &out->local_rank);
    MPI_Comm_size(local, &out->local_size);
    enum status status = find_cores(out, local);
    MPI_Comm_free(&local);
    out->n_thread = n_thread > 0 ? n_thread : out->n_core;
    return status;
}

void cluster_pin_threads(const struct cluster *cluster) {
    omp_set_num_threads(cluster->n_thread); // also of loops that name no count
    if (!cluster->share) return;
#pragma omp parallel num_threads(cluster->n_thread)
    hwloc_set_cpubind(cluster->topology, cluster->share, HWLOC_CPUBIND_THREAD);
}

static void release(struct cluster *cluster) {
    hwloc_bitmap_free(cluster->share);
    if (cluster->topology) hwloc_topology_destroy(cluster->topology);
}

void cluster_stop(struct cluster *cluster) {
    release(cluster);
    if (cluster->mpi) MPI_Finalize();
    *cluster = (struct cluster){0};
}

// A rank that is lost stops its neighbours first and the others within milliseconds: those nearer
// to it name it, if they still may.
static const struct timespec kLastWords = {.tv_nsec = 300000000};

void cluster_abort(const struct cluster *cluster, int code) {
    fflush(NULL);
    if (cluster->mpi && cluster->size > 2 && code == ERR_RANK) nanosleep(&kLastWords, NULL);
    if (cluster->mpi && cluster->size > 1) MPI_Abort(MPI_COMM_WORLD, code);
    if (cluster->mpi) MPI_Finalize(); // alone: no other rank to end, and no complaint of mpirun
    _Exit(code);
}
