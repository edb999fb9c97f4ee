"""Serving scenarios about answers that were given before: repeats, hits and light misses."""
import asyncio
import json
import random
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request

from common import machine
from serving_client import ask, ask_all, begin, body, encode, run_first
from serving_kit import Server, bound, median, percentile, text_of, write_report

SEED = 29
CTX = 1024
BUDGET = "64MiB"
SYSTEM_TOKENS, MOST_OUT = 200, 4
SAID = re.compile(rb"x-terrace-cache: (\w+)", re.I)


def said(answer):
    """What the response cache did: hit, miss, coalesced."""
    found = SAID.search(answer._head or b"")
    return found[1].decode() if found else "none"


def question(server, system, number, own_tokens):
    """A chat of one persona with about own_tokens of its own, the template's included."""
    own = f"{number} " + text_of(server, f"own {number}", max(1, own_tokens - 6))
    messages = [{"role": "system", "content": system}, {"role": "user", "content": own}]
    return body(messages, 1 + number % MOST_OUT)


def serve(options, **more):
    return Server(options, "--ctx", CTX, "--response-cache", BUDGET, **more)


def milliseconds(name, answers, begun=lambda a: a.sent):
    values = [1e3 * (a.ended - begun(a)) for a in answers]
    return {"answers": name, "n": len(values), **{f"p{p} ms": percentile(values, p)
            for p in (50, 95, 99)}, "most ms": max(values, default=None)}


# ---- repeats: open loop, most requests were asked before ----

def repeats_plan(options):
    """(second, number of the question): a Poisson process, or an even one; a repeat takes any
    earlier number."""
    rng, at, n_new, out = random.Random(SEED), 0.0, 0, []
    while (at := at + (1 / options.rate if options.even else rng.expovariate(options.rate))) < options.seconds:
        repeat = n_new > 0 and rng.random() < options.share
        out.append((at, rng.randrange(n_new) if repeat else n_new))
        n_new += not repeat
    return out, n_new


