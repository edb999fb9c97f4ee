/* adapter_http.h - what the handlers of adapters share: changes on behalf of a client, and cards.
 *
 * A change outlives the client that asked for it: who leaves does not stop it. */
#pragma once

#include "api/adapter.h"
#include "server/adapters.h"
#include "server/service.h"

struct adapter_call {
    struct exchange *x; /* NULL: the client has gone */
    struct adapters *all;
    char *name;     /* of the adapter, as the request says it */
    char *what;     /* the alias or user that it is about, or NULL; owned */
    bool fresh;     /* ADD: nothing had the name before */
    bool then_load; /* ADD: bring it into memory too; what was fresh is forgotten if that fails */
    bool loading;
    /* It is over: answers x, which is there. */
    void (*over)(struct adapter_call *c, int rc, const struct err *e);
};

/* One change for x; its client leaving is not the end of it. adapter_call_do hands it over. */
struct adapter_call *adapter_call_new(struct exchange *x, const char *name,
                                      void (*over)(struct adapter_call *c, int rc,
                                                   const struct err *e));
void adapter_call_do(struct adapter_call *c, const struct adapters_op *op);
void adapter_call_gone(struct adapter_call *c); /* the client left */

/* What a client is told of one version (0: the current one), in memory of the arena and of entry.
 * `aliases` are all that may lead to it. */
struct adapter_card adapter_card_of(struct server *s, struct arena *a,
                                    const struct registry_entry *entry,
                                    const struct registry_links *aliases, int version);

/* Whether patterns of a key allow what a reference leads to: by the adapter's own name, whatever
 * the reference, or by that of the alias. */
bool adapter_allowed(struct server *s, const char *patterns, const char *reference);
/* What its key may not use, a client is not told of. */
bool adapter_visible(const struct exchange *x, const char *reference);

void adapter_write_metrics(struct server *s, struct buf *out);

/* The status that answers an error about an adapter: a damaged one is the client's mistake. */
int adapter_error_status(int rc);
void adapter_answer_error(struct exchange *x, int rc, const struct err *e);
