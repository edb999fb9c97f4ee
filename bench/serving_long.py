"""Serving scenarios that take time: cache, stability, load."""
import asyncio
import itertools
import os
import random
import time

from common import machine
from serving_client import ask, ask_all, begin, body, exact
from serving_kit import (BLOCK, WORDS, Server, bound, ids_of, median, percentile, text_of,
                         write_report)

SEED = 4
PERSONA_TOKENS, TURNS_CTX = 300, 1536  # of a persona; enough for the longest conversation


# ---- cache: conversations ----

def sentence(rng, n_words):
    return " ".join(rng.choice(WORDS) for _ in range(n_words)).capitalize() + "?"


def make_trace(n_users, personas):
    """(persona and questions of every user; the order in which users take their next turn)"""
    rng = random.Random(SEED)
    users = [(personas[i % len(personas)],
              [sentence(rng, rng.randrange(15, 31)) for _ in range(rng.randrange(3, 7))])
             for i in range(n_users)]
    order = [i for i, (_, questions) in enumerate(users) for _ in questions]
    rng.shuffle(order)
    return users, order


async def replay(port, trace, n_clients, n_out):
    """Every turn in the trace's order, n_clients at a time; the answers by (user, turn)."""
    users, order = trace
    messages = [[{"role": "system", "content": persona}] for persona, _ in users]
    locks, turns = [asyncio.Lock() for _ in users], [itertools.count() for _ in users]
    results, queue = {}, iter(order)

    async def client():
        for user in queue:
            async with locks[user]:  # its turns come one after the other
                turn, talk = next(turns[user]), messages[user]
                talk.append({"role": "user", "content": users[user][1][turn]})
                answer = await ask(port, exact(body(list(talk), n_out)))
                if answer.error:
                    raise SystemExit(f"user {user}, turn {turn}: {answer.error}")
                talk.append({"role": "assistant", "content": answer.text()})
                results[user, turn] = answer

    await asyncio.gather(*(client() for _ in range(n_clients)))
    return results


def working_set(trace, results):
    """Blocks that hold every conversation once and each persona once."""
    users, _ = trace
    last = [results[user, len(questions) - 1].usage() for user, (_, questions) in enumerate(users)]
    own = sum(prompt + out - PERSONA_TOKENS for prompt, _, out in last)
    return (own + len({p for p, _ in users}) * PERSONA_TOKENS) // BLOCK


def cache_row(name, results, metrics, blocks):
    usage = [a.usage() for a in results.values()]
    ttft = [a.ttft for a in results.values()]
    return {"server": name, "KV blocks": blocks, "turns": len(usage),
            "prompt tokens": sum(u[0] for u in usage),
            "hit rate": sum(u[1] for u in usage) / sum(u[0] for u in usage),
            "mean TTFT ms": 1e3 * sum(ttft) / len(ttft), "p50 TTFT ms": 1e3 * median(ttft),
            "p95 TTFT ms": 1e3 * percentile(ttft, 95),
            "evictions": metrics["terrace_kv_block_evictions_total"],
            "preemptions": metrics["vllm:num_preemptions_total"]}


def cache_run(options, trace, name, *args, memory=None):
    """One server, the trace replayed: (row, answers, memory limit for a number of blocks)"""
    given, options.memory = options.memory, memory or options.memory
    with Server(options, "--ctx", TURNS_CTX, *args) as s:
        asyncio.run(ask(s.port, body(ids_of(s, "warm-up", 8), 16)))
        results = asyncio.run(replay(s.port, trace, options.clients, options.gen))
        row = cache_row(name, results, s.metrics(), s.plan()[1])
        limit_bytes, (pool_bytes, n_blocks) = parse_size(options.memory), s.plan()
    options.memory = given
    # a sixteenth of the limit is left for adapters
    rest, per_block = limit_bytes * 15 / 16 - pool_bytes, pool_bytes / n_blocks
    return (row, results,
            lambda blocks: f"{int((rest + blocks * per_block) * 16 / 15 / 2**20) + 1}MiB")


def parse_size(text):
    for unit, scale in (("GiB", 30), ("MiB", 20)):
        if text.endswith(unit):
            return int(float(text[:-3]) * 2**scale)
    return int(text)


def differing(a, b):
    """Conversations of which some answer is not the same (a difference changes what follows)."""
    return len({key[0] for key in a if a[key].text() != b[key].text()})


