"""The serving scenario about adapters: eight streams, each under an adapter of its own."""
import asyncio
import json
import urllib.request

import lora_gguf
from common import ROOT, machine, model_file, run_json
from peers import PEER, peer_python
from serving_client import ask, ask_all, body, exact
from serving_kit import Server, bound, ids_of, median, write_report
from serving_speed import decode_rate, fail_on_errors

RANK = 16


def register(server, name, path):
    data = json.dumps({"lora_name": name, "lora_path": str(path)}).encode()
    request = urllib.request.Request(server.url + "/v1/load_lora_adapter", data,
                                     {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=300).close()


def streams(server, options, seed, adapters):
    """Streams of as many clients as there are entries; None is the base model."""
    requests = [exact(body(ids_of(server, f"{seed} {i}", 16), options.gen,
                           **({"model": a} if a else {}))) for i, a in enumerate(adapters)]
    answers = asyncio.run(ask_all(server.port, requests))
    fail_on_errors(answers)
    rate = decode_rate(answers)
    if not rate:
        raise SystemExit("no moment in which all streams ran: raise --gen")
    return rate


def served(options, paths):
    """tok/s of rounds with adapters and without, alternating, over HTTP."""
    names = [f"adapter-{i}" for i in range(len(paths))]
    mixed, base = [], []
    with Server(options, "--adapter-root", paths[0].parent, "--adapter-budget", options.budget) as s:
        for name, path in zip(names, paths):
            register(s, name, path)
        asyncio.run(ask(s.port, body(ids_of(s, "warm-up", 8), 16, model=names[0])))
        for number in range(options.rounds):
            base.append(streams(s, options, f"base {number}", [None] * len(names)))
            mixed.append(streams(s, options, f"mixed {number}", names))
    return mixed, base


def in_process(options, batch, adapters):
    """tok/s with adapters over tok/s without, steps alternating in one process."""
    out = run_json(ROOT / "build/terrace", "bench", "--model", model_file(options.model),
                   "--threads", options.threads, "--memory-limit", options.bench_memory, "--batch", batch,
                   "--adapters", adapters, "--rank", RANK, "--gen", options.gen, "--prompt", 64,
                   "--rounds", 1, "--json")
    row = out["decode"][0]
    return {"load": f"in process, batch {batch}, {adapters} adapters", "tok/s": row["adapter_tok_s"],
            "tok/s of the base": row["tok_s"], "share": row["adapter_tok_s"] / row["tok_s"]}


def adapters(options):
    facts, path = machine(), model_file(options.model)
    paths = lora_gguf.files(path, ROOT / "build/models", options.clients, RANK)
    mixed, base = served(options, paths)
    rows = [{"load": f"over HTTP, {options.clients} streams, {options.clients} adapters",
             "tok/s": median(mixed), "tok/s of the base": median(base),
             "share": median(m / b for m, b in zip(mixed, base))}]
    rows += [in_process(options, *map(int, pair.split("/"))) for pair in options.shapes.split(",")]
    least = {(8, 8): .85, (32, 32): .75, (1, 1): .93}
    bounds = [bound(r["load"] + ": share", r["share"], least=least[shape])
              for shape, r in zip([tuple(map(int, p.split("/"))) for p in options.shapes.split(",")],
                                  rows[1:]) if shape in least]
    notes = []
    if options.peer:
        peer = run_json(peer_python(False), ROOT / "bench/llama_cpp_lora.py", path, options.threads,
                        options.gen, *paths)
        best = max(("contexts", "switching"), key=lambda k: peer[k])
        rows.append({"load": f"{PEER}, low level, {best}", "tok/s": peer[best],
                     "tok/s of the base": peer["base"], "share": peer[best] / peer["base"]})
        bounds.append(bound(f"over HTTP / {PEER}", median(mixed) / peer[best], least=6))
        notes = [f"{PEER}: its server serves one adapter, so this is the most that its library "
                 f"reaches with {options.clients}: contexts {peer['contexts']:.2f}, switching "
                 f"{peer['switching']:.2f} tok/s (bench/llama_cpp_lora.py)."]
    write_report(options, facts, rows, bounds, notes)
