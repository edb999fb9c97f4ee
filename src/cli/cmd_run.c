/* cmd_run.c - terrace run: a chat in the terminal, or one answer for a script. */
#define _GNU_SOURCE
#include <histedit.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/load.h"
#include "cli/session.h"
#include "store/models.h"

struct run_options {
    struct load_options load;
    const char *system;
    double temperature, top_p;
    int64_t top_k, max_tokens, seed;
    bool verbose;
};

#define AT(field) offsetof(struct run_options, field)
static const struct opt opts[] = {
    {"system", OPT_STR, AT(system), NULL, "TEXT", "The system message.", .letter = 's'},
    {"temperature", OPT_NUM, AT(temperature), "0.8", "X", "0 always takes the likeliest token.",
     .min = 0, .max = 2},
    {"top-p", OPT_NUM, AT(top_p), "0.95", "X", "Draw from the likeliest tokens of this total.",
     .min = 0.01, .max = 1},
    {"top-k", OPT_INT, AT(top_k), "40", "N", "Draw from so many of the likeliest tokens; 0: all.",
     .min = 0, .max = 1000000},
    {"max-tokens", OPT_INT, AT(max_tokens), "0", "N",
     "Longest answer in tokens; 0: what the context leaves.", .min = 0, .max = 1 << 22,
     .letter = 'n'},
    {"seed", OPT_INT, AT(seed), "-1", "N", "The same seed gives the same answer; -1: a new one.",
     .min = -1, .max = 0x1p53},
    {"verbose", OPT_BOOL, AT(verbose), NULL, NULL, "Tell tokens and times after each answer.",
     .letter = 'v'},
    LOAD_OPTS(AT(load)),
    {NULL},
};

static void print(const char *text, size_t n)
{
    fwrite(text, 1, n, stdout);
    fflush(stdout);
}

/* Ctrl-C ends the answer, not the chat: a thread waits for it, so no handler is needed. */
struct interrupter {
    pthread_t thread;
    struct session *session;
};

static sigset_t interrupt_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    return set;
}

static void *interrupt_thread(void *arg)
{
    struct interrupter *i = arg;
    sigset_t set = interrupt_signals();
    for (int sig; sigwait(&set, &sig) == 0 && sig != SIGUSR1;)
        session_interrupt(i->session);
    return NULL;
}

static void stats(const struct session *s, bool verbose)
{
    char line[200];
    if (!verbose)
        return;
    session_stats(s, line, sizeof line);
    fprintf(stderr, "[%s]\n", line);
}

/* Standard input to its end, at most 16 MiB. */
static int read_input(struct buf *out, struct err *e)
{
    size_t n;
    while ((n = fread(buf_reserve(out, 65536), 1, 65536, stdin))) {
        out->len += n;
        out->data[out->len] = 0;
        if (out->len > 16 << 20)
            return err_set(e, ERR_LIMIT, "the input is larger than 16 MiB");
    }
    return 0;
}

/* One prompt from the arguments, the pipe, or both (the argument first). */
static int once(const struct command *c, struct session *s, const char *prompt, bool verbose)
{
    struct err e = {0};
    struct buf text = {0};
    if (prompt)
        buf_adds(&text, prompt);
    int rc = 0;
    if (!isatty(STDIN_FILENO)) {
        if (text.len)
            buf_adds(&text, "\n\n");
        size_t before = text.len;
        rc = read_input(&text, &e);
        if (rc == 0 && text.len == before && prompt) /* an empty pipe adds nothing */
            text.data[text.len = before - 2] = 0;
    }
    if (rc == 0 && !text.len)
        rc = err_set(&e, ERR_INVALID, "there is nothing to answer: give a prompt or pipe one in");
    if (rc == 0)
        rc = session_say(s, text.data, print, &e);
    buf_release(&text);
    if (rc)
        return cli_fail(c, &e);
    putchar('\n');
    stats(s, verbose);
    return EXIT_OK;
}

static const char help[] = "  /clear          forget the conversation\n"
                           "  /system TEXT    forget it and begin with this system message\n"
                           "  /bye            leave (also Ctrl-D)\n"
                           "  \"\"\"             begin and end a text of several lines\n"
                           "  Ctrl-C          end the answer that is being written\n";

static char *prompt_first(EditLine *el)
{
    static char text[] = ">>> ";
    return text;
}

static char *prompt_more(EditLine *el)
{
    static char text[] = "... ";
    return text;
}