def cache(options):
    facts = machine()
    with Server(options) as s:
        personas = [text_of(s, f"persona {i}", PERSONA_TOKENS) for i in range(4)]
    trace = make_trace(options.users, personas)
    off, plain, _ = cache_run(options, trace, "cache off", "--no-prefix-cache")
    on, cached, limit_for = cache_run(options, trace, "cache on")
    quarter = max(working_set(trace, cached) // 4, TURNS_CTX // BLOCK)
    small, squeezed, _ = cache_run(options, trace, "cache on, small pool",
                                   memory=limit_for(quarter))
    lower = 1 - on["mean TTFT ms"] / off["mean TTFT ms"]
    bounds = [
        bound("hit rate of prompt tokens", on["hit rate"], least=0.6),
        bound("mean TTFT lower than with cache off by", lower, least=0.3),
        bound("conversations that differ from cache off", differing(plain, cached), most=0),
        bound("conversations that differ, small pool", differing(plain, squeezed), most=0),
        bound("blocks evicted in the small pool", small["evictions"], least=1),
    ]
    notes = [f"{len(trace[0])} users, {len(trace[1])} turns, {options.clients} users at once; the "
             f"working set is {working_set(trace, cached)} blocks, the small pool {quarter}."]
    write_report(options, facts, [off, on, small], bounds, notes)


# ---- stability: clients that come and go ----

def resident_mib(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def state(s, name):
    m = s.metrics()
    return {"server": name, "resident MiB": resident_mib(s.pid),
            "descriptors": len(os.listdir(f"/proc/{s.pid}/fd")),
            **{f"blocks {k}": m[f'terrace_kv_blocks{{state="{k}"}}']
               for k in ("free", "cached", "held")},
            "running": m["vllm:num_requests_running"], "waiting": m["vllm:num_requests_waiting"]}


def wait_idle(s, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        row = state(s, "")
        if not row["running"] + row["waiting"] and s.metrics()["terrace_http_connections"] <= 1:
            return
        time.sleep(0.1)


class Crowd:
    """Clients that ask one after the other; a third of the streams is left at random."""

    def __init__(self, options, prompts, expected):
        self.options, self.prompts, self.expected = options, prompts, expected
        self.left = self.complete = 0
        self.errors, self.disordered, self.different = [], 0, 0

    async def client(self, port, rng, until):
        while time.perf_counter() < until:
            which = rng.randrange(len(self.prompts))
            request = exact(body(self.prompts[which], self.options.gen))
            if rng.random() < 1 / 2:  # finds nothing in the cache, and the cache fills up
                request["cache_salt"] = str(rng.random())
            leave = rng.randrange(self.options.gen) if rng.random() < 1 / 3 else None
            if leave == 0:  # before the first token
                answer, task = begin(port, request)
                await asyncio.sleep(rng.random())
                if not task.done():
                    answer.left = True
                    if hasattr(answer, "transport"):
                        answer.transport.abort()
                await task
            else:
                answer = await ask(port, request, leave_after=leave)
            self.judge(answer, which)

    def judge(self, answer, which):
        if answer.left:
            self.left += 1
        elif answer.error:
            self.errors.append(answer.error)
        else:
            self.complete += 1
            self.disordered += answer.counts() != list(range(1, self.options.gen + 1))
            self.different += answer.text() != self.expected[which]


def touch_pool(s, n_ctx):
    """Uses every KV block once, so that what resident memory grows by later is none of the pool."""
    n = n_ctx - BLOCK
    for i in range(s.plan()[1] * BLOCK // n + 1):
        asyncio.run(ask(s.port, body(ids_of(s, f"touch {i}", n), 1)))


async def run_crowd(s, crowd, samples):
    began = time.perf_counter()
    until = began + crowd.options.seconds
    clients = [asyncio.create_task(crowd.client(s.port, random.Random(f"{SEED} {i}"), until))
               for i in range(crowd.options.clients)]
    everyone = asyncio.gather(*clients)
    while not everyone.done():
        samples.append((time.perf_counter() - began, resident_mib(s.pid)))
        await asyncio.wait([everyone], timeout=max(1, crowd.options.seconds / 60))
    await everyone


def crowd_bounds(crowd, before, after, samples):
    third = [mib for at, mib in samples if at >= crowd.options.seconds / 3]
    asked = crowd.complete + crowd.left + len(crowd.errors)
    return [
        bound("streams in error", len(crowd.errors), most=0),
        bound("surviving streams incomplete or out of order", crowd.disordered, most=0),
        bound("surviving streams that differ from the answer asked alone", crowd.different, most=0),
        bound("share of streams left by their clients", crowd.left / max(1, asked), least=0.25),
        bound("resident MiB more at the end than after a third", samples[-1][1] - third[0], most=8),
        bound("descriptors more than before", after["descriptors"] - before["descriptors"], most=0),
        bound("KV blocks held when idle", after["blocks held"], most=0),
        bound("KV blocks lost", before["blocks free"] + before["blocks cached"] -
              after["blocks free"] - after["blocks cached"], most=0),
    ]


def stability(options):
    facts, n = machine(), options.clients
    with Server(options, "--max-running", n, "--ctx", 1024, limit_s=options.seconds + 1800) as s:
        touch_pool(s, 1024)
        prompts = [ids_of(s, f"crowd {i}", 20 + i) for i in range(40)]
        alone = [asyncio.run(ask(s.port, exact(body(p, options.gen)))) for p in prompts]
        crowd = Crowd(options, prompts, [a.text() for a in alone])
        wait_idle(s)
        before, samples = state(s, "before"), []
        asyncio.run(run_crowd(s, crowd, samples))
        wait_idle(s)
        after = state(s, "after")
    notes = [f"{n} streams at all times for {options.seconds} s: {crowd.complete} complete, "
             f"{crowd.left} left."] + [f"error: {e}" for e in sorted(set(crowd.errors))[:5]]
    bounds = crowd_bounds(crowd, before, after, samples)
    write_report(options, facts, [before, after], bounds, notes,
                 resident_mib=[[round(t), round(mib, 1)] for t, mib in samples])


# ---- load: open loop ----

def arrivals(options):
    """(second, prompt) of a Poisson process; prompt k is asked in proportion to 1 / (k + 1)."""
    rng, at, out = random.Random(SEED), 0.0, []
    weights = list(itertools.accumulate(1 / (k + 1) for k in range(options.prompts)))
    while (at := at + rng.expovariate(options.rate)) < options.seconds:
        out.append((at, rng.choices(range(options.prompts), cum_weights=weights)[0]))
    return out


async def open_loop(port, plan, prompts, n_out):
    """Times count from when a request was due, so a late client does not flatter the server."""
    start, tasks, late = time.perf_counter(), [], 0.0
    for at, which in plan:
        while (wait := start + at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        late = max(late, -wait)
        tasks.append(begin(port, body(prompts[which], n_out), sent=start + at)[1])
    done, _ = await asyncio.wait(tasks, timeout=60)
    answers = [t.result() for t in tasks if t in done]
    return answers, len(tasks) - len(answers), late


def load(options):
    facts, plan = machine(), arrivals(options)
    with Server(options, "--ctx", 1024, limit_s=options.seconds + 900) as s:
        rng = random.Random(SEED)
        prompts = [ids_of(s, f"load {i}", rng.randrange(40, 121)) for i in range(options.prompts)]
        asyncio.run(ask_all(s.port, [body(ids_of(s, "warm-up", 8), 16)]))
        before = s.metrics()
        answers, unfinished, late = asyncio.run(open_loop(s.port, plan, prompts, options.gen))
        m = s.metrics()
    good = [a for a in answers if not a.error]
    wrong = len(answers) - len(good) + unfinished
    rows = [{"figure": name, **{f"p{p}": 1e3 * percentile(values, p) if values else None
                                for p in (50, 95, 99)},
             "most": 1e3 * max(values, default=0)}
            for name, values in (("TTFT ms", [a.ttft for a in good]),
                                 ("whole answer ms", [a.total for a in good]))]
    asked, hits = (m[k] - before[k] for k in ("vllm:prefix_cache_queries_total",
                                              "vllm:prefix_cache_hits_total"))
    notes = [f"{len(plan)} requests in {options.seconds} s, open loop, Poisson; {len(good)} "
             f"complete; {hits / max(1, asked) * 100:.0f} % of prompt tokens from the cache; the "
             f"client was at most {1e3 * late:.0f} ms late."] + sorted({a.error for a in answers if a.error})[:5]
    bounds = [bound("error rate", wrong / len(plan), most=0)]
    write_report(options, facts, rows, bounds, notes)
