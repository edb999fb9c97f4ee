#include "base/yaml_tree.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/mem.h"
#include "base/str.h"

enum { MAX_DEPTH = 64 };

struct yaml_tree {
    json_t *root;
    yaml_document_t doc;
    char *name;
};

struct reader {
    yaml_document_t *doc;
    const char *name;
    int n_nodes;
    struct err *e;
};

static json_t *refuse(struct reader *r, const yaml_node_t *at, const char *why)
{
    err_set(r->e, ERR_INVALID, "%s:%zu:%zu: %s", r->name, at->start_mark.line + 1,
            at->start_mark.column + 1, why);
    return NULL;
}

static bool is_one_of(struct str s, const char *const *words)
{
    for (; *words; words++)
        if (str_eqs(s, *words))
            return true;
    return false;
}

static json_t *plain(struct str s)
{
    static const char *const null_words[] = {"", "~", "null", "Null", "NULL", NULL};
    static const char *const true_words[] = {"true", "True", "TRUE", NULL};
    static const char *const false_words[] = {"false", "False", "FALSE", NULL};
    int64_t i;
    double d;
    if (is_one_of(s, null_words))
        return json_null();
    if (is_one_of(s, true_words))
        return json_true();
    if (is_one_of(s, false_words))
        return json_false();
    if (str_to_i64(s, &i))
        return json_integer(i);
    if (str_to_double(s, &d))
        return json_real(d);
    return json_stringn(s.p, s.n);
}

static json_t *scalar(struct reader *r, const yaml_node_t *n)
{
    struct str s = {(const char *)n->data.scalar.value, n->data.scalar.length};
    json_t *v = n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE ? plain(s) : json_stringn(s.p, s.n);
    return v ? v : refuse(r, n, "text that is no UTF-8");
}

static json_t *value(struct reader *r, int id, int depth);

static json_t *sequence(struct reader *r, const yaml_node_t *n, int depth)
{
    json_t *list = json_array();
    for (yaml_node_item_t *at = n->data.sequence.items.start; at < n->data.sequence.items.top;
         at++) {
        json_t *item = value(r, *at, depth + 1);
        if (!item) {
            json_decref(list);
            return NULL;
        }
        json_array_append_new(list, item);
    }
    return list;
}

static json_t *mapping(struct reader *r, const yaml_node_t *n, int depth)
{
    json_t *map = json_object();
    for (yaml_node_pair_t *at = n->data.mapping.pairs.start; at < n->data.mapping.pairs.top; at++) {
        const yaml_node_t *key = yaml_document_get_node(r->doc, at->key);
        json_t *item = NULL;
        const char *name = key->type == YAML_SCALAR_NODE ? (char *)key->data.scalar.value : NULL;
        if (!name || strlen(name) != key->data.scalar.length)
            refuse(r, key, "a key must be plain text");
        else if (json_object_get(map, name))
            refuse(r, key, "this key is there twice");
        else
            item = value(r, at->value, depth + 1);
        if (!item || json_object_set_new(map, name, item)) {
            json_decref(map);
            return item ? refuse(r, key, "a key that is no UTF-8") : NULL;
        }
    }
    return map;
}

static json_t *value(struct reader *r, int id, int depth)
{
    const yaml_node_t *n = yaml_document_get_node(r->doc, id);
    if (depth > MAX_DEPTH)
        return refuse(r, n, "nested too deeply");
    if (++r->n_nodes > YAML_MAX_NODES)
        return refuse(r, n, "too many values");
    if (n->type == YAML_MAPPING_NODE)
        return mapping(r, n, depth);
    return n->type == YAML_SEQUENCE_NODE ? sequence(r, n, depth) : scalar(r, n);
}

static int not_yaml(const yaml_parser_t *parser, const char *name, struct err *e)
{
    return err_set(e, ERR_INVALID, "%s:%zu:%zu: %s", name, parser->problem_mark.line + 1,
                   parser->problem_mark.column + 1, parser->problem ? parser->problem : "not YAML");
}