async def open_loop(port, plan, questions):
    """Times count from when a request was due, so a late client does not flatter the server."""
    requests = [encode(q) for q in questions]
    run_first()
    start, tasks, late = time.perf_counter(), [], 0.0
    for at, number in plan:
        while (wait := start + at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        late = max(late, -wait)
        answer, task = begin(port, requests[number], sent=start + at)
        answer.begun = time.perf_counter()
        tasks.append(task)
    done, _ = await asyncio.wait(tasks, timeout=60)
    return [t.result() for t in tasks if t in done], len(tasks) - len(done), late


def repeats(options):
    facts, (plan, n_new) = machine(), repeats_plan(options)
    with serve(options, limit_s=options.seconds + 1800) as s:
        system = text_of(s, "system", SYSTEM_TOKENS)
        questions = [question(s, system, i, options.own) for i in range(n_new)]
        asyncio.run(ask_all(s.port, [question(s, system, -1, options.own)]))  # the persona is cached
        answers, unfinished, late = asyncio.run(open_loop(s.port, plan, questions))
        stats = s.json("/v1/cache")
    good = [a for a in answers if not a.error]
    kinds = {k: [a for a in good if said(a) == k] for k in ("hit", "coalesced", "miss")}
    rows = [milliseconds("all", good)] + [milliseconds(k, v) for k, v in kinds.items()]
    rows.append(milliseconds("hit, from sending", kinds["hit"], lambda a: a.begun))
    errors = len(plan) - len(good)
    bounds = [bound("p95 of all answers, ms", rows[0]["p95 ms"], most=300),
              bound("p99 of hits, from sending, ms", rows[-1]["p99 ms"], most=5),
              bound("errors", errors, most=0),
              bound("wrong counts of hits", abs(stats["hits"] - len(kinds["hit"])), most=0)]
    notes = [f"{len(plan)} requests in {options.seconds} s, open loop, "
             f"{'even' if options.even else 'Poisson'} at {options.rate:g}/s; "
             f"{100 * (1 - n_new / len(plan)):.0f} % had been asked before; {SYSTEM_TOKENS} tokens of "
             f"persona, {options.own} own, 1 to {MOST_OUT} out; {unfinished} unfinished; the client was "
             f"at most {1e3 * late:.0f} ms late, which counts unless it says from sending."]
    notes += sorted({a.error for a in answers if a.error})[:5]
    write_report(options, facts, rows, bounds, notes, cache=stats)


# ---- hits: nothing else, as many as one connection thread can serve ----

OWN_TOKENS = 20

SCRIPT = """
local bodies = {}
for line in io.lines("%s") do bodies[#bodies + 1] = line end
local at = 0
request = function()
  at = at %% #bodies + 1
  return wrk.format("POST", "/v1/chat/completions", nil, bodies[at])
end
"""


def post(server, text):
    with urllib.request.urlopen(server.url + "/v1/chat/completions", text.encode(), 120) as reply:
        return reply.read()


def hits(options):
    wrk, facts, rows = shutil.which("wrk"), machine(), []
    if not wrk:
        raise SystemExit("wrk is needed: apt install wrk")
    with serve(options) as s, tempfile.TemporaryDirectory() as folder:
        system = text_of(s, "system", SYSTEM_TOKENS)
        questions = [question(s, system, i, OWN_TOKENS) for i in range(options.prompts)]
        for stream in (False, True):
            for q in questions:
                q["stream"] = stream
                if not stream:
                    q.pop("stream_options", None)
            lines = [json.dumps(q) for q in questions]
            for line in lines + lines:  # made, then found
                post(s, line)
            with open(f"{folder}/bodies", "w") as f:
                f.write("\n".join(lines) + "\n")
            with open(f"{folder}/script.lua", "w") as f:
                f.write(SCRIPT % f.name.replace("script.lua", "bodies"))
            for clients in options.clients:
                before = s.json("/v1/cache")["hits"]
                out = subprocess.run([wrk, "-t1", f"-c{clients}", f"-d{options.seconds}s", "--latency",
                                      "-s", f"{folder}/script.lua", s.url], check=True,
                                     capture_output=True, text=True).stdout
                n = s.json("/v1/cache")["hits"] - before
                total = int(re.search(r"(\d+) requests in", out)[1])
                bad = int((re.search(r"Non-2xx or 3xx responses: (\d+)", out) or [0, 0])[1])
                bad += "Socket errors" in out
                rows.append({"form": "stream" if stream else "whole", "clients": clients,
                             "requests/s": float(re.search(r"Requests/sec: +([\d.]+)", out)[1]),
                             "p50": re.search(r"50% +(\S+)", out)[1],
                             "p99": re.search(r"99% +(\S+)", out)[1], "errors": bad,
                             "missed": max(0, total - n)})
    whole = [r for r in rows if r["form"] == "whole"]
    bounds = [bound("hits/s, whole answers", max(r["requests/s"] for r in whole), least=20000),
              bound("errors", sum(r["errors"] for r in rows), most=0),
              bound("requests that were no hit", sum(r["missed"] for r in rows), most=0)]
    notes = [f"{options.prompts} requests in turn, one I/O thread, wrk with one thread on the same "
             f"processors; {SYSTEM_TOKENS + OWN_TOKENS} prompt tokens, 1 to {MOST_OUT} out."]
    write_report(options, facts, rows, bounds, notes)


# ---- light: misses, one at a time ----

async def one_by_one(port, questions):
    return [await ask(port, q) for q in questions]


def light(options):
    facts = machine()
    with serve(options) as s:
        system = text_of(s, "system", SYSTEM_TOKENS)
        questions = [question(s, system, i, options.own) for i in range(options.requests)]
        asyncio.run(ask_all(s.port, [question(s, system, -1, options.own)]))
        answers = asyncio.run(one_by_one(s.port, questions))
    good = [a for a in answers if not a.error and said(a) == "miss"]
    rows = [milliseconds("all", good)]
    for n in range(1, MOST_OUT + 1):
        rows.append(milliseconds(f"{n} tokens", [a for a in good if a.usage()[2] == n]))
    own = median([a.usage()[0] - a.usage()[1] for a in good])
    bounds = [bound("p50, ms", rows[0]["p50 ms"], most=300),
              bound("errors", len(answers) - len(good), most=0)]
    notes = [f"One at a time; {own:g} tokens of the prompt had to be computed (median), the persona "
             f"of {SYSTEM_TOKENS} was cached."]
    write_report(options, facts, rows, bounds, notes)
