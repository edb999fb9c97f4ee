#!/usr/bin/env python3
"""Speed of the engine on an idle machine, with the share of the roof measured in the same run.

usage: bench/run.py [--models NAME,...] [--rounds N] [--out NAME]

Each model is measured --rounds times, all models in turn; figures are medians. Writes
bench/results/NAME.json and a Markdown table. The kernels alone: build/bench/bench-kernels.

All of it takes hours and 20 GB of disk for models that are made at first use and their packed form;
`--models smollm2 --rounds 1` takes a few minutes. Unless told, models that this machine has too
little memory for are left out.
"""
import argparse
import json
import statistics
import sys

from common import RESULTS, ROOT, machine, model_file, run_json

# and the memory in GiB that a run takes
MODELS = {"phi3-mini:q4_0": 4, "phi3-mini:q4_k_m": 4, "llama3.1-8b:q4_k_m": 7, "smollm2": 1}
# a name for each pass, and what it adds to the command
PASSES = {
    "short": ["--batch", "1,2,4,8,16,32", "--context", "16"],
    "4096, q8_0 KV": ["--batch", "1", "--context", "4096", "--kv-type", "q8_0", "--prompt", "64"],
}


def measure(name, passes):
    rows, roof = {}, {}
    for label in passes:
        more = PASSES[label]
        result = run_json(ROOT / "build/terrace", "bench", "--model", model_file(name), "--json", "--rounds", "1",
                          *more)
        roof = result["roof"]
        if label == "short":
            p = result["prefill"]
            rows[f"prefill {p['tokens']}"] = (p["tok_s"], p["roof_share"])
        for d in result["decode"]:
            key = f"decode b{d['batch']}" + ("" if label == "short" else f", context {label}")
            rows[key] = (d["tok_s"], d["roof_share"])
    return rows, roof, result["rss_bytes"]


def median_of(runs, key, part):
    return statistics.median(rows[key][part] for rows, _, _ in runs)


def summarize(name, runs):
    rows = [{"figure": key, "tok_s": round(median_of(runs, key, 0), 2),
             "roof_share": round(median_of(runs, key, 1), 3),
             "tok_s_range": [round(f(r[key][0] for r, _, _ in runs), 2) for f in (min, max)]}
            for key in runs[0][0]]
    roof = {k: round(statistics.median(r[k] for _, r, _ in runs), 1) for k in runs[0][1]}
    return {"model": name, "roof": roof, "rss_bytes": runs[-1][2], "rows": rows}


def table(report):
    m = report["machine"]
    lines = [f"{m['cpu']} (family {m['family']}), {m['cores']} cores, {m['date']}, commit {m['commit']}, "
             f"load before {m['load_before']:.2f}; medians of {report['rounds']}", "",
             "| model | figure | tok/s | least to most | of roof |", "|---|---|---|---|---|"]
    for result in report["results"]:
        roof = result["roof"]
        lines.append(f"| {result['model']} | roof: {roof['dram_gb_s']} GB/s, "
                     f"{roof['dot_gmac_s']} GMAC/s | | | |")
        for r in result["rows"]:
            low, high = r["tok_s_range"]
            lines.append(f"| | {r['figure']} | {r['tok_s']} | {low} to {high} | "
                         f"{r['roof_share'] * 100:.0f} % |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", help=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=lambda s: s.split(";"), default=list(PASSES),
                        help="short;4096, q8_0 KV")
    parser.add_argument("--out", default="engine")
    options = parser.parse_args()
    facts = machine()
    names = options.models.split(",") if options.models else [
        name for name, gib in MODELS.items() if gib * 1024 <= facts["memory_mib"]]
    print(f"{options.rounds} rounds of {', '.join(names)}", flush=True)
    for name in names:
        model_file(name)
    runs = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            runs[name].append(measure(name, options.passes))
            print(f"round {number + 1}, {name}: " + ", ".join(
                f"{k} {v[0]:.1f} ({v[1] * 100:.0f} %)" for k, v in runs[name][-1][0].items()), flush=True)
    report = {"machine": facts, "rounds": options.rounds,
              "command": "bench/run.py " + " ".join(sys.argv[1:]),
              "results": [summarize(name, runs[name]) for name in names]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.out}.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / f"{options.out}.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
