#include "tests/common/shared_folder.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/common/mpi_test.h"

static struct comm *host(void) {
    return &mpi_test_host_comm;
}

bool shared_folder_open(char out[SHARED_FOLDER_BYTES]) {
    const char *parent = getenv("TMPDIR");
    snprintf(out, SHARED_FOLDER_BYTES, "%s/halka-test-XXXXXX", parent ? parent : "/tmp");
    bool made = host()->rank != 0 || mkdtemp(out);
    return host()->ops->broadcast(host(), out, SHARED_FOLDER_BYTES, 0) == OK && made;
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *walk) {
    (void)info, (void)kind, (void)walk;
    return remove(path);
}

void shared_folder_close(const char *folder) {
    if (host()->ops->barrier(host()) == OK && host()->rank == 0)
        nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}
