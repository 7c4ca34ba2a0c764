#include "launcher/inspect_beacons.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "dist/profile.h"
#include "launcher/beacon_files.h"
#include "model/utf8.h"

// Above this many ranks, those alike are one line; before a start there are no more lines than the
// second.
enum { FEW_RANKS = 8, FEW_LINES = 16 };

struct line {
    char text[1024];
    size_t n;
};

// Of one rank, as it may be printed.
struct sighting {
    struct beacon beacon;
    struct beacon_work work;
    double at; // seconds since 1970
};

struct sightings {
    struct sighting *list; // [n] ascending ranks of one job
    int n, capacity;
    int n_left_out; // damaged, foreign or of another job
};

// Ends the text within its room; what no terminal should see becomes '?'.
static void clean(char *text, size_t room) {
    text[room - 1] = '\0';
    size_t n = strlen(text);
    bool valid = utf8_is_valid(text, n);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7f || (c >= 0x80 && !valid)) text[i] = '?';
    }
}

static bool is_time(double seconds) {
    return seconds >= 0 && seconds < 253402214400.0; // in the year 9999, in any time zone
}

static bool within(int64_t x, int64_t low, int64_t high) {
    return x >= low && x <= high;
}

static bool is_sound(const struct beacon *b, const struct beacon_work *w, int rank) {
    enum { MANY = 1 << 24 };
    return memcmp(b->magic, BEACON_MAGIC, sizeof b->magic) == 0 && b->version == BEACON_VERSION &&
           b->bytes == sizeof *b && b->rank == rank &&
           within(b->ranks, rank + 1, BEACON_MAX_RANKS) && b->job > 0 && b->pid > 0 &&
           within(b->phase, DEVICE_PHASE, N_PHASE - 1) && within(b->n_layer, 0, MANY) &&
           within(b->layer, 0, b->n_layer) && within(b->n_step, 0, BEACON_MAX_RANKS) &&
           within(b->step, 0, b->n_step) && within(b->saving, 0, 1) &&
           within(b->end, 0, N_BEACON_END - 1) && within(b->code, 0, 255) &&
           within(w->activity, 0, N_ACTIVITY - 1) && within(w->n_question, 0, MANY) &&
           within(w->question, 0, w->n_question) && within(w->n_token, 0, INT64_MAX) &&
           within(w->done, 0, INT64_MAX);
}

