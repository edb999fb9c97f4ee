"""What the serving scenarios share: servers, texts of an exact length, figures and their report."""
import json
import math
import random
import re
import statistics
import sys

from common import RESULTS, ROOT, model_file

sys.path.append(str(ROOT / "tests/api"))
from service import Service  # noqa: E402

BLOCK = 32  # tokens of a KV block
WORDS = ("ancient river stone bridge morning letter winter garden silver window market travel "
         "captain island harvest music teacher science village doctor forest engine kitchen "
         "history paper colour journey mountain evening student answer number country question "
         "machine library animal weather station picture").split()


class Server(Service):
    """A terrace of the scenario's model with the scenario's options."""

    def __init__(self, options, *args, limit_s=1800):
        self.command = ["--threads", options.threads, "--memory-limit", options.memory, *args]
        super().__init__(*self.command, limit_s=limit_s, file=str(model_file(options.model)))

    def tokens(self, text):
        return self.json("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]

    def plan(self):
        """(bytes of the KV pool, its blocks), as the log of the start tells."""
        found = re.search(r"(\d+) MiB KV cache \((\d+) blocks of (\d+) tokens\)", "".join(self.log))
        assert int(found[3]) == BLOCK
        return int(found[1]) << 20, int(found[2])


def text_of(server, seed, n_tokens):
    """English words, cut so that they are n_tokens tokens."""
    rng = random.Random(seed)
    text = " ".join(rng.choice(WORDS) for _ in range(2 * n_tokens))
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(server.tokens(text[:middle])) <= n_tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def ids_of(server, seed, n_tokens):
    """n_tokens token ids that no other seed begins with."""
    rng = random.Random(seed)
    text = " ".join(rng.choice(WORDS) for _ in range(2 * n_tokens))
    return server.tokens(text)[:n_tokens]


def percentile(values, p):
    """The nearest rank; None of nothing."""
    ordered = sorted(v for v in values if v is not None)
    return ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] if ordered else None


def median(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def bound(figure, value, most=None, least=None):
    """A figure and what the project asks of it."""
    met = value is not None and (value <= most if most is not None else value >= least)
    limit = f"<= {most:g}" if most is not None else f">= {least:g}"
    return {"figure": figure, "value": value, "bound": limit, "met": met}


def shown(v):
    if v is None:
        return "-"
    return f"{v:.4g}" if isinstance(v, float) and abs(v) < 1000 else f"{v:,.0f}" if isinstance(
        v, float) else str(v)


def table(report):
    m = report["machine"]
    lines = [f"`{report['command']}`: {report['model']}, {report['threads']} threads, limit "
             f"{report['memory_limit']}; {m['cpu']} (family {m['family']}), {m['cores']} cores, "
             f"{m['date']}, commit {m['commit']}, load before {m['load_before']:.2f}", ""]
    rows = report["rows"]
    if rows:
        keys = list(dict.fromkeys(k for r in rows for k in r))
        lines += ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
        lines += ["| " + " | ".join(shown(r.get(k)) for k in keys) + " |" for r in rows] + [""]
    lines += ["| figure | value | bound | |", "|---|---|---|---|"]
    lines += [f"| {b['figure']} | {shown(b['value'])} | {b['bound']} | "
              f"{'met' if b['met'] else '**missed**'} |" for b in report["bounds"]]
    lines += [""] + report.get("notes", [])
    return "\n".join(lines).rstrip() + "\n"


def write_report(options, facts, rows, bounds, notes=(), **more):
    """bench/results/serving-NAME.json and .md; of a quick run, build/bench instead."""
    report = {"machine": facts, "command": "bench/serving.py " + " ".join(sys.argv[1:]),
              "model": options.model, "threads": options.threads, "memory_limit": options.memory,
              "rows": rows, "bounds": bounds, "notes": list(notes), **more}
    folder = ROOT / "build/bench" if options.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"serving-{options.scenario}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(report))
    print(table(report))
