/* The registry against a twin of plain arrays: the same random changes, errors included, the same
 * contents after each, after reopening, and after kill -9 at random moments. */
#define _GNU_SOURCE /* mkdtemp */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "program.h"
#include "store/db.h"
#include "store/registry.h"

enum { NAMES = 5, ALIASES = 5, USERS = 3, BASES = 2, MOST_VERSIONS = 2000 };

static const char *const names[NAMES] = {"pirate", "org/legal", "a.b_c-d", "fr", "tenant/x/y"};
static const char *const aliases[ALIASES] = {"support@prod", "support@test", "best", "fr",
                                             "pirate@2"};
static const char *const users[USERS] = {"ana", "b\xc3\xb6rje", "c:d@e"};
static const char *const bases[BASES] = {"smollm2:135m", "phi3"};

struct twin_version {
    bool there;
    int content; /* first byte of the digest */
    char source[16];
};

struct twin_entry {
    bool there, pinned;
    int base, current, newest;
    char owner[16], labels[32];
    uint64_t uses;
    struct twin_version versions[MOST_VERSIONS + 1]; /* from 1 */
};

struct twin_link {
    bool there;
    int name, version;
};

struct twin {
    struct twin_entry entries[NAMES];
    struct twin_link aliases[ALIASES];
    struct twin_link users[USERS][BASES];
};

enum plant { PLANT_NOTHING, PLANT_NUMBER, PLANT_ALIAS };

struct program {
    struct twin *twin;
    struct db *db;
    struct registry *registry; /* NULL: the twin alone, to replay */
    struct rng rng;
    enum plant plant;
    char why[256];
};

/* ---- the twin's rules: 0 or the error that is due ---- */

static int twin_count(const struct twin_entry *t)
{
    int n = 0;
    for (int v = 1; v <= t->newest; v++)
        n += t->versions[v].there;
    return n;
}

static bool twin_aliased(const struct twin *w, int name, int version)
{
    bool any = false;
    for (int a = 0; a < ALIASES; a++)
        any = any || (w->aliases[a].there && w->aliases[a].name == name &&
                      w->aliases[a].version == version);
    return any;
}

static void twin_drop_old(struct twin *w, int name)
{
    struct twin_entry *t = &w->entries[name];
    int n = twin_count(t) + 1;
    for (int v = 1; v <= t->newest && n > REGISTRY_MAX_VERSIONS; v++) {
        if (!t->versions[v].there || twin_aliased(w, name, v))
            continue;
        t->versions[v].there = false;
        n--;
    }
}

static int twin_add(struct twin *w, int name, int base, int content, const char *source,
                    bool replace, int *version)
{
    struct twin_entry *t = &w->entries[name];
    for (int a = 0; a < ALIASES; a++)
        if (w->aliases[a].there && strcmp(aliases[a], names[name]) == 0)
            return ERR_EXISTS;
    if (t->there && !replace)
        return ERR_EXISTS;
    if (t->there && t->base != base)
        return ERR_INVALID;
    if (!t->there)
        *t = (struct twin_entry){.there = true, .base = base, .labels = "{}"};
    if (t->current && t->versions[t->current].content == content) {
        *version = t->current;
    } else {
        twin_drop_old(w, name);
        t->current = *version = ++t->newest;
        t->versions[*version] = (struct twin_version){.there = true, .content = content};
    }
    strcpy(t->versions[*version].source, source);
    return 0;
}

static int twin_remove(struct twin *w, int name)
{
    if (!w->entries[name].there)
        return ERR_NOTFOUND;
    w->entries[name].there = false;
    for (int a = 0; a < ALIASES; a++)
        if (w->aliases[a].name == name)
            w->aliases[a].there = false;
    for (int u = 0; u < USERS; u++)
        for (int b = 0; b < BASES; b++)
            if (w->users[u][b].name == name)
                w->users[u][b].there = false;
    return 0;
}

static int twin_rollback(struct twin *w, int name, int version, int *now)
{
    struct twin_entry *t = &w->entries[name];
    if (!t->there)
        return ERR_NOTFOUND;
    for (int v = t->current - 1; !version && v >= 1; v--)
        if (t->versions[v].there)
            version = v;
    if (!version || version > t->newest || !t->versions[version].there)
        return ERR_NOTFOUND;
    t->current = *now = version;
    return 0;
}

