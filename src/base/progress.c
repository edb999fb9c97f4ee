#include "base/progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

enum { PROGRESS_REDRAW_MS = 100, PROGRESS_WIDTH = 24, PROGRESS_SHORT_MS = 500 };

char *progress_bytes(uint64_t n, char *out, size_t size)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double v = (double)n;
    size_t u = 0;
    for (; v >= 1000 && u + 1 < sizeof units / sizeof *units; u++)
        v /= 1000;
    snprintf(out, size, v < 10 && u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return out;
}

void progress_start(struct progress *p, const char *label)
{
    *p = (struct progress){.label = label, .start_ms = clock_ms(), .tenths = -1};
    p->terminal = isatty(STDERR_FILENO);
}

static void draw(struct progress *p, uint64_t done, int64_t now)
{
    char bar[PROGRESS_WIDTH + 1] = "", a[16], b[16], c[16];
    double share = p->total ? (double)done / (double)p->total : 0;
    if (share > 1)
        share = 1;
    for (int i = 0; i < PROGRESS_WIDTH; i++)
        bar[i] = i < (int)(share * PROGRESS_WIDTH) ? '#' : '.';
    double seconds = (double)(now - p->start_ms) / 1000 + 1e-3;
    double rate = (double)(done - p->first) / seconds;
    fprintf(stderr, "\r%s  ", p->label);
    if (p->total)
        fprintf(stderr, "[%s] %3.0f %%  %s of %s", bar, share * 100, progress_bytes(done, a, 16),
                progress_bytes(p->total, b, 16));
    else
        fprintf(stderr, "%s", progress_bytes(done, a, 16));
    fprintf(stderr, "  %s/s", progress_bytes((uint64_t)rate, c, 16));
    if (p->total && rate > 1 && done < p->total)
        fprintf(stderr, "  %.0f s left", (double)(p->total - done) / rate);
    fprintf(stderr, "\033[K");
    fflush(stderr);
}

void progress_update(struct progress *p, uint64_t done, uint64_t total)
{
    int64_t now = clock_ms();
    if (!p->begun || done < p->first) {
        p->begun = true;
        p->first = done;
        p->start_ms = now;
    }
    p->total = total;
    if (now - p->start_ms < PROGRESS_SHORT_MS)
        return;
    if (p->terminal) {
        if (now - p->drawn_ms >= PROGRESS_REDRAW_MS || done == total) {
            p->drawn_ms = now;
            draw(p, done, now);
        }
        return;
    }
    int tenths = total ? (int)(done * 10 / total) : 0;
    if (tenths > p->tenths) {
        char a[16], b[16];
        p->tenths = tenths;
        fprintf(stderr, "%s: %d %%, %s of %s\n", p->label, tenths * 10, progress_bytes(done, a, 16),
                progress_bytes(total, b, 16));
    }
}

void progress_end(struct progress *p)
{
    if (p->terminal && p->drawn_ms)
        fputc('\n', stderr);
    p->begun = false;
}
