// Memory of this process and of its node, as the kernel and its control groups count it.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dist/cluster.h"

// Value of the first line "<name> <number>" of a file, 0 when there is none.
static int64_t read_field(const char *path, const char *name) {
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    char line[256];
    int64_t value = 0;
    size_t n = strlen(name);
    while (fgets(line, sizeof line, file))
        if (strncmp(line, name, n) == 0 && sscanf(line + n, "%" SCNd64, &value) == 1) break;
    fclose(file);
    return value;
}

int64_t cluster_pss_bytes(void) {
    return 1024 * read_field("/proc/self/smaps_rollup", "Pss:");
}

int64_t cluster_peak_resident_bytes(void) {
    return 1024 * read_field("/proc/self/status", "VmHWM:");
}

int64_t cluster_resident_bytes(const void *start, int64_t bytes) {
    enum { N_PAGE = 4096 }; // looked up at once
    unsigned char in_memory[N_PAGE];
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), end = (uintptr_t)start + (uintptr_t)bytes;
    int64_t resident = 0;
    for (uintptr_t at = (uintptr_t)start / page * page; at < end; at += N_PAGE * page) {
        uintptr_t n = (end - at + page - 1) / page;
        if (n > N_PAGE) n = N_PAGE;
        if (mincore((void *)at, n * page, in_memory) != 0) return 0;
        for (uintptr_t i = 0; i < n; i++) resident += (in_memory[i] & 1) * (int64_t)page;
    }
    return resident < bytes ? resident : bytes;
}

// What a memory control group still allows; file pages that it can drop do not count as used.
static int64_t group_available(const char *folder, const char *limit, const char *usage,
                               int64_t otherwise) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", folder, limit);
    int64_t limit_bytes = read_field(path, ""); // "max" reads as 0
    if (limit_bytes <= 0) return otherwise;
    snprintf(path, sizeof path, "%s/%s", folder, usage);
    int64_t used = read_field(path, "");
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    used -= read_field(path, "active_file ") + read_field(path, "inactive_file ");
    int64_t left = limit_bytes - (used > 0 ? used : 0);
    if (left < 0) left = 0;
    return left < otherwise ? left : otherwise;
}

// The group named in /proc/self/cgroup and all those above it: the tightest one decides.
static int64_t groups_available(const char *line, int64_t available) {
    const char *controllers = strchr(line, ':');
    const char *name = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!name) return available;
    bool unified = name == controllers + 1; // version 2: "0::/path"
    if (!unified && strncmp(controllers, ":memory:", 8) != 0) return available;
    const char *root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    char folder[1024];
    int n = snprintf(folder, sizeof folder, "%s%s", root, name + 1);
    if (n < 0 || n >= (int)sizeof folder) return available;
    folder[strcspn(folder, "\n")] = 0;
    while (strlen(folder) >= strlen(root)) {
        available =
            group_available(folder, unified ? "memory.max" : "memory.limit_in_bytes",
                            unified ? "memory.current" : "memory.usage_in_bytes", available);
        *strrchr(folder, '/') = 0;
    }
    return available;
}

int64_t cluster_available_bytes(void) {
    int64_t available = 1024 * read_field("/proc/meminfo", "MemAvailable:");
    FILE *file = fopen("/proc/self/cgroup", "r");
    if (!file) return available;
    char line[1024];
    while (fgets(line, sizeof line, file)) available = groups_available(line, available);
    fclose(file);
    return available;
}
