// Reads job files and sets values by the rows of option_table. The only file that knows libconfig.
#include "launcher/options.h"

#include <errno.h>
#include <libconfig.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum status string_list_add(struct string_list *list, const char *text) {
    char **items = realloc(list->items, ((size_t)list->n + 1) * sizeof *items);
    if (!items) FAIL(ERR_MEMORY, "no memory for a list of %d texts", list->n + 1);
    list->items = items;
    if (!(items[list->n] = strdup(text))) FAIL(ERR_MEMORY, "no memory for a text");
    list->n++;
    return OK;
}

void string_list_close(struct string_list *list) {
    for (int i = 0; i < list->n; i++) free(list->items[i]);
    free(list->items);
    *list = (struct string_list){0};
}

static void *field(const struct options *options, const struct option *option) {
    return (char *)options + option->offset;
}

static enum status set_number(const struct option *option, const char *value, const char *origin,
                              double *out) {
    char *end;
    errno = 0;
    double x = strtod(value, &end);
    if (end == value || *end || errno || !isfinite(x)) {
        FAIL(ERR_CONFIG, "%s: %s must be a number, not '%.80s'", origin, option->path, value);
    }
    if (option->type == OPTION_INT && x != floor(x)) {
        FAIL(ERR_CONFIG, "%s: %s must be a whole number, not %.80s", origin, option->path, value);
    }
    if (x < option->least || x > option->most) {
        FAIL(ERR_CONFIG, "%s: %s must be between %.16g and %.16g, not %.80s", origin, option->path,
             option->least, option->most, value);
    }
    *out = x;
    return OK;
}

// Index of a word in "a|b|c", or -1.
static int find_choice(const char *choices, const char *word) {
    size_t n = strlen(word);
    for (int index = 0; choices; index++) {
        if (n > 0 && strncmp(choices, word, n) == 0 && (choices[n] == '|' || !choices[n]))
            return index;
        choices = strchr(choices, '|');
        if (choices) choices++;
    }
    return -1;
}

static enum status set_choice(const struct option *option, const char *value, const char *origin,
                              int *out) {
    int index = strchr(value, '|') ? -1 : find_choice(option->choices, value);
    if (index < 0 && !strchr(value, '|') && find_choice(option->later, value) >= 0) {
        FAIL(ERR_CONFIG, "%s: %s = %s is not in this version; it knows %s", origin, option->path,
             value, option->choices);
    }
    if (index < 0) {
        FAIL(ERR_CONFIG, "%s: %s must be one of %s, not '%.80s'", origin, option->path,
             option->choices, value);
    }
    *out = index;
    return OK;
}

static enum status set_field(struct options *options, const struct option *option,
                             const char *value, const char *origin) {
    double number;
    char *copy;
    switch (option->type) {
    case OPTION_STRING:
        if (!(copy = strdup(value))) FAIL(ERR_MEMORY, "no memory for a text");
        free(*(char **)field(options, option));
        *(char **)field(options, option) = copy;
        return OK;
    case OPTION_LIST:
        return string_list_add(field(options, option), value);
    case OPTION_INT:
        TRY(set_number(option, value, origin, &number));
        *(int64_t *)field(options, option) = (int64_t)number;
        return OK;
    case OPTION_REAL:
        return set_number(option, value, origin, field(options, option));
    case OPTION_BOOL:
        if (strcmp(value, "true") != 0 && strcmp(value, "false") != 0) {
            FAIL(ERR_CONFIG, "%s: %s must be true or false, not '%.80s'", origin, option->path,
                 value);
        }
        *(bool *)field(options, option) = *value == 't';
        return OK;
    case OPTION_CHOICE:
        return set_choice(option, value, origin, field(options, option));
    }
    FAIL(ERR_INTERNAL, "option %s has no type", option->path);
}

// Whether some option lies below this group ("model" for "model.path").
static bool group_exists(const char *path) {
    size_t n = strlen(path);
    for (int i = 0; i < n_option; i++) {
        if (strncmp(option_table[i].path, path, n) == 0 && option_table[i].path[n] == '.')
            return true;
    }
    return false;
}

enum status options_set(struct options *options, const char *path, const char *value,
                        enum option_source source, const char *origin) {
    const struct option *option = option_find(path);
    if (!option) {
        enum status code = source == SOURCE_COMMAND_LINE ? ERR_USAGE : ERR_CONFIG;
        if (group_exists(path))
            FAIL(code, "%s: %.80s is a group of keys, not one of them", origin, path);
        FAIL(code, "%s: unknown key '%.80s'; did you mean '%s'?", origin, path,
             option_nearest(path)->path);
    }
    // A list given on the command line replaces the job file's.
    unsigned char *from = &options->source[option - option_table];
    if (option->type == OPTION_LIST && *from != source) string_list_close(field(options, option));
    *from = (unsigned char)source;
    return set_field(options, option, value, origin);
}

enum status options_set_defaults(struct options *out) {
    *out = (struct options){0};
    for (int i = 0; i < n_option; i++) {
        const struct option *option = &option_table[i];
        if (option->initial) TRY(set_field(out, option, option->initial, "default"));
    }
    return OK;
}

void options_close(struct options *options) {
    for (int i = 0; i < n_option; i++) {
        if (option_table[i].type == OPTION_LIST)
            string_list_close(field(options, &option_table[i]));
        if (option_table[i].type == OPTION_STRING) free(*(char **)field(options, &option_table[i]));
    }
    free(options->job_file);
    free(options->inspect_path);
    *options = (struct options){0};
}