static int twin_alias(struct twin *w, int alias, int name, int version)
{
    const struct twin_entry *t = &w->entries[name];
    if (strcmp(aliases[alias], "pirate@2") == 0)
        return ERR_INVALID;
    for (int i = 0; i < NAMES; i++)
        if (w->entries[i].there && strcmp(names[i], aliases[alias]) == 0)
            return ERR_EXISTS;
    if (!t->there || (version && (version > t->newest || !t->versions[version].there)))
        return ERR_NOTFOUND;
    w->aliases[alias] = (struct twin_link){true, name, version};
    return 0;
}

static int twin_take(struct twin *w, int user, int base)
{
    bool any = false;
    for (int b = 0; b < BASES; b++) {
        if (base >= 0 && b != base)
            continue;
        any = any || w->users[user][b].there;
        w->users[user][b].there = false;
    }
    return any ? 0 : ERR_NOTFOUND;
}

/* ---- both ---- */

#define BOTH(what, due, call)                                                                      \
    do {                                                                                           \
        struct err e_ = {0};                                                                       \
        struct err *e = &e_;                                                                       \
        int wanted = (due), got = p->registry ? (call) : wanted;                                   \
        if (got != wanted)                                                                         \
            DIFFER(p->why, "%s: %d, due is %d: %s", what, got, wanted, e_.msg);                    \
    } while (0)

static const char *op_add(struct program *p)
{
    int name = (int)rng_below(&p->rng, NAMES), base = (int)rng_below(&p->rng, 8) == 0;
    int content = (int)rng_below(&p->rng, 6), version = 0, twins = 0;
    bool replace = rng_below(&p->rng, 4) > 0;
    uint8_t digest[REGISTRY_DIGEST_BYTES] = {(uint8_t)content};
    char source[16];
    snprintf(source, sizeof source, "/a/%d", (int)rng_below(&p->rng, 3));
    struct registry_spec s = {.name = names[name],
                              .base = bases[base],
                              .source = source,
                              .format = "peft",
                              .trained_on = "",
                              .pinned = -1,
                              .rank = content + 1,
                              .bytes = (uint64_t)content * 1000,
                              .digest = digest,
                              .replace = replace};
    BOTH("add", twin_add(p->twin, name, base, content, source, replace, &twins),
         registry_add(p->registry, &s, &version, e));
    if (p->registry && version != twins)
        DIFFER(p->why, "add: version %d, due is %d", version, twins);
    return NULL;
}

static const char *op_remove(struct program *p)
{
    int name = (int)rng_below(&p->rng, NAMES);
    BOTH("remove", twin_remove(p->twin, name), registry_remove(p->registry, names[name], e));
    return NULL;
}

static const char *op_change(struct program *p)
{
    static const char *const labels[] = {"{\"a\": \"1\"}", "[]", "{\"a\": 1}", NULL};
    int name = (int)rng_below(&p->rng, NAMES), pick = (int)rng_below(&p->rng, 4);
    int pinned = (int)rng_below(&p->rng, 3) - 1;
    const char *owner = rng_below(&p->rng, 2) ? "team" : NULL;
    struct twin_entry *t = &p->twin->entries[name];
    int due = !t->there ? ERR_NOTFOUND : pick == 1 || pick == 2 ? ERR_INVALID : 0;
    if (!due && labels[pick])
        strcpy(t->labels, labels[pick]);
    if (!due && owner)
        strcpy(t->owner, owner);
    if (!due && pinned >= 0)
        t->pinned = pinned;
    BOTH("change", due, registry_change(p->registry, names[name], owner, labels[pick], pinned, e));
    return NULL;
}

static const char *op_rollback(struct program *p)
{
    int name = (int)rng_below(&p->rng, NAMES), now = 0, twins = 0;
    int version = rng_below(&p->rng, 2) ? 0 : 1 + (int)rng_below(&p->rng, 12);
    BOTH("rollback", twin_rollback(p->twin, name, version, &twins),
         registry_rollback(p->registry, names[name], version, &now, e));
    if (p->registry && twins && now != twins)
        DIFFER(p->why, "rollback: version %d, due is %d", now, twins);
    return NULL;
}

static const char *op_alias(struct program *p)
{
    int alias = (int)rng_below(&p->rng, ALIASES), name = (int)rng_below(&p->rng, NAMES);
    int version = rng_below(&p->rng, 2) ? 0 : 1 + (int)rng_below(&p->rng, 12);
    BOTH("alias", twin_alias(p->twin, alias, name, version),
         registry_alias(p->registry, aliases[alias], names[name], version, e));
    if (p->plant == PLANT_ALIAS && p->twin->aliases[0].version == 2)
        p->twin->aliases[0].version = 0;
    return NULL;
}

