#include "base/yaml_tree.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

#include "base/str.h"

enum { MAX_DEPTH = 64 };

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

static json_t *document(yaml_parser_t *parser, const char *name, struct err *e)
{
    yaml_document_t doc;
    if (!yaml_parser_load(parser, &doc)) {
        err_set(e, ERR_INVALID, "%s:%zu:%zu: %s", name, parser->problem_mark.line + 1,
                parser->problem_mark.column + 1, parser->problem ? parser->problem : "not YAML");
        return NULL;
    }
    struct reader r = {&doc, name, 0, e};
    json_t *out = yaml_document_get_root_node(&doc) ? value(&r, 1, 0) : json_object();
    yaml_document_delete(&doc);
    return out;
}

static json_t *read_with(yaml_parser_t *parser, const char *name, struct err *e)
{
    json_t *out = document(parser, name, e);
    yaml_document_t more;
    if (out && yaml_parser_load(parser, &more)) {
        bool over = !yaml_document_get_root_node(&more);
        yaml_document_delete(&more);
        if (over) {
            yaml_parser_delete(parser);
            return out;
        }
    }
    if (out)
        err_set(e, ERR_INVALID, "%s: there is something after the first document", name);
    json_decref(out);
    yaml_parser_delete(parser);
    return NULL;
}

json_t *yaml_tree_parse(const char *text, size_t n, const char *name, struct err *e)
{
    yaml_parser_t parser;
    BUG_ON(!yaml_parser_initialize(&parser)); /* out of memory */
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, n);
    return read_with(&parser, name, e);
}

json_t *yaml_tree_read(const char *path, struct err *e)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    yaml_parser_t parser;
    BUG_ON(!yaml_parser_initialize(&parser));
    yaml_parser_set_input_file(&parser, f);
    json_t *out = read_with(&parser, path, e);
    fclose(f);
    return out;
}