static enum status read_scalar(struct options *options, const char *path, const char *origin,
                               const config_setting_t *setting) {
    char text[64];
    const struct option *option = option_find(path);
    bool number = option && (option->type == OPTION_INT || option->type == OPTION_REAL);
    bool quoted = config_setting_type(setting) == CONFIG_TYPE_STRING;
    if (option && (number || option->type == OPTION_BOOL) && quoted) {
        FAIL(ERR_CONFIG, "%s: %s must be a %s without quotes", origin, path,
             number ? "number" : "true or false");
    }
    switch (config_setting_type(setting)) {
    case CONFIG_TYPE_INT:
    case CONFIG_TYPE_INT64:
        snprintf(text, sizeof text, "%lld", config_setting_get_int64(setting));
        break;
    case CONFIG_TYPE_FLOAT:
        snprintf(text, sizeof text, "%.17g", config_setting_get_float(setting));
        break;
    case CONFIG_TYPE_BOOL:
        snprintf(text, sizeof text, "%s", config_setting_get_bool(setting) ? "true" : "false");
        break;
    default:
        return options_set(options, path, config_setting_get_string(setting), SOURCE_JOB_FILE,
                           origin);
    }
    // Words of a choice that are true and false stand without quotes, too.
    bool word = option && option->type == OPTION_CHOICE && find_choice(option->choices, text) >= 0;
    if (option && !number && option->type != OPTION_BOOL && !word) {
        FAIL(ERR_CONFIG, "%s: %s must be a text in quotes, not %s", origin, path, text);
    }
    return options_set(options, path, text, SOURCE_JOB_FILE, origin);
}

static enum status read_group(struct options *options, const config_setting_t *group,
                              const char *prefix, const char *name);

static enum status read_setting(struct options *options, const config_setting_t *setting,
                                const char *prefix, const char *name) {
    char path[256], origin[512];
    const char *file = config_setting_source_file(setting);
    snprintf(path, sizeof path, "%s%s%s", prefix, *prefix ? "." : "", config_setting_name(setting));
    snprintf(origin, sizeof origin, "%s:%u", file ? file : name,
             config_setting_source_line(setting));
    if (config_setting_is_group(setting)) {
        if (option_find(path))
            FAIL(ERR_CONFIG, "%s: %s must be a value, not a group", origin, path);
        if (group_exists(path)) return read_group(options, setting, path, name);
        char nearest[32];
        option_nearest_group(path, nearest, sizeof nearest);
        FAIL(ERR_CONFIG, "%s: unknown group '%.80s'; did you mean '%s'?", origin, path, nearest);
    }
    if (!config_setting_is_aggregate(setting)) return read_scalar(options, path, origin, setting);
    const struct option *option = option_find(path);
    if (!option) return options_set(options, path, "", SOURCE_JOB_FILE, origin);
    if (option->type != OPTION_LIST)
        FAIL(ERR_CONFIG, "%s: %s takes one value, not a list", origin, path);
    for (int i = 0; i < config_setting_length(setting); i++) {
        const config_setting_t *item = config_setting_get_elem(setting, (unsigned)i);
        if (config_setting_is_aggregate(item)) {
            FAIL(ERR_CONFIG, "%s: %s must hold texts, not lists", origin, path);
        }
        TRY(read_scalar(options, path, origin, item));
    }
    return OK;
}

static enum status read_group(struct options *options, const config_setting_t *group,
                              const char *prefix, const char *name) {
    for (int i = 0; i < config_setting_length(group); i++) {
        TRY(read_setting(options, config_setting_get_elem(group, (unsigned)i), prefix, name));
    }
    return OK;
}

static enum status read_config(struct options *options, config_t *config, int parsed,
                               const char *name) {
    if (parsed == CONFIG_TRUE) return read_group(options, config_root_setting(config), "", name);
    const char *file = config_error_file(config);
    FAIL(ERR_CONFIG, "%s:%d: %s", file ? file : name, config_error_line(config),
         config_error_text(config) ? config_error_text(config) : "cannot be read");
}

enum status options_read_job_text(struct options *options, const char *text, const char *name) {
    config_t config;
    config_init(&config);
    enum status status = read_config(options, &config, config_read_string(&config, text), name);
    config_destroy(&config);
    return status;
}

enum status options_read_job_file(struct options *options, const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) {
        FAIL(ERR_NO_INPUT, "%s: cannot read the job file: %s", path, strerror(errno));
    }
    if (S_ISDIR(info.st_mode)) FAIL(ERR_NO_INPUT, "%s is a folder, not a job file", path);
    FILE *file = fopen(path, "r");
    if (!file) FAIL(ERR_NO_INPUT, "%s: cannot read the job file: %s", path, strerror(errno));
    config_t config;
    config_init(&config);
    enum status status = read_config(options, &config, config_read(&config, file), path);
    config_destroy(&config);
    fclose(file);
    return status;
}

bool options_process_is_step(void) {
    return getenv("SLURM_STEP_ID") && !getenv("OMPI_COMM_WORLD_RANK");
}

bool options_process_prints(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *rank = getenv(names[i]);
        if (rank) return strcmp(rank, "0") == 0;
    }
    return true;
}
