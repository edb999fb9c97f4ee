/* lora_table.h - the numbers under which llama-server's clients know adapters, and the scales that
 * they set for everybody. A number is given to a name when it is first listed, and means that name
 * until the process ends. The server's thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/map.h"

struct lora_row {
    const char *name;
    double scale; /* for requests that choose no adapter themselves; 0: not at all */
};

struct lora_table {
    struct map numbers;    /* name to number + 1 */
    struct lora_row *rows; /* the number is the index */
    size_t n, room;
    size_t n_scaled; /* rows whose scale is not 0 */
};

void lora_table_release(struct lora_table *t);

int64_t lora_table_number(struct lora_table *t, const char *name);
void lora_table_clear_scales(struct lora_table *t);
void lora_table_set_scale(struct lora_table *t, int64_t number, double scale); /* of one that is */
const char *lora_table_name(const struct lora_table *t, int64_t number); /* NULL: no such number */
