/* nfc.h - Unicode normal form C (UAX #15), linear in the length of the text whatever it holds.
 * Private to src/tokenizer. */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "base/str.h"

/* Appends the normal form of text, which is valid UTF-8. ERR_NOMEM. */
int nfc_append(struct str text, struct buf *out, struct err *e);

/* True when it is sure that text is in normal form already, without a closer look. */
bool nfc_is_plain(struct str text);
