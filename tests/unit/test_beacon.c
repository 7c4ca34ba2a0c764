// What ranks say of themselves: records, whole at every instant, and what a reader makes of them,
// also of files that are damaged, foreign or hostile.
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "launcher/beacon_files.h"
#include "launcher/inspect_beacons.h"
#include "model/utf8.h"
#include "tests/common/make_files.h"

static char *folder, status_folder[64];

static void path_of(const char *name, char out[256]) {
    snprintf(out, 256, "%s/%s", status_folder, name);
}

static void write_bytes(const char *name, const void *data, size_t bytes) {
    free(folder_write(status_folder, name, data, bytes));
}

static void write_beacon(const struct beacon *beacon) {
    char name[32];
    snprintf(name, sizeof name, "rank-%d", beacon->rank);
    write_bytes(name, beacon, sizeof *beacon);
}

static int make_folder(void **state) {
    (void)state;
    folder = folder_make();
    snprintf(status_folder, sizeof status_folder, "%s/" BEACON_FOLDER, folder);
    return mkdir(status_folder, 0777);
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", status_folder);
    int failed = system(command);
    folder_remove(folder);
    return failed;
}

static struct beacon beacon_of(int rank, int ranks) {
    struct beacon beacon = {.version = BEACON_VERSION,
                            .bytes = sizeof beacon,
                            .rank = rank,
                            .ranks = ranks,
                            .pid = 1,
                            .job = 7,
                            .wall = 1.8e9,
                            .begun = 100,
                            .host = "node17",
                            .updated = 160,
                            .phase = NO_PHASE};
    memcpy(beacon.magic, BEACON_MAGIC, sizeof beacon.magic);
    return beacon;
}

static struct beacon reading_beacon(int rank, int ranks) {
    struct beacon beacon = beacon_of(rank, ranks);
    beacon_begin(&beacon, &(struct beacon_task){.activity = ACTIVITY_READING,
                                                .document = rank == 0 ? "report.txt" : NULL,
                                                .n_token = 20000});
    beacon_done(&beacon, 8192);
    beacon_layer(&beacon, 12, 30);
    beacon_step(&beacon, ranks / 2, ranks);
    beacon_phase(&beacon, PHASE_RING_WAIT, 0);
    beacon.updated = 160;
    return beacon;
}

// The caller's to free.
static char *said(enum beacons_when when) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    inspect_beacons(folder, when, out);
    fclose(out);
    return text;
}

static void expect_text(enum beacons_when when, const char *part) {
    char *text = said(when);
    if (!strstr(text, part)) fail_msg("no '%s' in:\n%s", part, text);
    free(text);
}

static void expect_nothing(enum beacons_when when) {
    char *text = said(when);
    assert_string_equal(text, "");
    free(text);
}

