#include "server/books.h"

#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/bill.h"
#include "store/ledger.h"

struct new_keys {
    struct server *server;
    struct key_list keys;
};

static void take_keys(void *arg)
{
    struct new_keys *n = arg;
    auth_set_keys(n->server->auth, &n->keys);
    server_changed(n->server);
    key_list_release(&n->keys);
    free(n);
}

/* On the ledger's thread. If the keys cannot be read the old ones stay. */
static void keys_changed(struct db *d, void *arg)
{
    struct server *s = arg;
    struct new_keys *n = xcalloc(1, sizeof *n);
    struct err e = {0};
    n->server = s;
    if (keys_list(d, &n->keys, &e)) {
        log_error("server", "the keys stay as they were: %s", e.msg);
        free(n);
        return;
    }
    http_loop_post(s->loop, take_keys, n);
}

int books_open(struct server *s, struct err *e)
{
    struct key_list keys;
    if (!s->opts.db)
        return 0;
    int rc = keys_list(s->opts.db, &keys, e);
    if (rc)
        return rc;
    auth_set_keys(s->auth, &keys);
    key_list_release(&keys);
    rc = bills_restore(s, e);
    if (rc)
        return rc;
    s->ledger = ledger_new(s->opts.db, keys_changed, s);
    return 0;
}

void books_close(struct server *s)
{
    ledger_free(s->ledger);
    s->ledger = NULL;
}