static const char *op_unalias(struct program *p)
{
    int alias = (int)rng_below(&p->rng, ALIASES);
    int due = p->twin->aliases[alias].there ? 0 : ERR_NOTFOUND;
    p->twin->aliases[alias].there = false;
    BOTH("unalias", due, registry_unalias(p->registry, aliases[alias], e));
    return NULL;
}

static const char *op_give(struct program *p)
{
    int user = (int)rng_below(&p->rng, USERS), name = (int)rng_below(&p->rng, NAMES);
    const struct twin_entry *t = &p->twin->entries[name];
    if (t->there)
        p->twin->users[user][t->base] = (struct twin_link){true, name, 0};
    BOTH("give", t->there ? 0 : ERR_NOTFOUND,
         registry_give(p->registry, users[user], names[name], e));
    return NULL;
}

static const char *op_take(struct program *p)
{
    int user = (int)rng_below(&p->rng, USERS), base = (int)rng_below(&p->rng, BASES + 1) - 1;
    BOTH("take", twin_take(p->twin, user, base),
         registry_take(p->registry, users[user], base < 0 ? NULL : bases[base], e));
    return NULL;
}

static const char *op_use(struct program *p)
{
    int name = (int)rng_below(&p->rng, NAMES);
    p->twin->entries[name].uses += p->twin->entries[name].there;
    if (p->registry) {
        registry_used(p->registry, names[name]);
        BOTH("save", 0, registry_save(p->registry, e));
    }
    return NULL;
}

static const char *step(struct program *p)
{
    static const char *(*const ops[])(struct program *) = {
        op_add,     op_add,  op_add,  op_add,  op_remove, op_change, op_alias,   op_alias,
        op_unalias, op_give, op_give, op_take, op_use,    op_use,    op_rollback};
    return ops[rng_below(&p->rng, ARRAY_LEN(ops))](p);
}

/* ---- comparing ---- */

static int by_text(const void *a, const void *b)
{
    return strcmp(names[*(const int *)a], names[*(const int *)b]);
}

static void twin_dump(const struct twin *w, struct buf *out)
{
    int order[NAMES];
    for (int i = 0; i < NAMES; i++)
        order[i] = i;
    qsort(order, NAMES, sizeof *order, by_text);
    for (int i = 0; i < NAMES; i++) {
        const struct twin_entry *t = &w->entries[order[i]];
        if (!t->there)
            continue;
        buf_addf(out, "%s %s %d '%s' %s %d %d:", names[order[i]], bases[t->base], t->current,
                 t->owner, t->labels, t->pinned, (int)t->uses);
        for (int v = 1; v <= t->newest; v++)
            if (t->versions[v].there)
                buf_addf(out, " %d=%d%s", v, t->versions[v].content, t->versions[v].source);
        buf_addc(out, '\n');
    }
    for (int a = 0; a < ALIASES; a++)
        if (w->aliases[a].there)
            buf_addf(out, "%s->%s@%d\n", aliases[a], names[w->aliases[a].name],
                     w->aliases[a].version);
    for (int u = 0; u < USERS; u++)
        for (int b = 0; b < BASES; b++)
            if (w->users[u][b].there)
                buf_addf(out, "%s on %s->%s\n", users[u], bases[b], names[w->users[u][b].name]);
}

/* The registry's links in the twin's order. */
static void dump_links(struct registry *r, struct buf *out)
{
    struct registry_links l;
    registry_aliases(r, NULL, &l);
    for (int a = 0; a < ALIASES; a++)
        for (size_t i = 0; i < l.n; i++)
            if (strcmp(l.links[i].from, aliases[a]) == 0)
                buf_addf(out, "%s->%s@%d\n", aliases[a], l.links[i].name, l.links[i].version);
    registry_links_release(&l);
    for (int u = 0; u < USERS; u++) {
        registry_users(r, users[u], &l);
        for (int b = 0; b < BASES; b++)
            for (size_t i = 0; i < l.n; i++)
                if (strcmp(l.links[i].base, bases[b]) == 0)
                    buf_addf(out, "%s on %s->%s\n", users[u], bases[b], l.links[i].name);
        registry_links_release(&l);
    }
}

