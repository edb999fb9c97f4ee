/* opt.h - one table of options makes the command line, the environment, the YAML file and --help.
 *
 * A command describes its options once, as rows that point into its own struct. Values come from,
 * each overriding the one before: the table's defaults, the config file (keys are the long names),
 * the environment (TERRACE_MEMORY_LIMIT for memory-limit), the command line. An unknown name, a
 * wrong type or a value out of range is refused with the place it came from. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/arena.h"
#include "base/err.h"

enum opt_kind {
    OPT_STR,   /* const char *, lives in the arena; NULL when the default is NULL */
    OPT_INT,   /* int64_t */
    OPT_NUM,   /* double */
    OPT_BYTES, /* uint64_t: "8GiB" */
    OPT_MS,    /* int64_t: "30s" */
    OPT_BOOL,  /* bool: --name, --no-name, --name=false */
    OPT_ENUM,  /* int: index into choices */
    OPT_LIST,  /* struct opt_list: "a,b"; given again on the command line it adds */
};

struct opt_list {
    const char **items; /* in the arena, as the strings */
    size_t n;
    bool settled; /* came from an earlier place: the next assignment replaces it */
};

struct opt {
    const char *name; /* long name, "memory-limit"; NULL ends a table */
    enum opt_kind kind;
    size_t offset;              /* of the value in the command's struct */
    const char *fallback;       /* default as text; NULL: zero */
    const char *arg;            /* what the value is called in --help: "N", "FILE" */
    const char *help;           /* one or two sentences */
    double min, max;            /* for numbers; both 0: any */
    const char *const *choices; /* for OPT_ENUM, ends with NULL */
    char letter;                /* short form, 0: none */
    bool cli_only;              /* not in the file and the environment */
};

struct opt_set {
    const struct opt *opts;
    void *values;        /* the command's struct */
    struct arena *arena; /* for strings */
    /* Keys of the file that somebody else reads, ends with NULL; NULL: none. */
    const char *const *sections;
};

/* Puts the defaults in place. BUG if a default does not parse. */
void opt_defaults(const struct opt_set *s);

/* Sets one option from text; `where` ("--port", "TERRACE_PORT", "terrace.yaml:3:7") leads the
 * message. */
int opt_assign(const struct opt_set *s, const struct opt *o, const char *text, const char *where,
               struct err *e);

/* Reads a YAML mapping of option names to values. Errors name file, line and column. */
int opt_file(const struct opt_set *s, const char *path, struct err *e);

/* Reads every TERRACE_* variable that belongs to an option. */
int opt_env(const struct opt_set *s, struct err *e);

/* Reads the command line from argv[1]. "--" ends the options. Words that are no options are moved
 * to argv[0 .. *n_words-1]; at most max_words are taken. */
int opt_args(const struct opt_set *s, int argc, char **argv, int max_words, int *n_words,
             struct err *e);

/* All of it in order. The file's name is the string option "config" if the table has one. */
int opt_load(const struct opt_set *s, int argc, char **argv, int max_words, int *n_words,
             struct err *e);

/* Prints the table for --help: names, defaults, environment names. */
void opt_help(const struct opt *opts, FILE *out);

/* Prints the values in force as a YAML file. */
void opt_print(const struct opt_set *s, FILE *out);
