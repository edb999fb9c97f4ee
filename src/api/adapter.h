/* adapter.h - the dialects in which adapters are managed: vLLM's, SGLang's and llama-server's, and
 * our own registry. Bodies to structs, and what there is to tell back to JSON. How a generation
 * chooses its adapters is in request.h. Pure functions, any thread.
 *
 *   POST /v1/load_lora_adapter    {"lora_name", "lora_path", "load_inplace"?}        vLLM
 *   POST /load_lora_adapter       {"lora_name", "lora_path", "pinned"?}              SGLang
 *   POST /lora-adapters           [{"id", "scale"}]                                  llama-server
 *   POST /v1/adapters             {"name", "path", "base_model"?, "labels"?, "owner"?, "pin"?}
 *
 * Sources: vLLM's LoRA page and request models, SGLang's LoRA page, llama-server's README. Members
 * that nobody knows are ignored in the dialects of others and refused in our own. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/request.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/json.h"

enum {
    ADAPTER_NAME_BYTES = 128, /* of a name, an alias, a user, an owner */
    ADAPTER_PATH_BYTES = 4096,
    ADAPTER_MAX_LABELS = 32,
    ADAPTER_LABEL_BYTES = 256, /* of a value; keys are as long as names */
    ADAPTER_MAX_SCALES = 4096, /* entries of POST /lora-adapters */
};

/* ---- bodies: each is released after an error too, and {0} is fine ---- */

/* vLLM and SGLang. Only what they call required has been checked: names are the registry's
 * business. */
struct adapter_load {
    json_t *root;
    const char *name, *path; /* "" where the body has none; live in root */
    const char *base_model;  /* NULL: the default model */
    bool in_place;           /* replace what has the name */
    bool pin;
};
int adapter_parse_load(struct adapter_load *out, const char *body, size_t n, struct err *e);
void adapter_load_release(struct adapter_load *l);

/* POST /v1/adapters, or with `change` PATCH /v1/adapters/NAME, which may hold labels, owner and
 * pin. */
struct adapter_spec {
    json_t *root;
    const char *name, *path, *base_model; /* NULL: not given */
    const char *owner;                    /* NULL: not given, "": nobody */
    const json_t *labels;                 /* name to text; NULL: not given */
    bool has_pin, pin;
};
int adapter_parse_spec(struct adapter_spec *out, bool change, const char *body, size_t n,
                       struct err *e);
void adapter_spec_release(struct adapter_spec *s);

/* What an alias, a user or a rollback points to: {"adapter": NAME, "version"?: N}. `named`: the
 * name is required, else it may not be there and the body may be empty. */
struct adapter_target {
    json_t *root;
    const char *adapter; /* NULL: not given */
    int64_t version;     /* 0: not given */
};
int adapter_parse_target(struct adapter_target *out, bool named, const char *body, size_t n,
                         struct err *e);
void adapter_target_release(struct adapter_target *t);

/* POST /lora-adapters. */
struct adapter_scales {
    struct arena arena;
    struct adapter_choice *all; /* each by id; scales may be 0 */
    size_t n;
};
int adapter_parse_scales(struct adapter_scales *out, const char *body, size_t n, struct err *e);
void adapter_scales_release(struct adapter_scales *s);

/* ---- answers ---- */

/* What is known of one adapter; times are Unix seconds, 0: never. */
struct adapter_card {
    int64_t id; /* what /lora-adapters calls it */
    const char *name, *base_model, *path, *owner;
    const char *format, *trained_on; /* "peft" ...; the base as the adapter names it */
    const char *state, *error;       /* error NULL: none */
    const char *digest;              /* hexadecimal */
    const char *labels;              /* a JSON object, "": none */
    const char *const *aliases;      /* n_aliases of them */
    size_t n_aliases;
    int64_t version, rank;
    uint64_t bytes, resident_bytes;
    int64_t created, last_used;
    uint64_t requests;        /* since it was registered */
    int64_t running, waiting; /* requests now */
    bool pinned;
};

void adapter_write_card(struct jw *w, const struct adapter_card *c);

/* One element of /v1/models: as vLLM lists adapters, below their base model. max_model_len 0: not
 * known. */
void adapter_write_model(struct jw *w, const struct adapter_card *c, int64_t max_model_len);

/* vLLM's error body: `code` is the status as a number. */
void adapter_write_vllm_error(struct buf *out, int status, const char *type, const char *message);

/* SGLang's answer: error NULL is success. `loaded` holds pairs of name and path. */
void adapter_write_sglang(struct buf *out, const char *error, const char *const *loaded,
                          size_t n_pairs);
