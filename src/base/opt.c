#include "base/opt.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/buf.h"
#include "base/str.h"

enum { OPT_FILE_MAX_BYTES = 1 << 20 };

static void *slot(const struct opt_set *s, const struct opt *o)
{
    return (char *)s->values + o->offset;
}

static const struct opt *find(const struct opt *o, struct str name)
{
    for (; o->name; o++)
        if (str_eqs(name, o->name))
            return o;
    return NULL;
}

static int out_of_range(const struct opt *o, const char *text, const char *where, struct err *e)
{
    return err_param(e, ERR_INVALID, o->name, "%s: %s is out of range, it must be %g to %g", where,
                     text, o->min, o->max);
}

static bool in_range(const struct opt *o, double v)
{
    return (o->min == 0 && o->max == 0) || (v >= o->min && v <= o->max);
}

static int wrong(const struct opt *o, const char *text, const char *where, const char *want,
                 struct err *e)
{
    return err_param(e, ERR_INVALID, o->name, "%s: \"%s\" is not %s", where, text, want);
}

static int assign_enum(const struct opt_set *s, const struct opt *o, const char *text,
                       const char *where, struct err *e)
{
    struct buf all = {0};
    for (int i = 0; o->choices[i]; i++) {
        if (strcmp(text, o->choices[i]) == 0) {
            *(int *)slot(s, o) = i;
            buf_release(&all);
            return 0;
        }
        buf_addf(&all, "%s%s", i ? ", " : "", o->choices[i]);
    }
    err_param(e, ERR_INVALID, o->name, "%s: \"%s\" is not one of %s", where, text, buf_str(&all));
    buf_release(&all);
    return ERR_INVALID;
}

/* A list of an earlier place (default, file, environment) is overridden as a whole. */
static void assign_list(const struct opt_set *s, const struct opt *o, const char *text)
{
    struct opt_list *l = slot(s, o);
    if (l->settled)
        *l = (struct opt_list){0};
    size_t most = l->n + 1;
    for (const char *p = text; *p; p++)
        most += *p == ',';
    const char **items = arena_alloc(s->arena, most * sizeof *items);
    for (size_t i = 0; i < l->n; i++)
        items[i] = l->items[i];
    l->items = items;
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, ",");
        if (n)
            l->items[l->n++] = arena_strdup(s->arena, (struct str){p, n});
        p += n + (p[n] == ',');
    }
}

static void settle_lists(const struct opt_set *s)
{
    for (const struct opt *o = s->opts; o->name; o++)
        if (o->kind == OPT_LIST)
            ((struct opt_list *)slot(s, o))->settled = true;
}

static bool parse_bool(const char *text, bool *out)
{
    static const char *const yes[] = {"true", "yes", "on", "1", NULL};
    static const char *const no[] = {"false", "no", "off", "0", NULL};
    for (int i = 0; yes[i]; i++) {
        if (str_case_eq(str_of(text), yes[i]) || str_case_eq(str_of(text), no[i])) {
            *out = str_case_eq(str_of(text), yes[i]);
            return true;
        }
    }
    return false;
}

int opt_assign(const struct opt_set *s, const struct opt *o, const char *text, const char *where,
               struct err *e)
{
    void *to = slot(s, o);
    struct str t = str_of(text);
    switch (o->kind) {
    case OPT_STR:
        *(const char **)to = arena_strdup(s->arena, t);
        return 0;
    case OPT_INT: {
        int64_t v;
        if (!str_to_i64(t, &v))
            return wrong(o, text, where, "a whole number", e);
        if (!in_range(o, (double)v))
            return out_of_range(o, text, where, e);
        *(int64_t *)to = v;
        return 0;
    }
    case OPT_NUM: {
        double v;
        if (!str_to_double(t, &v))
            return wrong(o, text, where, "a number", e);
        if (!in_range(o, v))
            return out_of_range(o, text, where, e);
        *(double *)to = v;
        return 0;
    }
    case OPT_BYTES: {
        uint64_t v;
        if (!str_to_bytes(t, &v))
            return wrong(o, text, where, "a size such as 512MiB or 8GiB", e);
        if (!in_range(o, (double)v))
            return out_of_range(o, text, where, e);
        *(uint64_t *)to = v;
        return 0;
    }
    case OPT_MS: {
        int64_t v;
        if (!str_to_ms(t, &v))
            return wrong(o, text, where, "a duration such as 250ms, 30s or 5m", e);
        if (!in_range(o, (double)v))
            return out_of_range(o, text, where, e);
        *(int64_t *)to = v;
        return 0;
    }
    case OPT_BOOL:
        return parse_bool(text, to) ? 0 : wrong(o, text, where, "true or false", e);
    case OPT_ENUM:
        return assign_enum(s, o, text, where, e);
    case OPT_LIST:
        assign_list(s, o, text);
        return 0;
    }
    BUG("option %s has kind %d", o->name, (int)o->kind);
}

