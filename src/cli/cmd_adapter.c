/* cmd_adapter.c - terrace adapter: the registry of a running server. One row of a table per verb:
 * what it needs, the request it becomes and how its answer is shown. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/progress.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/client.h"

struct adapter_options {
    struct client client;
    const char *base, *labels, *owner;
    const char *state, *label;
    int64_t version;
    bool pin;
};

#define AT(field) offsetof(struct adapter_options, field)
static const struct opt opts[] = {
    CLIENT_OPTS(AT(client)),
    {"base", OPT_STR, AT(base), NULL, "MODEL", "add, list: the model that the adapter changes.",
     .cli_only = true},
    {"labels", OPT_STR, AT(labels), NULL, "K=V,...", "add: labels to find it by.",
     .cli_only = true},
    {"owner", OPT_STR, AT(owner), NULL, "NAME", "add, list: whose it is.", .cli_only = true},
    {"pin", OPT_BOOL, AT(pin), NULL, NULL, "add: keep it in memory.", .cli_only = true},
    {"state", OPT_STR, AT(state), NULL, "STATE",
     "list: only those that are registered, loading, resident, draining or failed.",
     .cli_only = true},
    {"label", OPT_STR, AT(label), NULL, "K=V", "list: only those with this label.",
     .cli_only = true},
    {"version", OPT_INT, AT(version), "0", "N", "alias, rollback: the version meant.", .min = 0,
     .max = 0x1p62, .cli_only = true},
    {NULL},
};

/* One invocation. */
struct call {
    const struct adapter_options *o;
    char **words; /* after the verb; NULL where there is none */
    struct buf path;
    json_t *body, *answer;
};

/* ---- showing ---- */

static const char *text(const json_t *v, const char *key)
{
    return json_string_value(json_object_get(v, key));
}

static long long number(const json_t *v, const char *key)
{
    return json_integer_value(json_object_get(v, key));
}

static char *when(int64_t unix_s, char *out, size_t size)
{
    struct tm tm;
    time_t t = (time_t)unix_s;
    if (!unix_s || !strftime(out, size, "%Y-%m-%d %H:%M", localtime_r(&t, &tm)))
        snprintf(out, size, "-");
    return out;
}

static char *joined(const json_t *list)
{
    struct buf out = {0};
    for (size_t i = 0; i < json_array_size(list); i++)
        buf_addf(&out, "%s%s", i ? " " : "", json_string_value(json_array_get(list, i)));
    return buf_take(&out);
}

static void show_list(const struct call *c)
{
    static const char *const headings[] = {"NAME",  ">VERSION",  "BASE",      "STATE",   ">RANK",
                                           ">SIZE", ">REQUESTS", "LAST USED", "ALIASES", NULL};
    const json_t *data = json_object_get(c->answer, "data");
    struct client_table t = {headings};
    if (!json_array_size(data)) {
        puts("no adapters; terrace adapter add NAME PATH registers one");
        return;
    }
    for (size_t i = 0; i < json_array_size(data); i++) {
        const json_t *a = json_array_get(data, i);
        bool pinned = json_is_true(json_object_get(a, "pin"));
        char size[16], used[32], *aliases = joined(json_object_get(a, "aliases"));
        client_cell(&t, text(a, "name"));
        client_cellf(&t, "%lld", number(a, "version"));
        client_cell(&t, text(a, "base_model"));
        client_cellf(&t, "%s%s", text(a, "state"), pinned ? ", pinned" : "");
        client_cellf(&t, "%lld", number(a, "rank"));
        client_cell(&t, progress_bytes((uint64_t)number(a, "bytes"), size, sizeof size));
        client_cellf(&t, "%lld", number(a, "requests"));
        client_cell(&t, when(number(a, "last_used"), used, sizeof used));
        client_cell(&t, aliases);
        free(aliases);
    }
    client_table_print(&t, stdout);
}

static void show_versions(const struct call *c)
{
    static const char *const headings[] = {">VERSION", "",        "DIGEST", ">RANK",
                                           ">SIZE",    "CREATED", "PATH",   NULL};
    const json_t *data = json_object_get(c->answer, "data");
    struct client_table t = {headings};
    for (size_t i = 0; i < json_array_size(data); i++) {
        const json_t *v = json_array_get(data, i);
        const char *digest = text(v, "digest");
        char size[16], made[32];
        client_cellf(&t, "%lld", number(v, "version"));
        client_cell(&t, json_is_true(json_object_get(v, "current")) ? "current" : " ");
        client_cellf(&t, "%.12s", digest ? digest : "");
        client_cellf(&t, "%lld", number(v, "rank"));
        client_cell(&t, progress_bytes((uint64_t)number(v, "bytes"), size, sizeof size));
        client_cell(&t, when(number(v, "created"), made, sizeof made));
        client_cell(&t, text(v, "path"));
    }
    client_table_print(&t, stdout);
}