/* The next input: a line, or what stands between two lines of three quotes. False at the end. */
static bool next_input(EditLine *el, struct buf *out)
{
    static const char quotes[] = "\"\"\"";
    buf_clear(out);
    for (bool block = false;;) {
        int n;
        el_set(el, EL_PROMPT, block ? prompt_more : prompt_first);
        const char *line = el_gets(el, &n);
        if (!line || n <= 0)
            return false;
        struct str l = {line, strcspn(line, "\r\n")};
        if (!block && str_starts(l, quotes)) {
            block = true;
            l = (struct str){l.p + 3, l.n - 3};
        }
        bool last = block && l.n >= 3 && memcmp(l.p + l.n - 3, quotes, 3) == 0;
        buf_add(out, l.p, last ? l.n - 3 : l.n);
        if (!block || last)
            return true;
        if (out->len)
            buf_addc(out, '\n');
    }
}

/* Answers a line that begins with '/'. False: leave. */
static bool slash(struct session *s, const char *line)
{
    if (strcmp(line, "/bye") == 0 || strcmp(line, "/exit") == 0)
        return false;
    if (strcmp(line, "/clear") == 0)
        session_reset(s, NULL);
    else if (strncmp(line, "/system ", 8) == 0)
        session_reset(s, line + 8);
    else
        fputs(help, stdout);
    return true;
}

static void history_path(struct buf *out)
{
    const char *home = getenv("HOME");
    buf_addf(out, "%s/.terrace", home && *home ? home : ".");
    mkdir(out->data, 0755);
    buf_adds(out, "/history");
}

static int chat(struct session *s, bool verbose)
{
    struct buf path = {0}, text = {0};
    history_path(&path);
    HistEvent ev;
    History *past = history_init();
    EditLine *el = el_init("terrace", stdin, stdout, stderr);
    history(past, &ev, H_SETSIZE, 1000);
    history(past, &ev, H_SETUNIQUE, 1);
    history(past, &ev, H_LOAD, path.data);
    el_set(el, EL_HIST, history, past);
    el_set(el, EL_EDITOR, "emacs");
    el_set(el, EL_SIGNAL, 0);
    puts("/help shows the commands, Ctrl-D leaves.");
    while (next_input(el, &text)) {
        struct err e = {0};
        const char *line = buf_str(&text);
        if (!*line)
            continue;
        history(past, &ev, H_ENTER, line);
        if (*line == '/') {
            if (!slash(s, line))
                break;
            continue;
        }
        if (session_say(s, line, print, &e))
            fprintf(stderr, "%s", e.msg);
        puts("\n");
        stats(s, verbose);
    }
    history(past, &ev, H_SAVE, path.data);
    el_end(el);
    history_end(past);
    buf_release(&path);
    buf_release(&text);
    return EXIT_OK;
}

static int talk(const struct command *c, const struct run_options *o, const struct loaded *l,
                const char *prompt)
{
    struct err e = {0};
    struct session_opts so = {
        .temperature = o->temperature,
        .top_p = o->top_p,
        .top_k = o->top_k,
        .max_tokens = o->max_tokens,
        .has_seed = o->seed >= 0,
        .seed = (uint64_t)o->seed,
        .system = o->system,
    };
    struct interrupter i = {0};
    sigset_t set = interrupt_signals();
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (session_new(&i.session, l, &o->load, &so, &e))
        return cli_fail(c, &e);
    if (pthread_create(&i.thread, NULL, interrupt_thread, &i))
        BUG("no thread to wait for Ctrl-C");
    int status = prompt || !isatty(STDIN_FILENO) ? once(c, i.session, prompt, o->verbose)
                                                 : chat(i.session, o->verbose);
    pthread_kill(i.thread, SIGUSR1);
    pthread_join(i.thread, NULL);
    session_free(i.session);
    return status;
}

static int run(const struct command *c, int argc, char **argv)
{
    struct run_options o = {0};
    struct arena arena = {0};
    struct err e = {0};
    int n_words, status = cli_options(c, &o, &arena, argc, argv, 2, &n_words);
    if (status < 0) {
        log_init(LOG_WARN, false);
        struct loaded l;
        struct load_progress bar = {0};
        struct load_hooks hooks = {load_show_progress, &bar};
        int rc = load_model(&l, n_words ? argv[0] : models_default, &o.load, &hooks, &e);
        load_progress_end(&bar);
        if (rc) {
            status = cli_fail(c, &e);
        } else {
            status = talk(c, &o, &l, n_words > 1 ? argv[1] : NULL);
            load_release(&l);
        }
    }
    arena_release(&arena);
    return status;
}

const struct command cmd_run = {
    .name = "run",
    .usage = "terrace run [OPTIONS] [MODEL|FILE] [PROMPT]",
    .summary = "chat with a model in the terminal, or answer one prompt",
    .details =
        "Without a prompt, a chat with line editing and history. With a prompt, or with text\n"
        "piped in, one answer on standard output.\n\n"
        "  terrace run smollm2:135m \"Name three colours.\"\n"
        "  git diff | terrace run smollm2:135m \"Summarise this change:\"\n",
    .opts = opts,
    .run = run,
};
