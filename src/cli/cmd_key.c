/* cmd_key.c - terrace key: the keys of a service, in its database. A server that runs on the same
 * database notices within a second. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "store/db.h"
#include "store/keys.h"
#include "store/usage.h"

struct key_options {
    const char *state_dir, *tenant, *models, *tiers, *adapters;
    int role;
    struct quota quota;
    int64_t expires_ms, grace_ms;
    bool json;
};

#define AT(field) offsetof(struct key_options, field)
static const struct opt opts[] = {
    {"state-dir", OPT_STR, AT(state_dir), NULL, "DIR",
     "The service's --state-dir. The default is ~/.terrace/state."},
    {"role", OPT_ENUM, AT(role), "user", "ROLE",
     "user: generate, and see the tenant's own. metrics: read /metrics. admin: everything.",
     .choices = role_names},
    {"tenant", OPT_STR, AT(tenant), NULL, "NAME",
     "Keys of one tenant share cache, personas and usage; others never do. The default is "
     "\"default\"."},
    {"models", OPT_STR, AT(models), NULL, "PATTERNS",
     "Models that the key may use, as in 'phi3*,smollm2:135m'. The default is all."},
    {"tiers", OPT_STR, AT(tiers), NULL, "PATTERNS", "Tiers that it may use."},
    {"adapters", OPT_STR, AT(adapters), NULL, "PATTERNS", "Adapters that it may name."},
    {"expires", OPT_MS, AT(expires_ms), "0", "TIME",
     "How long it is good for, as in 720h; 0 is for good.", .min = 0, .max = 1e13},
    {"rpm", OPT_INT, AT(quota.requests_per_minute), "0", "N", "Requests a minute; 0 is no limit.",
     .min = 0, .max = 1e12},
    {"tpm", OPT_INT, AT(quota.tokens_per_minute), "0", "N",
     "Tokens a minute, prompts and answers; 0 is no limit.", .min = 0, .max = 1e12},
    {"concurrency", OPT_INT, AT(quota.concurrency), "0", "N", "Requests at once; 0 is no limit.",
     .min = 0, .max = 1e12},
    {"daily-tokens", OPT_INT, AT(quota.tokens_per_day), "0", "N",
     "Tokens a day (UTC); 0 is no limit.", .min = 0, .max = 1e12},
    {"grace", OPT_MS, AT(grace_ms), "0", "TIME",
     "rotate: how long the old text still opens, so that clients can change.", .min = 0,
     .max = 1e11},
    {"json", OPT_BOOL, AT(json), NULL, NULL, "Print JSON instead of a table.", .cli_only = true},
    {NULL},
};

/* ---- what is shown ---- */

static const char *state_of(const struct key *k)
{
    if (k->revoked)
        return "revoked";
    return k->expires && k->expires <= clock_unix_s() ? "expired" : "good";
}

static void show_time(struct client_table *t, int64_t at)
{
    char text[32];
    time_t s = (time_t)at;
    struct tm tm;
    gmtime_r(&s, &tm);
    strftime(text, sizeof text, "%Y-%m-%d %H:%M", &tm);
    client_cell(t, at ? text : "");
}

static void show_count(struct client_table *t, int64_t n)
{
    if (n)
        client_cellf(t, "%" PRId64, n);
    else
        client_cell(t, "");
}

static void print_table(const struct key *keys, size_t n)
{
    static const char *const headings[] = {
        ">ID",  "NAME",     "KEY",           "ROLE",          "TENANT",          "STATE", ">RPM",
        ">TPM", ">AT ONCE", ">DAILY TOKENS", "EXPIRES (UTC)", "LAST USED (UTC)", NULL};
    struct client_table t = {.headings = headings};
    for (size_t i = 0; i < n; i++) {
        const struct key *k = &keys[i];
        client_cellf(&t, "%" PRId64, k->id);
        client_cell(&t, k->name);
        client_cellf(&t, "%s...", k->prefix);
        client_cell(&t, role_names[k->role]);
        client_cell(&t, k->tenant);
        client_cell(&t, state_of(k));
        show_count(&t, k->quota.requests_per_minute);
        show_count(&t, k->quota.tokens_per_minute);
        show_count(&t, k->quota.concurrency);
        show_count(&t, k->quota.tokens_per_day);
        show_time(&t, k->expires);
        show_time(&t, k->last_used);
    }
    client_table_print(&t, stdout);
}

static void write_key(struct jw *w, const struct key *k)
{
    jw_obj(w);
    jw_kint(w, "id", k->id);
    jw_kstr(w, "name", k->name);
    jw_kstr(w, "prefix", k->prefix);
    jw_kstr(w, "role", role_names[k->role]);
    jw_kstr(w, "tenant", k->tenant);
    jw_kstr(w, "state", state_of(k));
    jw_kstr(w, "models", k->models);
    jw_kstr(w, "tiers", k->tiers);
    jw_kstr(w, "adapters", k->adapters);
    jw_kint(w, "rpm", k->quota.requests_per_minute);
    jw_kint(w, "tpm", k->quota.tokens_per_minute);
    jw_kint(w, "concurrency", k->quota.concurrency);
    jw_kint(w, "daily_tokens", k->quota.tokens_per_day);
    jw_kint(w, "created", k->created);
    jw_kint(w, "expires", k->expires);
    jw_kint(w, "revoked", k->revoked);
    jw_kint(w, "last_used", k->last_used);
    jw_obj_end(w);
}

