/* scrape.h - what an engine behind us says of itself at GET /metrics, in Prometheus' text format
 * 0.0.4: vLLM under its names of today and before, llama-server under its own.
 *
 * While a backend of these kinds gets requests it is asked every scrape_ms. What it said counts
 * until the next answer; one that is malformed, fails or does not come for three intervals leaves
 * nothing, as old numbers look like an idle engine. The loop's thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"

struct backend;
struct backend_scrape;

enum scrape_value {
    SCRAPE_RUNNING,
    SCRAPE_WAITING,
    SCRAPE_KV_USAGE, /* 0 to 1, of its fullest engine; the others are sums over its engines */
    SCRAPE_PROMPT_TOKENS,
    SCRAPE_GENERATION_TOKENS,
    SCRAPE_PREFIX_QUERIES, /* tokens looked up in the prefix cache */
    SCRAPE_PREFIX_HITS,    /* and found */
    SCRAPE_VALUES,
};

struct scrape {
    double v[SCRAPE_VALUES];
    bool has[SCRAPE_VALUES];
};

/* Any text; false: it is not in the format, or a number of ours is none. */
bool scrape_parse(struct scrape *out, struct str text);

/* Asks if it is time to. Returns when to look again, 0: no need. */
int64_t scrape_look(struct backend *b, int64_t now_ms);

/* The latest answer, or NULL. */
const struct scrape *scrape_latest(const struct backend *b, int64_t now_ms);

uint64_t scrape_failures(const struct backend *b);

void scrape_cancel(struct backend *b); /* one that is under way */
void scrape_free(struct backend *b);
