#include "launcher/beacon_files.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "launcher/inspect_beacons.h"
#include "model/durable.h"

enum { PERIOD_MS = 50, FAREWELL_MS = 2000 };

// A rank's beacon and the thread that writes it. (In a mapped file the stores
// themselves would do, but the rank would end with it where somebody truncates the file.)
struct beacon_light {
    struct beacon beacon;
    int file;
    sem_t ends;
    pthread_t thread;
};

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

// Names go, files that another job's ranks may still have open stay theirs.
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

static struct timespec from_now(int64_t ms) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    int64_t ns = at.tv_nsec + ms * 1000000;
    return (struct timespec){at.tv_sec + ns / 1000000000, ns % 1000000000};
}

// While it is copied the rank may turn once: what it turned from stays whole.
static struct beacon look_at(const struct beacon *beacon) {
    struct beacon copy;
    uint32_t current = beacon->current;
    atomic_thread_fence(memory_order_acquire);
    memcpy(&copy, beacon, sizeof copy);
    copy.current = current;
    return copy;
}

static void *burn(void *user) {
    struct beacon_light *light = user;
    for (bool ends = false; !ends;) {
        const struct timespec next = from_now(PERIOD_MS);
        ends = sem_clockwait(&light->ends, CLOCK_MONOTONIC, &next) == 0;
        struct beacon now = look_at(&light->beacon);
        ssize_t n = pwrite(light->file, &now, sizeof now, 0);
        (void)n; // where there is no room, the next time may be luckier
    }
    return NULL;
}

static enum status light_up(const char *path, struct beacon_light *light) {
    light->file = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (light->file < 0)
        FAIL(ERR_CREATE, "cannot create %s: %s (ranks on all hosts write to --output)", path,
             strerror(errno));
    TRY(durable_write_at(light->file, path, &light->beacon, sizeof light->beacon, 0));
    TRY(durable_sync(light->file, path));
    sem_init(&light->ends, 0, 0);
    if (pthread_create(&light->thread, NULL, burn, light) != 0)
        FAIL(ERR_INTERNAL, "no thread for %s", path);
    return OK;
}

static enum status open_own(struct job *job, int64_t id) {
    char *path;
    if (asprintf(&path, "%s/" BEACON_FOLDER "/rank-%d", job->options->output, job->cluster->rank) <
        0)
        FAIL(ERR_MEMORY, "no memory for a path");
    struct beacon_light *light = malloc(sizeof *light);
    enum status status = OK;
    if (!light) FAIL_OR(done, ERR_MEMORY, "no memory for %s", path);
    *light = (struct beacon_light){.beacon = first_light(job, id), .file = -1};
    status = light_up(path, light);
    if (status == OK) {
        job->light = light;
        job->profile.beacon = &light->beacon;
        goto done;
    }
    if (light->file >= 0) {
        unlink(path);
        close(light->file);
    }
    free(light);
done:
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

// A file system that does not answer keeps nobody from ending.
void beacon_files_close(struct job *job, enum status status) {
    struct beacon_light *light = job->light;
    enum beacon_end end = status == OK        ? BEACON_ENDED
                          : status == STOPPED ? BEACON_STOPPED
                                              : BEACON_FAILED;
    if (!light) return;
    beacon_end(&light->beacon, end, (int)status);
    job->light = NULL;
    job->profile.beacon = NULL;
    const struct timespec until = from_now(FAREWELL_MS);
    sem_post(&light->ends);
    if (pthread_clockjoin_np(light->thread, NULL, CLOCK_MONOTONIC, &until) != 0) {
        pthread_detach(light->thread);
        return;
    }
    sem_destroy(&light->ends);
    close(light->file);
    free(light);
}
