/* metrics.h - what /metrics tells. Only the server's thread touches these. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"

enum { HISTOGRAM_MAX_BUCKETS = 24 };

struct histogram {
    uint64_t counts[HISTOGRAM_MAX_BUCKETS + 1]; /* per bucket, not cumulative; the last is +Inf */
    uint64_t n;
    double sum;
};

/* The histograms of a model; the table in metrics.c gives each its name and buckets. */
enum model_histogram {
    HIST_TTFT,
    HIST_INTER_TOKEN,
    HIST_PER_OUTPUT_TOKEN,
    HIST_E2E,
    HIST_QUEUE,
    HIST_INFERENCE,
    HIST_PREFILL,
    HIST_DECODE,
    HIST_PROMPT_TOKENS,
    HIST_COMPUTED_TOKENS,
    HIST_GENERATION_TOKENS,
    HIST_MAX_GENERATION_TOKENS,
    HIST_MAX_TOKENS,
    HIST_N,
    MODEL_HISTOGRAMS
};

struct model_metrics {
    struct histogram histograms[MODEL_HISTOGRAMS];
    uint64_t finished[FINISH_ERROR + 1]; /* by enum finish_reason */
    uint64_t rejected;                   /* the queue was full */
};

/* Requests of one row of the route table with one status; "-" for what no route took. */
struct route_count {
    const char *method, *route;
    int status;
    uint64_t n;
};

struct http_metrics {
    struct route_count *routes; /* bounded by the routes and the statuses they answer with */
    size_t n_routes;
    uint64_t client_gone; /* left before the response was complete */
    uint64_t unknown_fields;
    uint64_t limited; /* refused by a limit of a key, tenant or address */
};

void http_metrics_release(struct http_metrics *m);
void metrics_count_request(struct http_metrics *m, const char *method, const char *route,
                           int status); /* the strings live as long as m */

void metrics_observe(struct model_metrics *m, enum model_histogram which, double v);