static void dump(struct registry *r, struct buf *out)
{
    struct registry_list l;
    registry_list(r, &l);
    for (size_t i = 0; i < l.n; i++) {
        const struct registry_entry *x = &l.entries[i];
        buf_addf(out, "%s %s %d '%s' %s %d %d:", x->name, x->base, x->current, x->owner, x->labels,
                 x->pinned, (int)x->uses);
        for (size_t v = 0; v < x->n_versions; v++)
            buf_addf(out, " %d=%d%s", x->versions[v].version, x->versions[v].digest[0],
                     x->versions[v].source);
        buf_addc(out, '\n');
    }
    registry_list_release(&l);
    dump_links(r, out);
}

static const char *compare(struct program *p)
{
    struct buf a = {0}, b = {0};
    dump(p->registry, &a);
    twin_dump(p->twin, &b);
    bool same = strcmp(buf_str(&a), buf_str(&b)) == 0;
    if (!same)
        snprintf(p->why, sizeof p->why, "is\n%.110s\ndue\n%.110s", buf_str(&a), buf_str(&b));
    buf_release(&a);
    buf_release(&b);
    return same ? NULL : p->why;
}

/* What a reference leads to, by the twin. */
static bool twin_resolve(const struct twin *w, const char *ref, int *name, int *version)
{
    char copy[300], *at;
    snprintf(copy, sizeof copy, "%s", ref);
    for (int i = 0; i < NAMES; i++)
        if (w->entries[i].there && strcmp(names[i], ref) == 0)
            return *name = i, *version = w->entries[i].current, true;
    for (int a = 0; a < ALIASES; a++)
        if (w->aliases[a].there && strcmp(aliases[a], ref) == 0) {
            const struct twin_entry *t = &w->entries[ *name = w->aliases[a].name];
            *version = w->aliases[a].version ? w->aliases[a].version : t->current;
            return t->versions[*version].there;
        }
    at = strrchr(copy, '@');
    if (!at)
        return false;
    *at = 0;
    *version = atoi(at + 1);
    for (int i = 0; i < NAMES; i++)
        if (w->entries[i].there && strcmp(names[i], copy) == 0)
            return *name = i, *version >= 1 && *version <= w->entries[i].newest &&
                                  w->entries[i].versions[*version].there;
    return false;
}

static const char *check_reference(struct program *p)
{
    struct registry_ref ref;
    char text[128], full[160];
    int kind = (int)rng_below(&p->rng, 3), name = 0, version = 0;
    if (kind == 0)
        snprintf(text, sizeof text, "%s", names[rng_below(&p->rng, NAMES)]);
    else if (kind == 1)
        snprintf(text, sizeof text, "%s", aliases[rng_below(&p->rng, ALIASES)]);
    else
        snprintf(text, sizeof text, "%s@%d", names[rng_below(&p->rng, NAMES)],
                 (int)rng_below(&p->rng, 10));
    int base = (int)rng_below(&p->rng, BASES + 1);
    snprintf(full, sizeof full, base < BASES ? "%s:%s" : "%.0s%s", base < BASES ? bases[base] : "",
             text);
    bool due = twin_resolve(p->twin, text, &name, &version) &&
               (base == BASES || p->twin->entries[name].base == base);
    bool got = registry_resolve(p->registry, full, &ref, NULL) == 0;
    if (got != due)
        DIFFER(p->why, "%s: found %d, due is %d", full, got, due);
    if (!got)
        return NULL;
    bool same =
        strcmp(ref.name, names[name]) == 0 && ref.version == version &&
        ref.digest[0] == p->twin->entries[name].versions[version].content &&
        registry_reaches(p->registry, ref.name, ref.version) ==
            (version == p->twin->entries[name].current || twin_aliased(p->twin, name, version));
    registry_ref_release(&ref);
    if (!same)
        DIFFER(p->why, "%s leads elsewhere", full);
    return NULL;
}

/* ---- programs ---- */

static void close_all(struct program *p)
{
    registry_close(p->registry);
    db_close(p->db);
    p->registry = NULL;
    p->db = NULL;
}

static void open_all(struct program *p, const char *path)
{
    struct err e = {0};
    if (db_open(&p->db, path, true, &e) || registry_open(&p->registry, p->db, &e))
        fail_msg("%s", e.msg);
}

