/* books.h - the server's part of the database: keys into the snapshot that requests are checked
 * against, and the ledger that writes what they used. */
#pragma once

#include "server/service.h"

/* Loads keys and what the limits must remember, and starts the ledger. Without opts.db nothing is
 * kept and there are no keys. Before the server runs. ERR_* of db.h: nobody may be served then, as
 * nobody knows who may. */
int books_open(struct server *s, struct err *e);

/* Writes what is left. After the last request; the loop may still be there. */
void books_close(struct server *s);
