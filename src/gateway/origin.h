/* origin.h - may a web page use the service from a browser?
 *
 * Pages send an Origin header that they cannot forge. A page of another origin gets its answer only
 * if the origin is on the list; the others are refused before they have an effect, as a browser
 * sends many requests without asking first. Sources: the Fetch standard (CORS), RFC 6454. */
#pragma once

#include <stdbool.h>

#include "base/str.h"

/* `allowed` is a list of origins separated by commas
 * ("https://chat.example,http://127.0.0.1:5173"),
 * '*' for all, NULL or "" for none. A page that the service itself has served, or that comes from
 * this machine (localhost and loopback addresses, any port), is allowed when `local` is true. */
bool origin_allowed(const char *allowed, struct str origin, bool local);

/* While anybody on this machine may use the service, a name that somebody's DNS points to it must
 * not open it to web pages (DNS rebinding): of Host headers only addresses, names without a dot and
 * those of .localhost, .local and .internal pass. */
bool origin_host_is_local(struct str host);