static const char *run(struct program *p, uint64_t seed, const char *path, int n)
{
    const char *why = NULL;
    rng_seed(&p->rng, seed);
    p->twin = xcalloc(1, sizeof *p->twin);
    open_all(p, path);
    for (int i = 0; i < n && !why; i++) {
        why = step(p);
        if (!why && p->plant == PLANT_NUMBER && i == 50)
            p->twin->entries[0].newest++;
        if (!why && path && i % 50 == 49) {
            close_all(p);
            open_all(p, path);
        }
        if (!why)
            why = compare(p);
        if (!why)
            why = check_reference(p);
    }
    close_all(p);
    free(p->twin);
    return why;
}

static char folder[64];

static int enter_folder(void **state)
{
    snprintf(folder, sizeof folder, "/tmp/terrace-registry-XXXXXX");
    return !mkdtemp(folder) || chdir(folder);
}

static int leave_folder(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return chdir("/") || system(command);
}

static void test_in_memory(void **state)
{
    for (uint64_t seed = 1; seed <= 60 / PROGRAM_SCALE; seed++) {
        struct program p = {0};
        const char *why = run(&p, seed, NULL, 600);
        if (why)
            fail_msg("seed %d: %s", (int)seed, why);
    }
}

static void test_in_a_file(void **state)
{
    struct program p = {0};
    const char *why = run(&p, 99, "terrace.db", 300);
    if (why)
        fail_msg("%s", why);
}

static void test_planted_bugs(void **state)
{
    for (enum plant plant = PLANT_NUMBER; plant <= PLANT_ALIAS; plant++) {
        int caught = 0;
        for (uint64_t seed = 1; seed <= 5; seed++) {
            struct program p = {.plant = plant};
            caught += run(&p, seed, NULL, 600) != NULL;
        }
        assert_true(caught > 0);
    }
}

/* ---- kill -9 ---- */

enum { KILLS = 200 / PROGRAM_SCALE, MOST_STEPS = 4000 };

/* Goes on with the program from step `from`, and tells each step that is over. */
static void run_until_killed(uint64_t seed, int from, int ack)
{
    struct program p = {.twin = xcalloc(1, sizeof *p.twin)};
    struct err e = {0};
    rng_seed(&p.rng, seed);
    for (int i = 0; i < from; i++)
        step(&p);
    if (db_open(&p.db, "terrace.db", true, &e) || registry_open(&p.registry, p.db, &e))
        _exit(1);
    for (int32_t i = from; i < MOST_STEPS; i++)
        if (step(&p) || write(ack, &i, sizeof i) != sizeof i)
            _exit(2);
    _exit(3);
}

static int kill_one(uint64_t seed, int from, struct rng *r)
{
    int fd[2], last = from - 1;
    int32_t got;
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(fd[0]);
        run_until_killed(seed, from, fd[1]);
    }
    close(fd[1]);
    for (uint64_t n = rng_below(r, 12); n && read(fd[0], &got, sizeof got) == sizeof got; n--)
        last = got;
    int64_t until = clock_ns() + (int64_t)rng_below(r, 3000000);
    while (clock_ns() < until)
        ;
    kill(pid, SIGKILL);
    int status;
    waitpid(pid, &status, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    while (read(fd[0], &got, sizeof got) == sizeof got)
        last = got;
    close(fd[0]);
    return last + 1; /* steps acknowledged */
}

/* How many steps of the program the file holds: all acknowledged ones, or one more. */
static int steps_held(uint64_t seed, int acked)
{
    struct program p = {.twin = xcalloc(1, sizeof *p.twin)};
    rng_seed(&p.rng, seed);
    for (int i = 0; i < acked; i++)
        step(&p);
    open_all(&p, "terrace.db");
    struct registry *r = p.registry;
    int held = acked;
    if (compare(&p)) {
        p.registry = NULL;
        step(&p);
        p.registry = r;
        const char *why = compare(&p);
        if (why)
            fail_msg("after %d steps: %s", acked, why);
        held++;
    }
    close_all(&p);
    free(p.twin);
    return held;
}

static void test_killed(void **state)
{
    struct rng r;
    int held = 0;
    rng_seed(&r, 5);
    for (int i = 0; i < KILLS; i++)
        held = steps_held(7, kill_one(7, held, &r));
    print_message("%d kills, %d changes\n", KILLS, held);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_in_memory),
        cmocka_unit_test_setup_teardown(test_in_a_file, enter_folder, leave_folder),
        cmocka_unit_test(test_planted_bugs),
        cmocka_unit_test_setup_teardown(test_killed, enter_folder, leave_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