static int count_lines(const char *text) {
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

static void where_a_rank_was(void **state) {
    (void)state;
    expect_nothing(BEACONS_ASKED);
    for (int rank = 0; rank < 4; rank++) {
        struct beacon beacon = reading_beacon(rank, 4);
        write_beacon(&beacon);
    }
    expect_text(BEACONS_ASKED, "is running, or was cut off:\n");
    expect_text(BEACONS_BEFORE_START, "was cut off:\n");
    for (int rank = 0; rank < 4; rank += 3) { // only rank 0 told the name
        char line[256];
        snprintf(
            line, sizeof line,
            "\n  rank %d of 4 on node17 was reading, in ring_wait, layer 12 of 30, ring step 2 "
            "of 4, token 8192 of 20000 of report.txt, at 2027-01-15 ",
            rank);
        expect_text(BEACONS_ASKED, line);
    }
}

static void how_a_job_ended(void **state) {
    (void)state;
    struct beacon beacons[2] = {reading_beacon(0, 2), reading_beacon(1, 2)};
    for (int i = 0; i < 2; i++) {
        beacon_end(&beacons[i], BEACON_ENDED, 0);
        beacons[i].updated = 160;
        write_beacon(&beacons[i]);
    }
    expect_nothing(BEACONS_ASKED);
    expect_nothing(BEACONS_BEFORE_START);
    beacons[1].end = BEACON_RUNNING;
    write_beacon(&beacons[1]);
    expect_text(BEACONS_ASKED, "rank 0 of 2 on node17 ended, at");
    expect_text(BEACONS_ASKED, "rank 1 of 2 on node17 was reading");
    for (int i = 0; i < 2; i++) {
        beacons[i].end = BEACON_STOPPED;
        write_beacon(&beacons[i]);
    }
    expect_text(BEACONS_ASKED, "was stopped: submit it again");
    expect_nothing(BEACONS_BEFORE_START);
    beacons[0].end = BEACON_FAILED;
    beacons[0].code = 69;
    write_beacon(&beacons[0]);
    expect_text(BEACONS_BEFORE_START, "failed:\n");
    expect_text(BEACONS_BEFORE_START,
                "rank 0 of 2 on node17 failed with exit code 69, reading, in");
    unlink("rank-1");
}

static void ranks_alike_are_one_line(void **state) {
    (void)state;
    for (int rank = 0; rank < 40; rank++) {
        struct beacon beacon = reading_beacon(rank, 40);
        if (rank == 5) beacon.layer = 11;
        if (rank == 6) beacon.updated = 170;
        if (rank >= 20) strcpy(beacon.host, "node18");
        if (rank != 39) write_beacon(&beacon);
    }
    char *text = said(BEACONS_BEFORE_START);
    assert_int_equal(count_lines(text), 5);
    assert_non_null(strstr(text, "  ranks 0-4, 6-19 of 40 on node17 were reading"));
    assert_non_null(strstr(text, "  rank 5 of 40 on node17 was reading"));
    assert_non_null(strstr(text, "  ranks 20-38 of 40 on node18 were reading"));
    assert_non_null(strstr(text, "  1 rank left no word\n"));
    assert_non_null(strstr(text, "at 2027-01-15 08:01:00 to 2027-01-15 08:01:10\n"));
    free(text);
}

static void half_a_turn_is_none(void **state) {
    (void)state;
    struct beacon beacon = reading_beacon(0, 1), before = beacon;
    beacon_begin(&beacon, &(struct beacon_task){.activity = ACTIVITY_ANSWERING,
                                                .document = "other.txt",
                                                .n_token = 5,
                                                .question = 2,
                                                .n_question = 3});
    // Killed anywhere on the way: `current` is stored last.
    before.work[(before.current + 1) % 2] = beacon.work[beacon.current % 2];
    write_beacon(&before);
    expect_text(BEACONS_ASKED, "token 8192 of 20000 of report.txt");
    beacon_layer(&beacon, 0, 30);
    beacon_phase(&beacon, DEVICE_PHASE, 0);
    write_beacon(&beacon);
    expect_text(BEACONS_ASKED,
                "was answering, waiting for its device, question 2 of 3, token 0 of");
    beacon_phase(&beacon, NO_PHASE, 0);
    beacon_saving(&beacon, true);
    write_beacon(&beacon);
    expect_text(BEACONS_ASKED,
                "was answering, saving the context, question 2 of 3, token 0 of at most "
                "5 on other.txt, at");
}

static void other_files_are_left_out(void **state) {
    (void)state;
    char path[256];
    struct beacon beacon = reading_beacon(0, 2), old = reading_beacon(1, 8), other = beacon;
    write_beacon(&beacon);
    old.job = 6;
    write_beacon(&old);
    write_bytes("rank-2", &other, sizeof other - 1);
    write_bytes("rank-3", &other, sizeof other); // says that it is rank 0
    path_of("rank-4", path);
    assert_int_equal(mkfifo(path, 0666), 0);
    path_of("rank-5", path);
    assert_int_equal(mkdir(path, 0777), 0);
    path_of("rank-6", path);
    assert_int_equal(symlink("rank-0", path), 0);
    write_bytes("rank-07", &other, sizeof other); // no name of a rank, and the next
    write_bytes("rank-999999", &other, sizeof other);
    expect_text(BEACONS_ASKED, "status: left out 6 files, damaged or of another job\n");
    expect_text(BEACONS_ASKED, "the job of 2 ranks");
    expect_text(BEACONS_ASKED, "  1 rank left no word\n");
}

static void terminals_are_spared(void **state) {
    (void)state;
    struct beacon beacon = reading_beacon(0, 1);
    memset(beacon.host, 'h', sizeof beacon.host); // without an end
    strcpy(beacon.work[1].document, "a\x1b[2Jb\nc\xff.txt");
    write_beacon(&beacon);
    expect_text(BEACONS_ASKED, "hhh was reading");
    expect_text(BEACONS_ASKED, "of a?[2Jb?c?.txt, at");
    char name[400];
    for (int i = 0; i < 399; i++) name[i] = "\xc4\x9f"[i % 2]; // cut to whole characters
    name[399] = '\0';
    beacon_begin(&beacon, &(struct beacon_task){ACTIVITY_READING, name, 1, 0, 0});
    assert_true(utf8_is_valid(beacon.work[beacon.current % 2].document, 254));
    assert_int_equal(strlen(beacon.work[beacon.current % 2].document), 254);
}

// Any bytes: no crash, and nothing but printable lines.
static void damage_is_survived(void **state) {
    (void)state;
    uint64_t random = 1;
    for (int round = 0; round < 1000; round++) {
        struct beacon beacon = reading_beacon(0, 3);
        for (int i = 0; i < 1 + round % 7; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            size_t at = (size_t)(random >> 33) % sizeof beacon;
            ((unsigned char *)&beacon)[at] = (unsigned char)(random >> 20);
        }
        write_bytes("rank-0", &beacon, sizeof beacon);
        char *text = said(round % 2 ? BEACONS_ASKED : BEACONS_BEFORE_START);
        for (const char *c = text; *c; c++) assert_true(*c == '\n' || (unsigned char)*c >= 0x20);
        assert_true(utf8_is_valid(text, strlen(text)) && count_lines(text) <= 4);
        free(text);
    }
}

static void nobody_need_listen(void **state) {
    (void)state;
    beacon_begin(NULL, &(struct beacon_task){.activity = ACTIVITY_READING});
    beacon_done(NULL, 1);
    beacon_layer(NULL, 1, 2);
    beacon_step(NULL, 1, 2);
    beacon_phase(NULL, PHASE_IO, 1);
    beacon_saving(NULL, true);
    beacon_end(NULL, BEACON_ENDED, 0);
}

int main(void) {
    setenv("TZ", "UTC", 1);
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(where_a_rank_was),         TEST(how_a_job_ended),      TEST(ranks_alike_are_one_line),
        TEST(half_a_turn_is_none),      TEST(terminals_are_spared), TEST(damage_is_survived),
        TEST(other_files_are_left_out), TEST(nobody_need_listen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
