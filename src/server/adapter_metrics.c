/* adapter_metrics.c - what /metrics tells of adapters. */
#include <inttypes.h>

#include "server/adapter_http.h"

/* How many adapters fit into the budget at once, by the mean size of what is registered: for
 * gateways that spread adapters over servers. */
static uint64_t capacity(struct server *s, uint64_t budget)
{
    struct registry_list all;
    uint64_t bytes = 0, n = 0;
    registry_list(adapters_registry(s->adapters), &all);
    for (size_t i = 0; i < all.n; i++) {
        const struct registry_version *v = registry_version_of(&all.entries[i], 0);
        bytes += v ? v->bytes : 0;
        n += v != NULL;
    }
    registry_list_release(&all);
    return bytes ? budget / (bytes / n + 1) : n;
}

static void write_in_use(struct buf *b, struct server *s, uint64_t budget)
{
    struct buf running = {0}, waiting = {0};
    adapters_in_use(s->adapters, &running, &waiting);
    buf_addf(
        b,
        "# HELP vllm:lora_requests_info Adapters of running and of waiting requests; the value "
        "is the Unix time.\n# TYPE vllm:lora_requests_info gauge\n"
        "vllm:lora_requests_info{max_lora=\"%" PRIu64
        "\",running_lora_adapters=\"%s\",waiting_lora_adapters=\"%s\"} %" PRId64 "\n",
        capacity(s, budget), buf_str(&running), buf_str(&waiting), clock_unix_s());
    buf_release(&running);
    buf_release(&waiting);
}

void adapter_write_metrics(struct server *s, struct buf *b)
{
    struct adapters_counts c;
    adapters_counts(s->adapters, &c);
    write_in_use(b, s, c.budget);
    buf_adds(b, "# HELP terrace_adapters Adapters by state.\n# TYPE terrace_adapters gauge\n");
    for (int i = 0; i < ADAPTER_STATES; i++)
        buf_addf(b, "terrace_adapters{state=\"%s\"} %zu\n", adapter_state_name(i), c.states[i]);
    const struct {
        const char *name, *type, *help;
        uint64_t v;
    } rows[] = {
        {"terrace_adapter_bytes", "gauge", "Memory that adapters take.", c.bytes},
        {"terrace_adapter_budget_bytes", "gauge", "Memory that they may take.", c.budget},
        {"terrace_adapter_hits_total", "counter", "Adapters that were there when asked for.",
         c.hits},
        {"terrace_adapter_misses_total", "counter", "Adapters that had to be loaded first.",
         c.misses},
        {"terrace_adapter_loads_total", "counter", "Loads of adapters.", c.loads},
        {"terrace_adapter_load_failures_total", "counter", "Loads that failed.", c.load_failures},
        {"terrace_adapter_evictions_total", "counter", "Adapters that made room for others.",
         c.evictions},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        buf_addf(b, "# HELP %s %s\n# TYPE %s %s\n%s %" PRIu64 "\n", rows[i].name, rows[i].help,
                 rows[i].name, rows[i].type, rows[i].name, rows[i].v);
}
