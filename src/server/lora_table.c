#include "server/lora_table.h"

#include <stdlib.h>

#include "base/mem.h"

void lora_table_release(struct lora_table *t)
{
    for (size_t i = 0; i < t->n; i++)
        free((char *)t->rows[i].name);
    free(t->rows);
    map_release(&t->numbers);
    *t = (struct lora_table){0};
}

int64_t lora_table_number(struct lora_table *t, const char *name)
{
    uintptr_t known = (uintptr_t)map_get(&t->numbers, str_of(name));
    if (known)
        return (int64_t)known - 1;
    if (t->n == t->room) {
        t->room = t->room ? 2 * t->room : 16;
        t->rows = xrealloc(t->rows, t->room * sizeof *t->rows);
    }
    t->rows[t->n++] = (struct lora_row){.name = xstrdup(name)};
    map_put(&t->numbers, str_of(name), (void *)(uintptr_t)t->n);
    return (int64_t)t->n - 1;
}

void lora_table_clear_scales(struct lora_table *t)
{
    for (size_t i = 0; i < t->n; i++)
        t->rows[i].scale = 0;
    t->n_scaled = 0;
}

void lora_table_set_scale(struct lora_table *t, int64_t number, double scale)
{
    struct lora_row *row = &t->rows[number];
    t->n_scaled -= row->scale != 0;
    t->n_scaled += scale != 0;
    row->scale = scale;
}

const char *lora_table_name(const struct lora_table *t, int64_t number)
{
    return number >= 0 && (uint64_t)number < t->n ? t->rows[number].name : NULL;
}