/* Loads the only document. On 0 the caller deletes it. */
static int load(yaml_parser_t *parser, const char *name, yaml_document_t *doc, struct err *e)
{
    yaml_document_t more;
    int rc = 0;
    if (!yaml_parser_load(parser, doc))
        return not_yaml(parser, name, e);
    if (!yaml_parser_load(parser, &more)) {
        rc = not_yaml(parser, name, e);
    } else {
        if (yaml_document_get_root_node(&more))
            rc = err_set(e, ERR_INVALID, "%s:%zu:%zu: there is something after the first document",
                         name, more.start_mark.line + 1, more.start_mark.column + 1);
        yaml_document_delete(&more);
    }
    if (rc)
        yaml_document_delete(doc);
    return rc;
}

static struct yaml_tree *tree_new(yaml_parser_t *parser, const char *name, struct err *e)
{
    struct yaml_tree *t = xcalloc(1, sizeof *t);
    int rc = load(parser, name, &t->doc, e);
    yaml_parser_delete(parser);
    if (rc) {
        free(t);
        return NULL;
    }
    struct reader r = {&t->doc, name, 0, e};
    t->name = xstrdup(name);
    t->root = yaml_document_get_root_node(&t->doc) ? value(&r, 1, 0) : json_object();
    if (!t->root) {
        yaml_tree_free(t);
        return NULL;
    }
    return t;
}

struct yaml_tree *yaml_tree_parse(const char *text, size_t n, const char *name, struct err *e)
{
    yaml_parser_t parser;
    BUG_ON(!yaml_parser_initialize(&parser)); /* out of memory */
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, n);
    return tree_new(&parser, name, e);
}

struct yaml_tree *yaml_tree_read(const char *path, struct err *e)
{
    FILE *f = fopen(path, "rbe");
    if (!f) {
        err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    yaml_parser_t parser;
    BUG_ON(!yaml_parser_initialize(&parser));
    yaml_parser_set_input_file(&parser, f);
    struct yaml_tree *t = tree_new(&parser, path, e);
    fclose(f);
    return t;
}

void yaml_tree_free(struct yaml_tree *t)
{
    if (!t)
        return;
    json_decref(t->root);
    yaml_document_delete(&t->doc);
    free(t->name);
    free(t);
}

const json_t *yaml_tree_root(const struct yaml_tree *t)
{
    return t->root;
}

/* ---- the way back ---- */

/* One step along a path: a node, and where it is named. */
struct spot {
    yaml_node_t *node;
    yaml_mark_t mark;
};

/* The member whose key is the longest that the path goes on with; keys may have dots. Moves *path
 * over it. */
static bool step_into_mapping(yaml_document_t *doc, struct spot *at, const char **path)
{
    const yaml_node_t *map = at->node;
    size_t longest = 0;
    for (yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top;
         p++) {
        const yaml_node_t *key = yaml_document_get_node(doc, p->key);
        const char *name = (const char *)key->data.scalar.value; /* value() refuses others */
        size_t n = key->data.scalar.length;
        if (n <= longest || strncmp(*path, name, n) != 0 || !strchr(".[", (*path)[n]))
            continue;
        longest = n;
        *at = (struct spot){yaml_document_get_node(doc, p->value), key->start_mark};
    }
    *path += longest;
    return longest > 0;
}

static bool step_into_sequence(yaml_document_t *doc, struct spot *at, const char **path)
{
    const yaml_node_t *list = at->node;
    char *end;
    if (**path != '[')
        return false;
    unsigned long i = strtoul(*path + 1, &end, 10);
    if (*end != ']' ||
        i >= (size_t)(list->data.sequence.items.top - list->data.sequence.items.start))
        return false;
    at->node = yaml_document_get_node(doc, list->data.sequence.items.start[i]);
    at->mark = at->node->start_mark;
    *path = end + 1;
    return true;
}

int yaml_tree_locate(const struct yaml_tree *t, int code, struct err *e)
{
    yaml_document_t *doc = (yaml_document_t *)&t->doc; /* libyaml knows no const */
    struct spot at = {yaml_document_get_root_node(doc), {0}};
    if (!e)
        return code;
    const char *path = e->param;
    bool more = at.node, found = false;
    while (more && *path) {
        path += *path == '.';
        more = at.node->type == YAML_MAPPING_NODE    ? step_into_mapping(doc, &at, &path)
               : at.node->type == YAML_SEQUENCE_NODE ? step_into_sequence(doc, &at, &path)
                                                     : false;
        found = found || more;
    }
    return found ? err_prefix(e, code, "%s:%zu:%zu", t->name, at.mark.line + 1, at.mark.column + 1)
                 : err_prefix(e, code, "%s", t->name);
}
