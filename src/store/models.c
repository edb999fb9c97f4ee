#define _GNU_SOURCE
#include "store/models.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"

const char models_default[] = "smollm2:135m";

void models_dir(struct buf *out)
{
    const char *home = getenv("HOME");
    buf_addf(out, "%s/.terrace/models", home && *home ? home : ".");
}

static bool part_ok(struct str s)
{
    if (!s.n || s.n > 63 || s.p[0] == '.')
        return false;
    for (size_t i = 0; i < s.n; i++)
        if (!isalnum((unsigned char)s.p[i]) && !strchr("._-", s.p[i]))
            return false;
    return true;
}

int models_parse(const char *text, char name[64], char tag[64], struct err *e)
{
    const char *colon = strchr(text, ':');
    struct str n = {text, colon ? (size_t)(colon - text) : strlen(text)};
    struct str t = colon ? str_of(colon + 1) : STR("latest");
    if (!part_ok(n) || !part_ok(t))
        return err_param(e, ERR_INVALID, "model",
                         "\"%.80s\" is no model name; use NAME, NAME:TAG or a path to a .gguf file",
                         text);
    snprintf(name, 64, "%.*s", (int)n.n, n.p);
    snprintf(tag, 64, "%.*s", (int)t.n, t.p);
    return 0;
}

static bool is_path(const char *name)
{
    size_t n = strlen(name);
    return strchr(name, '/') || (n > 5 && strcmp(name + n - 5, ".gguf") == 0);
}

int models_path(const char *dir, const char *name, struct buf *path, struct err *e)
{
    struct buf p = {0};
    if (is_path(name)) {
        buf_adds(&p, name);
    } else {
        char base[64], tag[64];
        int rc = models_parse(name, base, tag, e);
        if (rc)
            return rc;
        buf_addf(&p, "%s/%s/%s.gguf", dir, base, tag);
    }
    int rc = 0;
    if (access(p.data, R_OK))
        rc = errno != ENOENT && errno != ENOTDIR
                 ? err_param(e, ERR_IO, "model", "%s: %s", p.data, strerror(errno))
             : is_path(name)
                 ? err_param(e, ERR_NOTFOUND, "model", "%s: there is no such file", p.data)
                 : err_param(e, ERR_NOTFOUND, "model",
                             "model \"%s\" is not on this machine; terrace pull %s fetches it, "
                             "terrace list shows what is here",
                             name, name);
    else
        buf_add(path, p.data, p.len);
    buf_release(&p);
    return rc;
}

void model_list_release(struct model_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        free(l->files[i].name);
        free(l->files[i].path);
    }
    free(l->files);
    *l = (struct model_list){0};
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct model_file *)a)->name, ((const struct model_file *)b)->name);
}

static void add_tags(const char *dir, const char *name, struct model_list *out)
{
    struct buf sub = {0};
    buf_addf(&sub, "%s/%s", dir, name);
    DIR *d = opendir(sub.data);
    for (struct dirent *f; d && (f = readdir(d));) {
        size_t n = strlen(f->d_name);
        struct stat st;
        struct buf path = {0};
        buf_addf(&path, "%s/%s", sub.data, f->d_name);
        if (n > 5 && strcmp(f->d_name + n - 5, ".gguf") == 0 && f->d_name[0] != '.' &&
            stat(path.data, &st) == 0 && S_ISREG(st.st_mode)) {
            struct buf full = {0};
            buf_addf(&full, "%s:%.*s", name, (int)(n - 5), f->d_name);
            out->files = xrealloc(out->files, (out->n + 1) * sizeof *out->files);
            out->files[out->n++] = (struct model_file){
                .name = buf_take(&full),
                .path = xstrdup(path.data),
                .bytes = (uint64_t)st.st_size,
                .modified_unix_s = st.st_mtime,
            };
        }
        buf_release(&path);
    }
    if (d)
        closedir(d);
    buf_release(&sub);
}

int models_list(const char *dir, struct model_list *out, struct err *e)
{
    *out = (struct model_list){0};
    DIR *d = opendir(dir);
    if (!d)
        return errno == ENOENT ? 0 : err_set(e, ERR_IO, "%s: %s", dir, strerror(errno));
    for (struct dirent *f; (f = readdir(d));)
        if (f->d_name[0] != '.')
            add_tags(dir, f->d_name, out);
    closedir(d);
    if (out->n)
        qsort(out->files, out->n, sizeof *out->files, by_name);
    return 0;
}

int models_remove(const char *dir, const char *name, struct err *e)
{
    char base[64], tag[64];
    struct buf path = {0};
    int rc = models_parse(name, base, tag, e);
    if (rc == 0)
        rc = models_path(dir, name, &path, e);
    if (rc == 0 && unlink(path.data))
        rc = err_set(e, ERR_IO, "%s: %s", path.data, strerror(errno));
    if (rc == 0) {
        buf_clear(&path);
        buf_addf(&path, "%s/%s", dir, base);
        rmdir(path.data); /* stays while other tags are in it */
    }
    buf_release(&path);
    return rc;
}
