#!/usr/bin/env python3
"""Writes three_types.safetensors with the safetensors package (pip install safetensors torch).

Element i (row-major) of tensor number n is (i - 5) * (n + 1) / 8, exact in all three types.
"""
import pathlib

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
SHAPES = {"a.f32": ([3, 5], torch.float32), "b.f16": ([2, 2, 3], torch.float16),
          "c.bf16": ([7], torch.bfloat16), "d.scalar": ([], torch.float32),
          "e.empty": ([0, 4], torch.float16)}


def numbers(n, shape):
    count = int(torch.tensor(shape).prod()) if shape else 1
    return ((torch.arange(count, dtype=torch.float64) - 5) * (n + 1) / 8).reshape(shape)


tensors = {name: numbers(n, shape).to(dtype) for n, (name, (shape, dtype)) in enumerate(SHAPES.items())}
save_file(tensors, HERE / "three_types.safetensors", metadata={"format": "pt"})
