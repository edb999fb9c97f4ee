/* openai_parse.h - inside of the OpenAI parser; see openai.h. */
#pragma once

#include "api/openai.h"

struct openai_param;

/* Reads one field that is present and not null. */
typedef int openai_param_fn(struct chat_request *r, const struct openai_param *p, const json_t *v,
                            struct err *e);

enum openai_param_type {
    PARAM_INT,     /* int64_t at offset, lo .. hi */
    PARAM_NUM,     /* double at offset, lo .. hi, above lo if open */
    PARAM_BOOL,    /* bool at offset */
    PARAM_CUSTOM,  /* fn reads it */
    PARAM_IGNORED, /* known, asks for nothing that changes the answer */
    PARAM_REFUSED, /* known, not served, except for the values in `accept` */
};

struct openai_param {
    const char *name;
    unsigned endpoints;
    enum openai_param_type type;
    size_t offset;
    double lo, hi;
    double def; /* INT, NUM, BOOL: set before the body is read */
    bool open;  /* lo itself is out of range */
    openai_param_fn *fn;
    const char *accept; /* REFUSED: JSON array of values that ask for nothing */
};

extern const struct openai_param openai_params[];
extern const size_t openai_n_params;

/* Customs with a file of their own: openai_messages.c */
openai_param_fn openai_read_messages, openai_read_tools, openai_read_tool_choice;

/* adapter_parse.c */
openai_param_fn openai_read_adapter, openai_read_lora;

/* "'NAME' must be WHAT, got SHOWN" with ERR_INVALID and the field's name. */
int openai_bad(struct err *e, const char *name, const char *what, const json_t *got);

/* Notes that something is not served here: 'param' is the field. 0, as parsing goes on. */
int openai_refuse(struct chat_request *r, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The field holds its default, or a value that changes nothing in the answer. */
bool openai_asks_nothing(enum openai_endpoint endpoint, const char *name, const json_t *v);

/* Reads a whole number (5.0 counts) in lo..hi; false on anything else. */
bool openai_int(const json_t *v, int64_t lo, int64_t hi, int64_t *out);
