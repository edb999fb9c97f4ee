#!/usr/bin/env python3
"""terrace and llama-cpp-python on the same files, alternately, on an idle machine.

usage: bench/peers.py [--models phi3-mini:q4_0,...] [--rounds N] [--prompt N] [--gen N] [--batch 1,8]
                      [--isa NAME] [--out NAME]

llama-cpp-python is built natively into an environment of its own (build/peers, or $PEERS_VENV; with
--isa avx2 into build/peers-avx2, or $PEERS_AVX2_VENV, without AVX-512). A model is ARCH:QUANT, made by synth-gguf, or a
path. Each round runs one side and then the other; figures are medians over the rounds. Writes
bench/results/NAME.json, a Markdown table and a plot (SVG) beside it.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from common import RESULTS, ROOT, machine, model_file, run_json

PEER = "llama-cpp-python==0.3.36"
AVX2 = ("-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON "
        "-DGGML_BMI2=ON -DGGML_AVX512=OFF")


def peer_python(avx2):
    """The interpreter of the peer's environment, made at first use."""
    folder = ROOT / ("build/peers-avx2" if avx2 else "build/peers")
    given = os.environ.get("PEERS_AVX2_VENV" if avx2 else "PEERS_VENV")
    if given:
        folder = pathlib.Path(given)
    python = folder / "bin/python"
    if not given and not (folder / "ready").exists():
        print(f"building {PEER} in {folder.relative_to(ROOT)} (some minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", PEER],
                       check=True,
                       env={**os.environ, "CMAKE_ARGS": AVX2 if avx2 else "-DGGML_NATIVE=ON"})
        (folder / "ready").touch()
    return python


def flat(result):
    """{'prefill': tok/s, 'decode b1': tok/s, ...}"""
    rows = {"prefill": result["prefill"]["tok_s"]}
    rows.update({f"decode b{d['batch']}": d["tok_s"] for d in result["decode"]})
    return rows


def compare(name, options, python):
    path = model_file(name)
    ours, theirs, roofs = [], [], []
    for number in range(options.rounds):
        us = run_json(ROOT / "build/terrace", "bench", "--model", path, "--threads", options.threads,
                      "--prompt", options.prompt, "--gen", options.gen, "--batch", options.batch,
                      "--isa", options.isa, "--rounds", 1, "--json")
        them = run_json(python, ROOT / "bench/llama_cpp_side.py", path, options.threads, options.prompt,
                        options.gen, options.batch)
        ours.append(flat(us))
        theirs.append(flat(them))
        roofs.append(us["roof"])
        print(f"  {name} round {number + 1}: " + ", ".join(
            f"{k} {ours[-1][k]:.1f}/{theirs[-1][k]:.1f}" for k in ours[-1]), flush=True)
    rows = []
    for key in ours[0]:
        a = statistics.median(r[key] for r in ours)
        b = statistics.median(r[key] for r in theirs)
        rows.append({"figure": key, "terrace_tok_s": round(a, 2), "peer_tok_s": round(b, 2),
                     "ratio": round(a / b, 2),
                     "ratio_range": [round(x, 2) for x in sorted(
                         o[key] / t[key] for o, t in zip(ours, theirs))[::options.rounds - 1 or 1]]})
    roof = {k: round(statistics.median(r[k] for r in roofs), 1) for k in roofs[0]}
    return {"model": name, "file_bytes": path.stat().st_size, "roof": roof, "rows": rows}


def table(report):
    lines = [f"{report['machine']['cpu']}, {report['threads']} threads, {report['isa']}, "
             f"{report['machine']['date']}, commit {report['machine']['commit']}, "
             f"{PEER}; medians of {report['rounds']} alternating rounds", "",
             "| model | figure | terrace tok/s | llama.cpp tok/s | ratio | ratio, least and most |",
             "|---|---|---|---|---|---|"]
    for result in report["results"]:
        for r in result["rows"]:
            lines.append(f"| {result['model']} | {r['figure']} | {r['terrace_tok_s']} | "
                         f"{r['peer_tok_s']} | {r['ratio']} | "
                         f"{r['ratio_range'][0]} to {r['ratio_range'][-1]} |")
    return "\n".join(lines) + "\n"


def plot(report):
    """Horizontal bars, two for each figure."""
    bars = [(f"{result['model']} {r['figure']}", r["terrace_tok_s"], r["peer_tok_s"])
            for result in report["results"] for r in result["rows"]]
    most, height = max(max(a, b) for _, a, b in bars), 34 * len(bars) + 50
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{height}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="860" height="{height}" fill="white"/>',
           '<text x="250" y="20">tokens per second: <tspan fill="#1b6ca8">terrace</tspan>, '
           '<tspan fill="#999">llama.cpp</tspan></text>']
    for i, (label, a, b) in enumerate(bars):
        y = 36 + 34 * i
        out.append(f'<text x="240" y="{y + 17}" text-anchor="end">{label}</text>')
        for value, colour, top in ((a, "#1b6ca8", y), (b, "#999", y + 14)):
            width = max(1, 520 * value / most)
            out.append(f'<rect x="250" y="{top}" width="{width:.1f}" height="12" fill="{colour}"/>')
            out.append(f'<text x="{254 + width:.1f}" y="{top + 10}" font-size="10">{value:.1f}</text>')
    return "\n".join(out + ["</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="phi3-mini:q4_0,phi3-mini:q4_k_m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=24)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--out", default="peers")
    options = parser.parse_args()
    python = peer_python(options.isa == "avx2")
    report = {"machine": machine(), "peer": PEER, "threads": options.threads, "isa": options.isa,
              "rounds": options.rounds, "command": "bench/peers.py " + " ".join(sys.argv[1:]),
              "results": [compare(m, options, python) for m in options.models.split(",")]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.out}.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / f"{options.out}.md").write_text(table(report))
    (RESULTS / f"{options.out}.svg").write_text(plot(report))
    print(table(report))


if __name__ == "__main__":
    main()