void opt_defaults(const struct opt_set *s)
{
    for (const struct opt *o = s->opts; o->name; o++) {
        struct err e = {0};
        if (o->fallback && opt_assign(s, o, o->fallback, o->name, &e))
            BUG("default of --%s: %s", o->name, e.msg);
    }
    settle_lists(s);
}

/* TERRACE_MEMORY_LIMIT for memory-limit. */
static void env_name(const struct opt *o, char *out, size_t n)
{
    snprintf(out, n, "TERRACE_%s", o->name);
    for (char *p = out; *p; p++)
        *p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
}

int opt_env(const struct opt_set *s, struct err *e)
{
    for (const struct opt *o = s->opts; o->name; o++) {
        char name[64];
        env_name(o, name, sizeof name);
        const char *text = o->cli_only ? NULL : getenv(name);
        if (text) {
            int rc = opt_assign(s, o, text, name, e);
            if (rc)
                return rc;
        }
    }
    return 0;
}

/* A list as a YAML sequence. */
static int file_sequence(const struct opt_set *s, const struct opt *o, yaml_document_t *doc,
                         const yaml_node_t *value, const char *where, struct err *e)
{
    assign_list(s, o, "");
    for (yaml_node_item_t *i = value->data.sequence.items.start; i < value->data.sequence.items.top;
         i++) {
        const yaml_node_t *item = yaml_document_get_node(doc, *i);
        if (item->type != YAML_SCALAR_NODE)
            return err_param(e, ERR_INVALID, o->name, "%s: must be a list of words", where);
        assign_list(s, o, (const char *)item->data.scalar.value);
    }
    return 0;
}

/* One "key: value" of the file. */
static int file_pair(const struct opt_set *s, const char *path, yaml_document_t *doc,
                     const yaml_node_t *key, const yaml_node_t *value, struct err *e)
{
    char where[256];
    snprintf(where, sizeof where, "%s:%zu:%zu", path, key->start_mark.line + 1,
             key->start_mark.column + 1);
    if (key->type != YAML_SCALAR_NODE)
        return err_set(e, ERR_INVALID, "%s: a key must be the name of an option", where);
    const char *name = (const char *)key->data.scalar.value;
    for (const char *const *section = s->sections; section && *section; section++)
        if (strcmp(*section, name) == 0)
            return 0;
    const struct opt *o = find(s->opts, str_of(name));
    if (!o || o->cli_only)
        return err_param(e, ERR_INVALID, "config",
                         "%s: there is no option \"%s\"; see terrace serve --help", where, name);
    snprintf(where, sizeof where, "%s:%zu:%zu: %s", path, value->start_mark.line + 1,
             value->start_mark.column + 1, name);
    if (o->kind == OPT_LIST && value->type == YAML_SEQUENCE_NODE)
        return file_sequence(s, o, doc, value, where, e);
    if (value->type != YAML_SCALAR_NODE)
        return err_param(e, ERR_INVALID, name, "%s: must be a single value", where);
    return opt_assign(s, o, (const char *)value->data.scalar.value, where, e);
}

static int file_mapping(const struct opt_set *s, const char *path, yaml_document_t *doc,
                        struct err *e)
{
    yaml_node_t *root = yaml_document_get_root_node(doc);
    if (!root)
        return 0; /* an empty file */
    if (root->type != YAML_MAPPING_NODE)
        return err_set(e, ERR_INVALID, "%s:%zu:%zu: must be a mapping of options to values", path,
                       root->start_mark.line + 1, root->start_mark.column + 1);
    yaml_node_pair_t *first = root->data.mapping.pairs.start, *end = root->data.mapping.pairs.top;
    for (yaml_node_pair_t *p = first; p < end; p++) {
        yaml_node_t *key = yaml_document_get_node(doc, p->key);
        for (yaml_node_pair_t *q = first; q < p; q++) {
            yaml_node_t *other = yaml_document_get_node(doc, q->key);
            if (key->type == YAML_SCALAR_NODE && other->type == YAML_SCALAR_NODE &&
                strcmp((char *)key->data.scalar.value, (char *)other->data.scalar.value) == 0)
                return err_set(e, ERR_INVALID, "%s:%zu:%zu: \"%s\" is set twice", path,
                               key->start_mark.line + 1, key->start_mark.column + 1,
                               (char *)key->data.scalar.value);
        }
        int rc = file_pair(s, path, doc, key, yaml_document_get_node(doc, p->value), e);
        if (rc)
            return rc;
    }
    return 0;
}

