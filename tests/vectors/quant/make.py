#!/usr/bin/env python3
"""Writes one file a tensor type: what `gguf.quants` of the PyPI package gguf (0.19.0) makes of them.

Layout, little-endian: u32 n, u32 block_bytes_total, blocks, n f32 = dequantize(blocks);
then u32 m (0 where the package has no quantize), m f32 input, blocks = quantize(input).

Usage: make.py DIRECTORY
"""
import struct
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, quants

TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
# Where the half-precision scales of a block are: byte offsets.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0],
          "IQ4_XS": [0]}
N = 768
rng = np.random.default_rng(20)


def random_blocks(name, elems, size):
    """All bits random, except that scales are finite; one block has subnormal scales."""
    if name == "F32":
        return rng.standard_normal(N).astype(np.float32).view(np.uint8)
    if name == "BF16":
        h = rng.integers(0, 1 << 16, N).astype(np.uint16)
        h[(h & 0x7f80) == 0x7f80] = 0x3f80
        return h.view(np.uint8)
    if name == "F16":
        h = rng.integers(0, 1 << 16, N).astype(np.uint16)
        h[(h & 0x7c00) == 0x7c00] = 0x3c00
        return h.view(np.uint8)
    blocks = rng.integers(0, 256, (N // elems, size)).astype(np.uint8)
    for at in HALVES[name]:
        d = rng.standard_normal(len(blocks)).astype(np.float16)
        d[0] = np.float16(2e-6)
        blocks[:, at:at + 2] = d.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def inputs():
    x = rng.standard_normal(N).astype(np.float32)
    x[:32] = 0                        # a block of zeros
    x[32:64] = 0.25                   # a constant one
    x[64:96] *= np.float32(1e-7)      # one whose scale is subnormal as a half
    x[256:512] = np.abs(x[256:512])   # no negative number
    return x


for name in TYPES:
    qtype = T[name]
    elems, size = GGML_QUANT_SIZES[qtype]
    blocks = random_blocks(name, elems, size)
    values = quants.dequantize(blocks, qtype).astype(np.float32).reshape(-1)
    out = struct.pack("<II", values.size, blocks.size) + blocks.tobytes() + values.tobytes()
    x = inputs()
    try:
        coded = quants.quantize(x, qtype).tobytes()
        out += struct.pack("<I", x.size) + x.tobytes() + coded
    except NotImplementedError:
        out += struct.pack("<I", 0)
    (Path(sys.argv[1]) / (name + ".bin")).write_bytes(out)