static void print_json(const struct key *keys, size_t n)
{
    struct buf b = {0};
    struct jw w;
    jw_init(&w, &b);
    jw_arr(&w);
    for (size_t i = 0; i < n; i++)
        write_key(&w, &keys[i]);
    jw_arr_end(&w);
    jw_done(&w);
    puts(b.data);
    buf_release(&b);
}

static void print_keys(const struct key_options *o, const struct key *keys, size_t n)
{
    if (o->json)
        print_json(keys, n);
    else
        print_table(keys, n);
}

/* The only moment at which anybody sees it; alone on standard output, so that scripts can take it.
 */
static void print_secret(char secret[KEY_TEXT_BYTES + 1])
{
    fprintf(stderr, "This is shown once and cannot be found again:\n");
    puts(secret);
    explicit_bzero(secret, KEY_TEXT_BYTES);
}

/* ---- what it does ---- */

typedef int action_fn(struct db *d, const struct key_options *o, const char *ref, struct err *e);

/* Its place in the books: the command line needs no key, so there is no name. */
static int note(struct db *d, const char *action, const char *ref, struct err *e)
{
    struct buf text = {0};
    buf_addf(&text, "key %s %s", action, ref);
    struct audit_row row = {
        .at = clock_unix_s(), .name = "", .address = "cli", .action = text.data};
    int rc = db_begin(d, DB_WRITE, e);
    if (!rc)
        rc = db_end(d, audit_add(d, &row, e), e);
    buf_release(&text);
    return rc;
}

static int create(struct db *d, const struct key_options *o, const char *ref, struct err *e)
{
    char secret[KEY_TEXT_BYTES + 1];
    int64_t id;
    struct key_spec spec = {
        .name = ref,
        .tenant = o->tenant,
        .role = (enum role)o->role,
        .models = o->models,
        .tiers = o->tiers,
        .adapters = o->adapters,
        .quota = o->quota,
        .expires = o->expires_ms ? clock_unix_s() + o->expires_ms / 1000 : 0,
    };
    int rc = keys_create(d, &spec, secret, &id, e);
    if (!rc)
        print_secret(secret);
    return rc;
}

static int list(struct db *d, const struct key_options *o, const char *ref, struct err *e)
{
    struct key_list l;
    int rc = keys_list(d, &l, e);
    if (!rc) {
        print_keys(o, l.keys, l.n);
        key_list_release(&l);
    }
    return rc;
}

static int show(struct db *d, const struct key_options *o, const char *ref, struct err *e)
{
    struct key k = {0};
    int rc = keys_find(d, ref, &k, e);
    if (!rc)
        print_keys(o, &k, 1);
    key_release(&k);
    return rc;
}

static int revoke(struct db *d, const struct key_options *o, const char *ref, struct err *e)
{
    return keys_revoke(d, ref, e);
}

static int rotate(struct db *d, const struct key_options *o, const char *ref, struct err *e)
{
    char secret[KEY_TEXT_BYTES + 1];
    int rc = keys_rotate(d, ref, o->grace_ms / 1000, secret, e);
    if (!rc)
        print_secret(secret);
    return rc;
}

static const struct action {
    const char *name;
    action_fn *run;
    bool needs_key, changes;
} actions[] = {
    {"create", create, true, true}, {"list", list, false, false},   {"show", show, true, false},
    {"revoke", revoke, true, true}, {"rotate", rotate, true, true},
};

static const struct action *action_named(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(actions); i++)
        if (name && strcmp(actions[i].name, name) == 0)
            return &actions[i];
    return NULL;
}

static int act(const struct key_options *o, const struct action *a, const char *ref,
               struct arena *arena, struct err *e)
{
    struct db *d = NULL;
    int rc = cli_open_database(&d, cli_state_dir(arena, o->state_dir), false, e);
    if (!rc)
        rc = a->run(d, o, ref, e);
    if (!rc && a->changes)
        rc = note(d, a->name, ref, e);
    db_close(d);
    return rc;
}

static int run(const struct command *c, int argc, char **argv)
{
    struct key_options o = {0};
    struct arena arena = {0};
    struct err e = {0};
    int n_words, status = cli_options(c, &o, &arena, argc, argv, 2, &n_words);
    if (status < 0) {
        const struct action *a = action_named(n_words > 0 ? argv[0] : NULL);
        status = EXIT_USAGE;
        if (!a)
            err_set(&e, ERR_INVALID, "say create, list, show, revoke or rotate");
        else if (a->needs_key && n_words < 2)
            err_set(&e, ERR_INVALID, "terrace key %s needs the name of a key", a->name);
        else
            status = act(&o, a, n_words > 1 ? argv[1] : "", &arena, &e) ? EXIT_FAILED : EXIT_OK;
        if (status != EXIT_OK)
            cli_fail(c, &e);
    }
    arena_release(&arena);
    return status;
}

const struct command cmd_key = {
    .name = "key",
    .usage = "terrace key create NAME | list | show KEY | revoke KEY | rotate KEY [OPTIONS]",
    .summary = "make, list and revoke API keys",
    .details =
        "Once there is a key, every request needs one, and the service may listen on addresses "
        "that\n"
        "other machines reach. KEY is a name, an id or the first characters that list shows. A\n"
        "running server with the same --state-dir notices within a second.\n\n"
        "  terrace key create alice --tenant acme --rpm 60 --tpm 40000\n"
        "  curl -H \"Authorization: Bearer $KEY\" http://127.0.0.1:11403/v1/models\n",
    .opts = opts,
    .run = run,
};
