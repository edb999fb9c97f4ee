/* config_value.h - reads the values of a configuration's sections.
 *
 * Every value has a path, such as "tiers[1].check.regex": `where` in what follows. It is the param
 * of each error, so that whoever knows the file (yaml_tree_locate) can tell the line. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct names;

/* A mapping, its path, and the path of the member that was asked for last. */
struct config_map {
    const json_t *map;
    const char *where;
    char at[128];
};

/* The member of that name, NULL if there is none; its path is in m->at. */
const json_t *config_at(struct config_map *m, const char *key);

/* ERR_INVALID: "WHERE must be WANTED". */
int config_wrong(struct err *e, const char *where, const char *wanted);

/* Readers of one value each. A missing value (NULL) leaves *out; text and names are the caller's to
 * free. */
int read_text(const json_t *v, const char *where, char **out, struct err *e);
int read_names(const json_t *v, const char *where, struct names *out, struct err *e);
int read_number(const json_t *v, const char *where, double min, double max, double *out,
                struct err *e);
int read_flag(const json_t *v, const char *where, bool *out, struct err *e);
int read_ms(const json_t *v, const char *where, int64_t *out, struct err *e);
void names_release(struct names *n);

/* ERR_INVALID unless every key of the mapping is among `known` (ends with NULL). */
int check_keys(const json_t *map, const char *where, const char *const *known, struct err *e);
