/* template.h - the chat template of a model: messages to prompt text.
 *
 * A template is Jinja source out of the model file, run by our own interpreter of the subset that
 * real templates use (jinja_*.c), under limits on steps, output, depth and memory, so that a
 * hostile one ends with an error. The output remembers which bytes came from the template itself
 * (trusted: special tokens count) and which from a message (never a special token).
 *
 * A struct template is immutable after template_new: any number of threads may render. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/str.h"

struct template;

/* Parses the source; ERR_FORMAT with line and column. */
int template_new(struct template **out, const char *source, size_t n, struct err *e);
void template_free(struct template *t);

struct str template_source(const struct template *t); /* as long as t */

struct template_vars {
    const json_t *messages;  /* array of {role, content, tool_calls ...} */
    const json_t *tools;     /* array or NULL */
    const json_t *documents; /* array or NULL */
    const json_t *kwargs;    /* object merged into the variables (chat_template_kwargs), or NULL */
    const char *bos_token;   /* "" if none */
    const char *eos_token;
    bool add_generation_prompt;
    int64_t now_unix_s; /* for strftime_now, UTC */
};

/* Half-open byte ranges of `text`, in order and without gaps. */
struct template_span {
    size_t end; /* begins where the one before ends */
    bool trusted;
};

struct template_output {
    struct buf text;
    struct template_span *spans;
    size_t n_spans;
};
void template_output_release(struct template_output *o);

/* Renders; ERR_INVALID with the template's own message for raise_exception, ERR_LIMIT past a limit,
 * ERR_FORMAT for a mistake in the template, each with the line. */
int template_render(const struct template *t, const struct template_vars *v,
                    struct template_output *out, struct err *e);