static int read_small_file(const char *path, struct buf *out, struct err *e)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return err_param(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "config", "%s: %s", path,
                         strerror(errno));
    size_t n;
    do {
        n = fread(buf_reserve(out, 4096), 1, 4096, f);
        out->len += n;
    } while (n && out->len <= OPT_FILE_MAX_BYTES);
    bool bad = ferror(f);
    fclose(f);
    if (bad)
        return err_param(e, ERR_IO, "config", "%s: cannot be read: %s", path, strerror(errno));
    if (out->len > OPT_FILE_MAX_BYTES)
        return err_param(e, ERR_LIMIT, "config", "%s: a config file is at most 1 MiB", path);
    return 0;
}

int opt_file(const struct opt_set *s, const char *path, struct err *e)
{
    struct buf text = {0};
    int rc = read_small_file(path, &text, e);
    yaml_parser_t parser;
    if (rc == 0 && !yaml_parser_initialize(&parser))
        rc = err_set(e, ERR_NOMEM, "out of memory reading %s", path);
    if (rc) {
        buf_release(&text);
        return rc;
    }
    yaml_parser_set_input_string(&parser, (const unsigned char *)buf_str(&text), text.len);
    yaml_document_t doc;
    if (!yaml_parser_load(&parser, &doc)) {
        rc = err_param(e, ERR_FORMAT, "config", "%s:%zu:%zu: %s", path,
                       parser.problem_mark.line + 1, parser.problem_mark.column + 1,
                       parser.problem ? parser.problem : "is not YAML");
    } else {
        rc = file_mapping(s, path, &doc, e);
        yaml_document_delete(&doc);
    }
    yaml_parser_delete(&parser);
    buf_release(&text);
    return rc;
}

/* "--name=value", "--name value", "--no-name". Returns how many words were used, or an error. */
static int long_option(const struct opt_set *s, char **argv, int left, struct err *e)
{
    const char *word = argv[0] + 2, *eq = strchr(word, '=');
    struct str name = {word, eq ? (size_t)(eq - word) : strlen(word)};
    const struct opt *o = find(s->opts, name);
    bool negated = !o && !eq && str_starts(name, "no-");
    if (negated) {
        o = find(s->opts, str_of(word + 3));
        if (o && o->kind != OPT_BOOL)
            o = NULL;
    }
    if (!o)
        return err_set(e, ERR_INVALID, "there is no option --%.*s; --help lists them", (int)name.n,
                       name.p);
    int rc;
    if (o->kind == OPT_BOOL && !eq) {
        *(bool *)slot(s, o) = !negated;
        return 1;
    }
    if (!eq && left < 2)
        return err_param(e, ERR_INVALID, o->name, "--%s needs a value: %s", o->name, o->arg);
    char where[80];
    snprintf(where, sizeof where, "--%s", o->name);
    rc = opt_assign(s, o, eq ? eq + 1 : argv[1], where, e);
    return rc ? rc : eq ? 1 : 2;
}

static int short_option(const struct opt_set *s, char **argv, int left, struct err *e)
{
    const struct opt *o = s->opts;
    while (o->name && o->letter != argv[0][1])
        o++;
    if (!o->name || argv[0][2])
        return err_set(e, ERR_INVALID, "there is no option %s; --help lists them", argv[0]);
    if (o->kind == OPT_BOOL) {
        *(bool *)slot(s, o) = true;
        return 1;
    }
    if (left < 2)
        return err_param(e, ERR_INVALID, o->name, "%s needs a value: %s", argv[0], o->arg);
    int rc = opt_assign(s, o, argv[1], argv[0], e);
    return rc ? rc : 2;
}

int opt_args(const struct opt_set *s, int argc, char **argv, int max_words, int *n_words,
             struct err *e)
{
    bool options = true;
    *n_words = 0;
    for (int i = 1; i < argc;) {
        int used = 1;
        if (options && strcmp(argv[i], "--") == 0) {
            options = false;
        } else if (options && strncmp(argv[i], "--", 2) == 0) {
            used = long_option(s, argv + i, argc - i, e);
        } else if (options && argv[i][0] == '-' && argv[i][1]) {
            used = short_option(s, argv + i, argc - i, e);
        } else if (*n_words < max_words) {
            argv[(*n_words)++] = argv[i];
        } else {
            return err_set(e, ERR_INVALID, "\"%s\" is one word too many; --help shows the usage",
                           argv[i]);
        }
        if (used < 0)
            return used;
        i += used;
    }
    return 0;
}

