#include "launcher/beacon_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "launcher/inspect_beacons.h"
#include "model/durable.h"

int beacon_file_rank(const char *name) {
    static const char prefix[] = "rank-";
    const char *digits = name + sizeof prefix - 1;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return -1;
    size_t n = strspn(digits, "0123456789");
    if (n == 0 || n > 5 || digits[n] != '\0' || (digits[0] == '0' && n > 1)) return -1;
    int rank = atoi(digits);
    return rank < BEACON_MAX_RANKS ? rank : -1;
}

static int is_beacon(const struct dirent *entry) {
    return beacon_file_rank(entry->d_name) >= 0;
}

int beacon_file_list(const char *folder, struct dirent ***names) {
    *names = NULL;
    return scandir(folder, names, is_beacon, alphasort);
}

// Names go, files that another job's ranks may still have mapped stay theirs.
static enum status clear_folder(const char *path) {
    struct dirent **names;
    enum status status = durable_folder(path, "status folder", "--output");
    int folder = status == OK ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    int n = beacon_file_list(path, &names);
    if (status == OK && (folder < 0 || n < 0))
        status = status_fail(ERR_CREATE, __FILE__, "cannot read %s: %s", path, strerror(errno));
    for (int i = 0; i < n; i++) {
        if (status == OK && unlinkat(folder, names[i]->d_name, 0) != 0)
            status = status_fail(ERR_CREATE, __FILE__, "cannot remove %s/%s: %s", path,
                                 names[i]->d_name, strerror(errno));
        free(names[i]);
    }
    free(names);
    if (folder >= 0) close(folder);
    return status;
}

static double wall_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static struct beacon first_light(const struct job *job, int64_t id) {
    struct beacon beacon = {.version = BEACON_VERSION,
                            .bytes = sizeof beacon,
                            .rank = job->cluster->rank,
                            .ranks = job->cluster->size,
                            .pid = getpid(),
                            .job = id,
                            .wall = wall_seconds(),
                            .begun = cluster_seconds(),
                            .phase = NO_PHASE};
    memcpy(beacon.magic, BEACON_MAGIC, sizeof beacon.magic);
    memcpy(beacon.host, job->cluster->host, sizeof beacon.host);
    beacon.updated = beacon.begun;
    return beacon;
}

// All bytes are written before they are mapped: a store to a page without room on the disk would be
// the end of the process.
static enum status light(const char *path, const struct beacon *beacon, struct beacon **out) {
    enum status status = OK;
    int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (file < 0)
        FAIL(ERR_CREATE, "cannot create %s: %s (ranks on all hosts write to --output)", path,
             strerror(errno));
    TRY_OR(done, durable_write_at(file, path, beacon, sizeof *beacon, 0));
    TRY_OR(done, durable_sync(file, path));
    void *mapped = mmap(NULL, sizeof *beacon, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) FAIL_OR(done, ERR_IO, "cannot map %s: %s", path, strerror(errno));
    *out = mapped;
done:
    if (status != OK) unlink(path);
    close(file);
    return status;
}

static enum status open_own(struct job *job, int64_t id) {
    char *path;
    const struct beacon beacon = first_light(job, id);
    if (asprintf(&path, "%s/" BEACON_FOLDER "/rank-%d", job->options->output, beacon.rank) < 0)
        FAIL(ERR_MEMORY, "no memory for a path");
    enum status status = light(path, &beacon, &job->profile.beacon);
    free(path);
    return status;
}

// Rank 0: this job's number.
static enum status open_folder(const struct job *job, int64_t *id) {
    char *path;
    if (asprintf(&path, "%s/" BEACON_FOLDER, job->options->output) < 0)
        FAIL(ERR_MEMORY, "no memory for a path");
    inspect_beacons(job->options->output, BEACONS_BEFORE_START, stderr);
    enum status status = clear_folder(path);
    free(path);
    if (status == OK) *id = (int64_t)(1e6 * wall_seconds());
    return status;
}

// One rank tells of it for all.
static void warn(void) {
    fprintf(stderr, "halka: warning: the ranks' status is not kept: %s\n", status_message());
}

enum status beacon_files_open(struct job *job) {
    struct comm *host = comm_host(&job->comm);
    int64_t id = 0, failing = host->size;
    if (host->rank == 0 && open_folder(job, &id) != OK) warn();
    TRY(host->ops->broadcast(host, &id, sizeof id, 0));
    if (id == 0) return OK;
    if (host->size <= BEACON_MAX_RANKS && open_own(job, id) != OK) failing = host->rank;
    TRY(host->ops->all_reduce(host, &failing, 1, REDUCE_MIN_I64));
    if (failing == host->rank) warn();
    return OK;
}

void beacon_files_close(struct job *job, enum status status) {
    struct beacon *beacon = job->profile.beacon;
    enum beacon_end end = status == OK        ? BEACON_ENDED
                          : status == STOPPED ? BEACON_STOPPED
                                              : BEACON_FAILED;
    if (!beacon) return;
    beacon_end(beacon, end, (int)status);
    job->profile.beacon = NULL;
    munmap(beacon, sizeof *beacon);
}
