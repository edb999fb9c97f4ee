#!/usr/bin/env python3
"""Reads the disassembly of the AVX-512 products and fails where the compiler spoiled a hot loop.

A pass over 32 columns for w tokens is 2 * 8 * w dot products. What costs time beside them is
sums that go to the stack and back (spills) and copies of registers, which gcc makes around
intrinsics that read and write a register. The limits are what a good build has, and a little more.

    tools/check_kernels.py [build directory]
"""
import os
import re
import subprocess
import sys

TYPES = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
         "iq4_xs"]
MAX_SPILLS = {"q2_k": 0.8, "q3_k": 0.45}  # for each dot product: 16-column groups are the worst
DEFAULT_SPILLS = 0.2
MAX_COPIES = 1.0


def functions(library):
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", library], check=True,
                          capture_output=True, text=True).stdout
    for part in re.split(r"\n(?=[0-9a-f]+ <)", text):
        name = re.match(r"[0-9a-f]+ <(\w+)>:", part)
        if name:
            yield name.group(1), part.splitlines()[1:]


def count(lines, pattern):
    return sum(1 for line in lines if re.search(pattern, line))


def main():
    build = sys.argv[1] if len(sys.argv) > 1 else "build"
    library = f"{build}/src/kernels/libkernels_avx512.a"
    if not os.path.exists(library):
        print("check_kernels: this build has no AVX-512 kernels")
        return 0
    seen, bad = set(), []
    print(f"{'function':16} {'dots':>5} {'spills':>7} {'copies':>7}")
    for name, lines in functions(library):
        match = re.fullmatch(r"pass_(\w+)_(\d)", name)
        if not match or match.group(1) not in TYPES:
            continue
        seen.add((match.group(1), int(match.group(2))))
        dots = count(lines, r"\bvpdpbusd\b")
        spills = count(lines, r"%zmm\d+.*\(%r[sb]p\)|\(%r[sb]p\).*%zmm\d+")
        copies = count(lines, r"\bvmov(dqa\d*|aps|apd)\s+%zmm\d+,%zmm\d+")
        print(f"{name:16} {dots:5} {spills:7} {copies:7}")
        if dots != 16 * int(match.group(2)):
            bad.append(f"{name}: {dots} dot products, so the loop is not unrolled as it should be")
        if spills > dots * MAX_SPILLS.get(match.group(1), DEFAULT_SPILLS):
            bad.append(f"{name}: {spills} spills")
        if copies > dots * MAX_COPIES:
            bad.append(f"{name}: {copies} copies")
    for wanted in sorted({(t, w) for t in TYPES for w in range(1, 7)} - seen):
        bad.append(f"pass_{wanted[0]}_{wanted[1]}: not found")
    for line in bad:
        print("check_kernels:", line, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
