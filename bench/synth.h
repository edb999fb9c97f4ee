/* synth.h - model files with random weights.
 *
 * A synthetic file has the shape, the names, the metadata, the per-tensor types and the size of
 * vocabulary of a real model, and weights drawn at random such that activations keep a sane size
 * and logits differ from token to token. It serves to measure speed and memory, and to test, where
 * the real model cannot be had. What it generates is noise.
 *
 * Names and per-tensor types follow llama.cpp's converter and quantiser. The same arguments give
 * the same bytes. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct synth_options {
    uint64_t seed;
    uint32_t n_layers; /* 0: as many as the real model has */
};

/* Writes path. arch and quant are among the names below; options may be NULL. */
int synth_write(const char *arch, const char *quant, const char *path,
                const struct synth_options *options, struct err *e);

/* The i-th name, NULL after the last: "phi3-mini", "llama3.1-8b", "tiny-qwen3" ...; "q4_k_m" ... */
const char *synth_arch(size_t i);
const char *synth_quant(size_t i);
