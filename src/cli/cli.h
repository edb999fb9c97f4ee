/* cli.h - what the subcommands share. The only folder that wires modules together and ends the
 * process. */
#pragma once

#include "base/err.h"
#include "base/opt.h"

struct db;

/* A subcommand gets its own words (argv[0] is its name) and returns the exit status. */
struct command {
    const char *name;
    const char *usage;   /* "terrace list [OPTIONS]" */
    const char *summary; /* one line for the list of commands */
    const char *details; /* paragraphs for its own --help, may be NULL */
    const struct opt *opts;
    const char *const *sections; /* keys of its config file that are no options, NULL: none */
    int (*run)(const struct command *c, int argc, char **argv);
};

extern const struct command cmd_serve, cmd_run, cmd_pull, cmd_list, cmd_ps, cmd_show, cmd_rm,
    cmd_bench, cmd_adapter, cmd_key, cmd_version;

/* Exit statuses. */
enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

/* Loads the options of a command into `values`, answering --help itself. Returns -1 to go on, or
 * the exit status. Words that are no options are left in argv[0 .. *n_words-1]. */
int cli_options(const struct command *c, void *values, struct arena *arena, int argc, char **argv,
                int max_words, int *n_words);

/* Prints "terrace COMMAND: message" and returns EXIT_FAILED. */
int cli_fail(const struct command *c, const struct err *e);

/* The directory of models as an arena string. */
const char *cli_models_dir(struct arena *arena);

/* Where the service keeps what outlives it: `given`, or ~/.terrace/state. An arena string. */
const char *cli_state_dir(struct arena *arena, const char *given);

/* The database there; check as db_open. */
int cli_open_database(struct db **out, const char *state_dir, bool check, struct err *e);

extern const char cli_version[];
