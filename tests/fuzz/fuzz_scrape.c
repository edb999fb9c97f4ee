/* What an engine behind us says at /metrics. */
#include <math.h>
#include <stdlib.h>

#include "base/err.h"
#include "gateway/scrape.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct scrape s;
    if (!scrape_parse(&s, (struct str){(const char *)data, size}))
        return 0;
    for (int i = 0; i < SCRAPE_VALUES; i++)
        BUG_ON(s.has[i] ? !(s.v[i] >= 0) : s.v[i] != 0);
    return 0;
}
