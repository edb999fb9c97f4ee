/* client.h - a command's conversation with a running server, and how it shows what it got. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/opt.h"

/* Where the server is and how to tell the answer; filled in from the options below. */
struct client {
    const char *url, *api_key; /* api_key NULL: none */
    bool json;                 /* print the server's JSON instead of a table */
};

/* Rows for the option table of a command whose struct has a struct client at offset `base`. */
/* clang-format off */
#define CLIENT_OPTS(base)                                                                          \
    {"url", OPT_STR, (base) + offsetof(struct client, url), "http://127.0.0.1:11403", "URL",       \
     "The server to talk to.", .letter = 'u'},                                                     \
    {"api-key", OPT_STR, (base) + offsetof(struct client, api_key), NULL, "KEY",                   \
     "The server's API key. Other users of this machine can read command lines: set "              \
     "TERRACE_API_KEY instead."},                                                                  \
    {"json", OPT_BOOL, (base) + offsetof(struct client, json), NULL, NULL,                         \
     "Print JSON instead of a table.", .cli_only = true}
/* clang-format on */

/* One request; blocks until the answer is complete. `body` NULL sends none. The answer's JSON is
 * the caller's to json_decref; it is NULL where the server had nothing to say. `out` may be NULL.
 * An answer of 400 and above is an error with the server's own message: ERR_NOTFOUND, ERR_DENIED,
 * ERR_EXISTS, ERR_BUSY, ERR_INVALID, or ERR_IO; nobody there is ERR_IO too, and says how to start a
 * server. */
int client_call(const struct client *c, const char *method, const char *path, const json_t *body,
                json_t **out, struct err *e);

/* Appends what follows a '/' or '=' in a URL: everything but letters, digits and -._~ escaped. */
void client_escape(struct buf *out, const char *text);

void client_print_json(const json_t *v);

/* ---- tables for people ---- */

/* Cells row by row. A heading that begins with '>' stands over a column that is aligned right. */
struct client_table {
    const char *const *headings; /* ends with NULL */
    char **cells;
    size_t n_cells, room;
};

/* The next cell, "-" for NULL or "". Copied; control characters become spaces, as the text may be
 * somebody else's. */
void client_cell(struct client_table *t, const char *text);
void client_cellf(struct client_table *t, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Prints and frees the cells. */
void client_table_print(struct client_table *t, FILE *out);
