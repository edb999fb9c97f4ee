/* tool_parse.h - tool calls in what a model wrote.
 *
 * Text goes in as it is generated, in pieces of any size; out come plain content, at once unless it
 * may still turn out to be the beginning of a call, and whole calls. What looks like a call but is
 * none (bad JSON, no name) comes out as content, every byte of it.
 *
 * Formats, as the chat templates of the models teach them:
 *   HERMES   <tool_call>{"name": ..., "arguments": {...}}</tool_call>   (Hermes 2 Pro, Qwen 2.5 and
 * 3) LLAMA    {"name": ..., "parameters": {...}}; ...  as the whole answer, perhaps after
 *            <|python_tag|>   (Llama 3.1 and later)
 *   MISTRAL  [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]       (Mistral v3)
 *            [TOOL_CALLS]name[ARGS]{...}                                (Mistral v13)
 * The markers are special tokens in some models: decode with them left in. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/str.h"

enum tool_format { TOOL_NONE, TOOL_HERMES, TOOL_LLAMA, TOOL_MISTRAL };

/* The format that a chat template teaches: from the markers in its source. */
enum tool_format tool_format_of(struct str template_source);

struct tool_call {
    char *name;
    char *arguments; /* JSON text of an object */
};

enum { TOOL_PARSE_HELD_BYTES = 1 << 20 }; /* a longer call is content */

struct tool_parse {
    enum tool_format format;
    bool inside;  /* behind the marker that begins calls */
    bool decided; /* LLAMA: the answer has begun */
    bool after;   /* a call just ended: white space that follows is no content */
    struct buf held;
    size_t searched;         /* no end marker begins in held[0, searched) */
    struct tool_call *calls; /* complete ones so far, owned by this struct */
    size_t n_calls, cap;
};

void tool_parse_init(struct tool_parse *p, enum tool_format format);
void tool_parse_release(struct tool_parse *p);

/* Takes n more bytes; appends to `content` what is no call for sure. */
void tool_parse_add(struct tool_parse *p, const char *text, size_t n, struct buf *content);

/* The generation is over: what is held becomes a call, if it is a whole one, or content. */
void tool_parse_end(struct tool_parse *p, struct buf *content);
