/* metrics.h - what /metrics tells. Only the server's thread touches these. */
#pragma once

#include <stdint.h>

#include "engine/engine.h"

enum { HISTOGRAM_MAX_BUCKETS = 24, METRIC_STATUSES = 600 };

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
    HIST_GENERATION_TOKENS,
    HIST_N,
    MODEL_HISTOGRAMS
};

struct model_metrics {
    struct histogram histograms[MODEL_HISTOGRAMS];
    uint64_t finished[FINISH_ERROR + 1]; /* by enum finish_reason */
};

struct http_metrics {
    uint64_t by_status[METRIC_STATUSES];
    uint64_t client_gone; /* left before the response was complete */
    uint64_t unknown_fields;
};

void metrics_observe(struct model_metrics *m, enum model_histogram which, double v);