/* Every member of the answer on a line of its own. */
static void show_one(const struct call *c)
{
    const char *key;
    json_t *v;
    json_object_foreach(c->answer, key, v)
    {
        char time[32];
        char *other = json_is_string(v) ? NULL : json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        bool is_time = strcmp(key, "created") == 0 || strcmp(key, "last_used") == 0;
        printf("%-12s %s\n", key,
               is_time && json_is_integer(v) ? when(json_integer_value(v), time, sizeof time)
               : other                       ? other
                                             : json_string_value(v));
        free(other);
    }
}

/* "sql: version 2, rank 16, 4.2 MB, resident" */
static void show_line(const struct call *c)
{
    const char *error = text(c->answer, "error");
    char size[16];
    printf("%s: version %lld, rank %lld, %s, %s%s%s\n", text(c->answer, "name"),
           number(c->answer, "version"), number(c->answer, "rank"),
           progress_bytes((uint64_t)number(c->answer, "bytes"), size, sizeof size),
           text(c->answer, "state"), error ? ": " : "", error ? error : "");
}

static void show_alias(const struct call *c)
{
    printf("%s -> %s", text(c->answer, "alias"), text(c->answer, "adapter"));
    if (number(c->answer, "version"))
        printf(" version %lld", number(c->answer, "version"));
    puts("");
}

static void show_users(const struct call *c)
{
    const json_t *data = json_object_get(c->answer, "data");
    for (size_t i = 0; i < json_array_size(data); i++) {
        const json_t *row = json_array_get(data, i);
        printf("%s -> %s on %s\n", text(row, "user"), text(row, "adapter"),
               text(row, "base_model"));
    }
}

static void show_nothing(const struct call *c)
{
}

/* ---- asking ---- */

static void add_query(struct buf *path, const char *name, const char *value)
{
    if (!value)
        return;
    buf_addf(path, "%c%s=", strchr(buf_str(path), '?') ? '&' : '?', name);
    client_escape(path, value);
}

static int ask_list(struct call *c, struct err *e)
{
    add_query(&c->path, "base", c->o->base);
    add_query(&c->path, "owner", c->o->owner);
    add_query(&c->path, "label", c->o->label);
    add_query(&c->path, "state", c->o->state);
    return 0;
}

/* "team=data,stage=test" */
static json_t *labels_of(const char *list, struct err *e)
{
    json_t *labels = json_object();
    for (const char *p = list; *p; p += *p == ',') {
        size_t n = strcspn(p, ",");
        const char *equals = memchr(p, '=', n);
        size_t n_key = equals ? (size_t)(equals - p) : 0;
        json_t *value = equals ? json_stringn(equals + 1, n - n_key - 1) : NULL;
        if (!n_key || !value || json_object_setn_new(labels, p, n_key, value)) {
            err_param(e, ERR_INVALID, "labels", "--labels: \"%s\" is not like KEY=VALUE,...", list);
            json_decref(labels);
            return NULL;
        }
        p += n;
    }
    return labels;
}

static void set_text(json_t *body, const char *key, const char *value)
{
    if (value)
        json_object_set_new(body, key, json_string(value));
}

static int ask_add(struct call *c, struct err *e)
{
    /* what stands here under that name is meant, else the server looks below its root */
    char *here = realpath(c->words[1], NULL);
    c->body = json_object();
    set_text(c->body, "name", c->words[0]);
    set_text(c->body, "path", here ? here : c->words[1]);
    set_text(c->body, "base_model", c->o->base);
    set_text(c->body, "owner", c->o->owner);
    free(here);
    if (c->o->pin)
        json_object_set_new(c->body, "pin", json_true());
    if (!c->o->labels)
        return 0;
    json_t *labels = labels_of(c->o->labels, e);
    return json_object_set_new(c->body, "labels", labels) ? ERR_INVALID : 0;
}

/* alias ALIAS NAME, assign USER NAME */
static int ask_alias(struct call *c, struct err *e)
{
    c->body = json_object();
    set_text(c->body, "adapter", c->words[1]);
    if (c->o->version)
        json_object_set_new(c->body, "version", json_integer(c->o->version));
    return 0;
}

static int ask_rollback(struct call *c, struct err *e)
{
    c->body = json_object();
    if (c->o->version)
        json_object_set_new(c->body, "version", json_integer(c->o->version));
    return 0;
}

/* ---- the verbs ---- */

struct verb {
    const char *name, *args;
    int n_args; /* names after the verb, all needed */
    const char *method;
    const char *path, *after;                  /* around the first argument, if `after` is set */
    int (*ask)(struct call *c, struct err *e); /* adds to the path, makes the body; may be NULL */
    void (*show)(const struct call *c);
};

