/* persona_file.c - personas across restarts: {"version": 1, "personas": [{name, tenant?, model,
 * pin, adapter?, created, messages}]}. The KV has files of its own (persona_kv.h). */
#include "server/persona.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

enum { FILE_MAX_BYTES = 128 << 20 };

/* ---- reading ---- */

static int read_all(const char *path, struct buf *out, struct err *e)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return errno == ENOENT ? ERR_NOTFOUND : err_set(e, ERR_IO, "%s", strerror(errno));
    for (size_t n; (n = fread(buf_reserve(out, 65536), 1, 65536, f)) && out->len < FILE_MAX_BYTES;)
        out->len += n;
    bool bad = ferror(f) || !feof(f);
    fclose(f);
    if (bad)
        return err_set(e, ERR_IO, "it cannot be read, or is larger than %d MiB",
                       FILE_MAX_BYTES >> 20);
    return 0;
}

static int restore(struct personas *all, const json_t *list, struct err *e)
{
    for (size_t i = 0; i < json_array_size(list) && all->n < PERSONA_MAX; i++) {
        json_t *v = json_array_get(list, i);
        struct persona_spec spec = {0};
        char id[PERSONA_ID_BYTES + 1];
        int rc = persona_parse_tree(&spec, v, e);
        if (!rc && !spec.model)
            rc = err_param(e, ERR_FORMAT, "model", "persona %s names no model", spec.name);
        const char *tenant = json_string_value(json_object_get(v, "tenant"));
        tenant = tenant ? tenant : "";
        if (!rc && *tenant && !key_name_ok(tenant))
            rc = err_param(e, ERR_FORMAT, "tenant", "persona %s has no tenant's name", spec.name);
        if (!rc)
            persona_id(tenant, spec.name, id);
        if (!rc && !personas_find(all, id))
            personas_restore(all, tenant, &spec, json_integer_value(json_object_get(v, "created")));
        persona_spec_release(&spec);
        if (rc)
            return rc;
    }
    return 0;
}

static int parse(struct personas *all, const struct buf *text, struct err *e)
{
    json_t *root = jr_parse(buf_str(text), text->len, e);
    const json_t *version = json_object_get(root, "version");
    int rc = 0;
    if (!root)
        rc = ERR_FORMAT;
    else if (json_integer_value(version) != PERSONA_FILE_VERSION)
        rc = err_set(e, ERR_FORMAT, "its version is not %d", PERSONA_FILE_VERSION);
    else
        rc = restore(all, json_object_get(root, "personas"), e);
    json_decref(root);
    return rc;
}

void personas_load(struct personas *all)
{
    struct buf text = {0};
    struct err e = {0};
    int rc = read_all(all->path, &text, &e);
    if (!rc)
        rc = parse(all, &text, &e);
    buf_release(&text);
    if (!rc && all->n)
        log_info("server", "%zu personas from %s", all->n, all->path);
    if (!rc || rc == ERR_NOTFOUND)
        return;
    /* what we do not understand we do not overwrite */
    log_error("server", "%s: %s: personas will not be kept until it is repaired or moved away",
              all->path, e.msg);
    free(all->path);
    all->path = NULL;
}

/* ---- writing ---- */

static void write_text(const struct personas *all, struct buf *out)
{
    struct jw w;
    jw_init(&w, out);
    jw_obj(&w);
    jw_kint(&w, "version", PERSONA_FILE_VERSION);
    jw_key(&w, "personas");
    jw_arr(&w);
    for (const struct persona *p = all->first; p; p = p->next) {
        jw_obj(&w);
        jw_kstr(&w, "name", p->name);
        if (*p->tenant)
            jw_kstr(&w, "tenant", p->tenant);
        jw_kstr(&w, "model", p->model);
        jw_kbool(&w, "pin", p->pin);
        if (p->adapter) {
            jw_key(&w, "adapter");
            jw_tree(&w, p->adapter);
        }
        jw_kint(&w, "created", p->created_unix_s);
        jw_key(&w, "messages");
        jw_tree(&w, p->messages);
        jw_obj_end(&w);
    }
    jw_arr_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
    buf_addc(out, '\n');
}

void personas_make_folders(const char *path)
{
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", path);
    for (char *slash = strchr(folder + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(folder, 0700) && errno != EEXIST)
            return; /* opening the file will say why */
        *slash = '/';
    }
}

static int write_file(const char *path, const struct buf *text, struct err *e)
{
    struct buf part = {0};
    size_t done = 0;
    buf_addf(&part, "%s.part", path);
    personas_make_folders(path);
    int fd = open(part.data, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0;
    while (ok && done < text->len) {
        ssize_t n = write(fd, text->data + done, text->len - done);
        ok = n > 0 || (n < 0 && errno == EINTR);
        done += n > 0 ? (size_t)n : 0;
    }
    ok = ok && fsync(fd) == 0;
    if (fd >= 0 && close(fd))
        ok = false;
    ok = ok && rename(part.data, path) == 0;
    int rc = ok ? 0 : err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    if (!ok && fd >= 0)
        unlink(part.data);
    buf_release(&part);
    return rc;
}

void personas_save(struct personas *all)
{
    struct buf text = {0};
    struct err e = {0};
    if (!all->path)
        return;
    write_text(all, &text);
    bool failed = write_file(all->path, &text, &e) != 0;
    if (failed && !all->unsaved)
        log_error("server", "personas are not kept: %s; it is tried again", e.msg);
    else if (!failed && all->unsaved)
        log_info("server", "personas are kept again in %s", all->path);
    all->unsaved = failed;
    buf_release(&text);
}

void personas_save_again(struct personas *all)
{
    if (all->unsaved)
        personas_save(all);
}
