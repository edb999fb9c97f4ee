/* yaml_tree.h - a YAML file as a JSON tree, so that one set of checks reads both, and the way back:
 * from a value's path to the line it was written on.
 *
 * Plain scalars are null, booleans, integers and numbers by the YAML 1.2 core schema (so "no" and
 * "on" are strings), quoted ones are strings. Mapping keys are strings and must differ. Anchors
 * work; a document that unfolds to more than YAML_MAX_NODES values or 64 levels is refused. */
#pragma once

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"

enum { YAML_MAX_NODES = 100000 };

struct yaml_tree;

/* An empty document is an empty object. NULL with ERR_IO, or ERR_INVALID naming file, line and
 * column. */
struct yaml_tree *yaml_tree_read(const char *path, struct err *e);

/* The same for text[0..n); `name` leads the messages. */
struct yaml_tree *yaml_tree_parse(const char *text, size_t n, const char *name, struct err *e);
void yaml_tree_free(struct yaml_tree *t);

const json_t *yaml_tree_root(const struct yaml_tree *t); /* as long as the tree is there */

/* Puts "file:line:column: " before the message: where what e->param names is written. That is a
 * path such as "tiers[1].check.regex"; of one that the file does not have to its end, the part that
 * it has counts. Returns e->code, or `code` when e is NULL. */
int yaml_tree_locate(const struct yaml_tree *t, int code, struct err *e);
