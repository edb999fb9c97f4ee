/* synth-gguf ARCH QUANT OUT [--seed N] [--layers N] - writes a model file with random weights. */
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "synth.h"

static int usage(void)
{
    fputs("usage: synth-gguf ARCH QUANT OUT [--seed N] [--layers N]\n"
          "Writes a GGUF file with a real model's shape and random weights.\nARCH ",
          stderr);
    for (size_t i = 0; synth_arch(i); i++)
        fprintf(stderr, " %s", synth_arch(i));
    fputs("\nQUANT", stderr);
    for (size_t i = 0; synth_quant(i); i++)
        fprintf(stderr, " %s", synth_quant(i));
    fputs("\n", stderr);
    return 2;
}

int main(int argc, char **argv)
{
    const char *names[3];
    int n_names = 0;
    struct synth_options options = {0};
    for (int i = 1; i < argc; i++) {
        bool seed = strcmp(argv[i], "--seed") == 0, layers = strcmp(argv[i], "--layers") == 0;
        uint64_t number = 0;
        if (seed || layers) {
            if (++i == argc || !str_to_u64(str_of(argv[i]), &number))
                return usage();
            if (layers && (number < 1 || number > 1000))
                return usage();
            if (seed)
                options.seed = number;
            else
                options.n_layers = (uint32_t)number;
        } else if (argv[i][0] == '-' || n_names == 3) {
            return usage();
        } else {
            names[n_names++] = argv[i];
        }
    }
    if (n_names < 3)
        return usage();
    struct err e = {0};
    if (synth_write(names[0], names[1], names[2], &options, &e)) {
        fprintf(stderr, "synth-gguf: %s\n", e.msg);
        return *e.param ? usage() : 1;
    }
    return 0;
}