/* The config file named on the command line, else in the environment, else by default. */
static const char *config_path(const struct opt_set *s, const struct opt *o, int argc, char **argv)
{
    const char *path = *(const char **)slot(s, o);
    const char *env = getenv("TERRACE_CONFIG");
    if (env)
        path = env;
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
        if (strcmp(argv[i], "--config") == 0 && i + 1 < argc)
            path = argv[i + 1];
        else if (strncmp(argv[i], "--config=", 9) == 0)
            path = argv[i] + 9;
    }
    return path;
}

int opt_load(const struct opt_set *s, int argc, char **argv, int max_words, int *n_words,
             struct err *e)
{
    opt_defaults(s);
    const struct opt *config = find(s->opts, STR("config"));
    const char *path = config ? config_path(s, config, argc, argv) : NULL;
    int rc = path ? opt_file(s, path, e) : 0;
    settle_lists(s);
    if (rc == 0)
        rc = opt_env(s, e);
    settle_lists(s);
    return rc ? rc : opt_args(s, argc, argv, max_words, n_words, e);
}

/* Prints text from column `indent`, broken at spaces before column 100. */
static void wrapped(FILE *out, const char *text, int indent)
{
    int column = indent;
    while (*text) {
        size_t n = strcspn(text, " ");
        if (column > indent && column + (int)n > 98) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        }
        column += fprintf(out, "%.*s ", (int)n, text);
        text += n + (text[n] == ' ');
    }
    fputc('\n', out);
}

void opt_help(const struct opt *opts, FILE *out)
{
    for (const struct opt *o = opts; o->name; o++) {
        char left[80], env[64];
        int n = o->letter ? snprintf(left, sizeof left, "-%c, ", o->letter) : 0;
        n += snprintf(left + n, sizeof left - (size_t)n, "--%s", o->name);
        if (o->kind != OPT_BOOL)
            snprintf(left + n, sizeof left - (size_t)n, " %s", o->arg);
        struct buf text = {0};
        buf_adds(&text, o->help);
        if (o->kind == OPT_ENUM) {
            buf_adds(&text, " One of");
            for (int i = 0; o->choices[i]; i++)
                buf_addf(&text, "%s %s", i ? "," : "", o->choices[i]);
            buf_addc(&text, '.');
        }
        bool flag_off = o->kind == OPT_BOOL && (!o->fallback || strcmp(o->fallback, "true"));
        if (o->fallback && !flag_off)
            buf_addf(&text, " [%s]",
                     o->kind == OPT_BOOL ? "on; --no- switches it off" : o->fallback);
        env_name(o, env, sizeof env);
        if (!o->cli_only)
            buf_addf(&text, " (%s)", env);
        fprintf(out, "  %-26s ", left);
        if (strlen(left) > 26)
            fprintf(out, "\n%29s", "");
        wrapped(out, buf_str(&text), 29);
        buf_release(&text);
    }
}

static void print_quoted(const char *text, FILE *out)
{
    fputc('\'', out);
    for (const char *p = text; *p; p++) /* YAML: '' inside '...' */
        fprintf(out, *p == '\'' ? "''" : "%c", *p);
    fputc('\'', out);
}

void opt_print(const struct opt_set *s, FILE *out)
{
    for (const struct opt *o = s->opts; o->name; o++) {
        const void *v = slot(s, o);
        if (o->cli_only || (o->kind == OPT_STR && !*(const char *const *)v))
            continue;
        fprintf(out, "%s: ", o->name);
        switch (o->kind) {
        case OPT_STR:
            print_quoted(*(const char *const *)v, out);
            fputc('\n', out);
            break;
        case OPT_INT:
            fprintf(out, "%lld\n", (long long)*(const int64_t *)v);
            break;
        case OPT_NUM:
            fprintf(out, "%g\n", *(const double *)v);
            break;
        case OPT_BYTES:
            fprintf(out, "%llu\n", (unsigned long long)*(const uint64_t *)v);
            break;
        case OPT_MS:
            fprintf(out, "%lldms\n", (long long)*(const int64_t *)v);
            break;
        case OPT_BOOL:
            fprintf(out, "%s\n", *(const bool *)v ? "true" : "false");
            break;
        case OPT_ENUM:
            fprintf(out, "%s\n", o->choices[*(const int *)v]);
            break;
        case OPT_LIST: {
            const struct opt_list *l = v;
            fputc('[', out);
            for (size_t i = 0; i < l->n; i++) {
                fputs(i ? ", " : "", out);
                print_quoted(l->items[i], out);
            }
            fputs("]\n", out);
            break;
        }
        }
    }
}