static const struct verb verbs[] = {
    {"add", "NAME PATH", 2, "POST", "/v1/adapters", NULL, ask_add, show_line},
    {"list", "", 0, "GET", "/v1/adapters", NULL, ask_list, show_list},
    {"show", "NAME", 1, "GET", "/v1/adapters/", "", NULL, show_one},
    {"load", "NAME", 1, "POST", "/v1/adapters/", "/load", NULL, show_line},
    {"unload", "NAME", 1, "POST", "/v1/adapters/", "/unload", NULL, show_line},
    {"pin", "NAME", 1, "POST", "/v1/adapters/", "/pin", NULL, show_line},
    {"unpin", "NAME", 1, "POST", "/v1/adapters/", "/unpin", NULL, show_line},
    {"versions", "NAME", 1, "GET", "/v1/adapters/", "/versions", NULL, show_versions},
    {"rollback", "NAME", 1, "POST", "/v1/adapters/", "/rollback", ask_rollback, show_line},
    {"rm", "NAME", 1, "DELETE", "/v1/adapters/", "", NULL, show_nothing},
    {"alias", "ALIAS NAME", 2, "PUT", "/v1/adapters/aliases/", "", ask_alias, show_alias},
    {"assign", "USER NAME", 2, "PUT", "/v1/users/", "/adapter", ask_alias, show_users},
    {"unassign", "USER", 1, "DELETE", "/v1/users/", "/adapter", NULL, show_nothing},
    {"unalias", "ALIAS", 1, "DELETE", "/v1/adapters/aliases/", "", NULL, show_nothing},
};

static const struct verb *find_verb(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
        if (strcmp(verbs[i].name, name) == 0)
            return &verbs[i];
    return NULL;
}

static int carry_out(const struct verb *v, struct call *c, struct err *e)
{
    buf_adds(&c->path, v->path);
    if (v->after) {
        client_escape(&c->path, c->words[0]);
        buf_adds(&c->path, v->after);
    }
    int rc = v->ask ? v->ask(c, e) : 0;
    if (!rc)
        rc = client_call(&c->o->client, v->method, c->path.data, c->body, &c->answer, e);
    if (!rc && c->o->client.json)
        client_print_json(c->answer);
    else if (!rc)
        v->show(c);
    json_decref(c->body);
    json_decref(c->answer);
    buf_release(&c->path);
    return rc;
}

static int run(const struct command *command, int argc, char **argv)
{
    struct adapter_options o = {0};
    struct arena arena = {0};
    struct err e = {0};
    int n_words, status = cli_options(command, &o, &arena, argc, argv, 3, &n_words);
    if (status < 0) {
        const struct verb *v = n_words ? find_verb(argv[0]) : NULL;
        struct call c = {.o = &o, .words = argv + 1};
        status = EXIT_OK;
        if (!n_words)
            err_set(&e, ERR_INVALID, "what about adapters? terrace adapter --help lists the verbs");
        else if (!v)
            err_set(&e, ERR_INVALID, "there is no verb \"%s\"; terrace adapter --help lists them",
                    argv[0]);
        else if (n_words - 1 != v->n_args)
            err_set(&e, ERR_INVALID, "use terrace adapter %s %s", v->name, v->args);
        if (e.code) {
            cli_fail(command, &e);
            status = EXIT_USAGE;
        } else if (carry_out(v, &c, &e)) {
            status = cli_fail(command, &e);
        }
    }
    arena_release(&arena);
    return status;
}

const struct command cmd_adapter = {
    .name = "adapter",
    .usage = "terrace adapter VERB [NAME ...] [OPTIONS]",
    .summary = "manage the adapters of a running server",
    .details =
        "  add NAME PATH      register a PEFT directory or a GGUF file, or a new version of it\n"
        "  list               all of them, or those that --base, --owner, --label, --state name\n"
        "  show NAME          everything that is known of one\n"
        "  load NAME          bring it into memory now; otherwise its first request does\n"
        "  unload NAME        out of memory; requests under way keep what they began with\n"
        "  pin NAME, unpin NAME   keep it in memory, or let it go when others need the room\n"
        "  versions NAME      what was registered under the name\n"
        "  rollback NAME      back to the version before, or to --version\n"
        "  rm NAME            forget it and its versions; its files stay\n"
        "  alias ALIAS NAME   another name (support@prod), moved in one step; --version holds it\n"
        "  unalias ALIAS      forget that name\n"
        "  assign USER NAME   requests of that user get it unless they choose another\n"
        "  unassign USER      take it back\n\n"
        "  terrace adapter add sql ./sql-lora --labels team=data\n"
        "  curl http://127.0.0.1:11403/v1/chat/completions -d '{\"model\": \"sql\",\n"
        "    \"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'\n",
    .opts = opts,
    .run = run,
};