// The file as it is now; a rank may be writing to it.
static bool read_file(int folder, const char *name, struct beacon *out) {
    struct stat info;
    int file = openat(folder, name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
    if (file < 0) return false;
    bool whole = fstat(file, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == sizeof *out &&
                 pread(file, out, sizeof *out, 0) == sizeof *out;
    close(file);
    return whole;
}

static bool read_sighting(int folder, const char *name, struct sighting *out) {
    struct beacon *b = &out->beacon, after;
    // While the rank turns once, what it turned from stays whole.
    for (int i = 0; i < 3; i++) {
        if (!read_file(folder, name, b) || !read_file(folder, name, &after)) return false;
        if (after.current == b->current) break;
    }
    out->work = b->work[b->current % 2];
    out->at = b->wall + (b->updated - b->begun);
    clean(b->host, sizeof b->host);
    clean(out->work.document, sizeof out->work.document);
    return is_sound(b, &out->work, beacon_file_rank(name)) && is_time(b->wall) && is_time(out->at);
}

static int compare_ranks(const void *a, const void *b) {
    const struct sighting *x = a, *y = b;
    return (x->beacon.rank > y->beacon.rank) - (x->beacon.rank < y->beacon.rank);
}

static bool add_sighting(struct sightings *all, const struct sighting *one) {
    if (all->n == all->capacity) {
        int capacity = 2 * all->capacity + 16;
        void *list = realloc(all->list, (size_t)capacity * sizeof *all->list);
        if (!list) return false;
        all->list = list;
        all->capacity = capacity;
    }
    all->list[all->n++] = *one;
    return true;
}

// Of the latest job that left any.
static void keep_latest(struct sightings *all) {
    int64_t latest = 0;
    int n = 0;
    for (int i = 0; i < all->n; i++)
        if (all->list[i].beacon.job > latest) latest = all->list[i].beacon.job;
    for (int i = 0; i < all->n; i++)
        if (all->list[i].beacon.job == latest) all->list[n++] = all->list[i];
    all->n_left_out += all->n - n;
    all->n = n;
    if (n > 0) qsort(all->list, (size_t)n, sizeof *all->list, compare_ranks);
    for (int i = 1; i < n; i++) // another number of ranks in one job is a lie
        if (all->list[i].beacon.ranks != all->list[0].beacon.ranks) all->n = 0;
    all->n_left_out += n - all->n;
}

// Only rank 0 knows names of documents, but all ranks turn to the same works in the same order.
static void share_names(struct sightings *all) {
    const struct beacon *root = &all->list[0].beacon;
    for (int i = 1; i < all->n && root->rank == 0; i++) {
        struct sighting *s = &all->list[i];
        if (s->work.document[0] || s->work.n_token == 0 || root->current - s->beacon.current > 1)
            continue;
        memcpy(s->work.document, root->work[s->beacon.current % 2].document,
               sizeof s->work.document);
        clean(s->work.document, sizeof s->work.document);
    }
}

static void read_folder(const char *path, struct sightings *out) {
    struct sighting one;
    struct dirent **names;
    int n = beacon_file_list(path, &names);
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < n; i++) {
        if (!read_sighting(folder, names[i]->d_name, &one) || !add_sighting(out, &one))
            out->n_left_out++;
        free(names[i]);
    }
    free(names);
    if (folder >= 0) close(folder);
    keep_latest(out);
    if (out->n > 0) share_names(out);
}

__attribute__((format(printf, 2, 3))) static void add(struct line *line, const char *format, ...) {
    va_list arguments;
    size_t room = sizeof line->text - line->n;
    va_start(arguments, format);
    int n = vsnprintf(line->text + line->n, room, format, arguments);
    va_end(arguments);
    if (n > 0) line->n += (size_t)n < room ? (size_t)n : room - 1;
}

static void add_time(struct line *line, double seconds) {
    char text[32] = "";
    struct tm local;
    time_t whole = (time_t)seconds;
    if (localtime_r(&whole, &local)) strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
    add(line, "%s", text);
}

// What the rank does, or did: what ranks alike have in common.
static void add_work(struct line *line, const struct sighting *s) {
    const struct beacon *b = &s->beacon;
    const struct beacon_work *w = &s->work;
    bool answers = w->activity == ACTIVITY_ANSWERING;
    add(line, "%s", activity_name[w->activity]);
    if (b->saving) add(line, ", saving the context");
    if (b->phase == DEVICE_PHASE) add(line, ", waiting for its device");
    if (b->phase >= 0) add(line, ", in %s", phase_name[b->phase]);
    if (b->layer) add(line, ", layer %d of %d", b->layer, b->n_layer);
    if (b->layer && b->step) add(line, ", ring step %d of %d", b->step, b->n_step);
    if (w->question) add(line, ", question %d of %d", w->question, w->n_question);
    if (w->n_token)
        add(line, ", token %lld of %s%lld", (long long)w->done, answers ? "at most " : "",
            (long long)w->n_token);
    if (w->document[0]) add(line, " %s %s", answers ? "on" : "of", w->document);
}

static void describe(const struct sighting *s, bool several, struct line *out) {
    static const char *const were[][2] = {[BEACON_RUNNING] = {"was ", "were "},
                                          [BEACON_ENDED] = {"ended", "ended"},
                                          [BEACON_STOPPED] = {"stopped", "stopped"}};
    const struct beacon *b = &s->beacon;
    add(out, " on %s ", b->host[0] ? b->host : "an unknown host");
    if (b->end == BEACON_FAILED)
        add(out, "failed with exit code %d, ", b->code);
    else
        add(out, "%s", were[b->end][several]);
    if (b->end == BEACON_RUNNING || b->end == BEACON_FAILED) add_work(out, s);
}

// Ranks that are one line: of one host, doing the same.
struct group {
    const struct sighting *one; // of the ranks
    struct line what, ranks;    // by which it knows its ranks; "0-3, 8"
    int first, last, n;         // ranks of the run that is not in the text yet, and all
    double from, to;
};

static void end_run(struct group *group) {
    add(&group->ranks, group->ranks.n ? ", %d" : "%d", group->first);
    if (group->last > group->first) add(&group->ranks, "-%d", group->last);
}

static void join(struct group *group, const struct sighting *s) {
    int rank = s->beacon.rank;
    if (rank != group->last + 1) {
        end_run(group);
        group->first = rank;
    }
    group->last = rank;
    group->n++;
    if (s->at < group->from) group->from = s->at;
    if (s->at > group->to) group->to = s->at;
}

// Groups by their first rank; every rank by itself where they are few. Ranks alike are near.
static int group_alike(const struct sightings *all, struct group *out) {
    enum { NEAR = 64 };
    int n = 0;
    bool apart = all->n <= FEW_RANKS;
    for (int i = 0; i < all->n; i++) {
        const struct sighting *s = &all->list[i];
        struct line what = {.n = 0};
        describe(s, true, &what);
        int g = apart ? -1 : n - 1;
        while (g >= 0 && strcmp(out[g].what.text, what.text) != 0) g = g > n - NEAR ? g - 1 : -1;
        int rank = s->beacon.rank;
        if (g >= 0) {
            join(&out[g], s);
            continue;
        }
        out[n] = (struct group){.one = s,
                                .what = what,
                                .first = rank,
                                .last = rank,
                                .n = 1,
                                .from = s->at,
                                .to = s->at};
        n++;
    }
    return n;
}

static void print_group(struct group *group, int n_rank, FILE *out) {
    struct line what = {.n = 0}, times = {.n = 0};
    end_run(group);
    describe(group->one, group->n > 1, &what);
    add_time(&times, group->from);
    if ((time_t)group->from != (time_t)group->to) {
        add(&times, " to ");
        add_time(&times, group->to);
    }
    fprintf(out, "  rank%s %s of %d%s, at %s\n", group->n > 1 ? "s" : "", group->ranks.text, n_rank,
            what.text, times.text);
}

static void print_groups(const struct sightings *all, enum beacons_when when, FILE *out) {
    struct group *groups = malloc((size_t)all->n * sizeof *groups);
    if (!groups) return;
    int n = group_alike(all, groups), n_shown = n;
    if (when == BEACONS_BEFORE_START && n > FEW_LINES) n_shown = FEW_LINES;
    for (int i = 0; i < n_shown; i++) print_group(&groups[i], all->list[0].beacon.ranks, out);
    if (n_shown < n) fprintf(out, "  and %d lines more\n", n - n_shown);
    free(groups);
}

static int count_ends(const struct sightings *all, enum beacon_end end) {
    int n = 0;
    for (int i = 0; i < all->n; i++) n += all->list[i].beacon.end == (int32_t)end;
    return n;
}

static void print_job(const struct sightings *all, enum beacons_when when, FILE *out) {
    int n_rank = all->list[0].beacon.ranks;
    bool stopped = count_ends(all, BEACON_STOPPED) == all->n;
    if (count_ends(all, BEACON_ENDED) == all->n) return;
    if (stopped && when == BEACONS_BEFORE_START) return;
    struct line begun = {.n = 0};
    add_time(&begun, all->list[0].beacon.wall);
    fprintf(out, "the job of %d rank%s that began at %s %s\n", n_rank, n_rank == 1 ? "" : "s",
            begun.text,
            stopped                              ? "was stopped: submit it again to go on"
            : count_ends(all, BEACON_FAILED) > 0 ? "failed:"
            : when == BEACONS_BEFORE_START       ? "was cut off:"
                                                 : "is running, or was cut off:");
    if (stopped) return;
    print_groups(all, when, out);
    int n_silent = n_rank - all->n;
    if (n_silent > 0)
        fprintf(out, "  %d rank%s left no word\n", n_silent, n_silent == 1 ? "" : "s");
}

void inspect_beacons(const char *output, enum beacons_when when, FILE *out) {
    char path[4096];
    struct sightings all = {.list = NULL};
    int n = snprintf(path, sizeof path, "%s/" BEACON_FOLDER, output);
    if (n < 0 || (size_t)n >= sizeof path) return;
    read_folder(path, &all);
    if (all.n > 0) print_job(&all, when, out);
    if (all.n_left_out > 0)
        fprintf(out, "%s: left out %d file%s, damaged or of another job\n", path, all.n_left_out,
                all.n_left_out == 1 ? "" : "s");
    free(all.list);
}
