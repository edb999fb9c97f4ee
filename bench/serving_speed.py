"""Serving scenarios about speed and fairness: personas, batch, smooth, fair."""
import asyncio
import contextlib
import signal
import socket
import subprocess
import time
import urllib.request

from common import machine, model_file
from peers import PEER, peer_python
from serving_client import PEER_PIECE, ask, ask_all, begin, body, exact
from serving_kit import (BLOCK, Server, bound, ids_of, median, percentile, text_of,
                         write_report)

PEER_LIMIT_S = 240


def fail_on_errors(answers):
    wrong = [a.error for a in answers if a.error]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(answers)} requests failed: {wrong[0]}")


# ---- personas: eight users of one persona ----

class Peer:
    """llama-cpp-python's server on the same file, ended by its pid."""

    def __init__(self, options):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.command = [peer_python(False), "-m", "llama_cpp.server", "--model",
                        model_file(options.model), "--host", "127.0.0.1", "--port", self.port,
                        "--n_threads", options.threads, "--n_threads_batch", options.threads,
                        "--n_ctx", 4096, "--interrupt_requests", "false", "--verbose", "false"]

    def __enter__(self):
        self.process = subprocess.Popen([str(c) for c in self.command], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until = time.monotonic() + 180
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=5).close()
                return self
            time.sleep(0.2)
        self.__exit__()
        raise SystemExit(f"llama_cpp.server did not start: {self.process.stderr.read()[-2000:]}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def persona_requests(texts, n_out):
    return [body(text, n_out) for text in texts]


def one_wave(port, requests, limit_s=None, **more):
    began = time.perf_counter()
    answers = asyncio.run(ask_all(port, requests, limit_s, **more))
    return time.perf_counter() - began, answers


def wave_row(name, wall, answers):
    usage = [a.usage() for a in answers]
    return {"load": name, "wall s": wall, "p50 TTFT s": median(a.ttft for a in answers),
            "last TTFT s": max((a.ttft for a in answers if a.ttft), default=None),
            "prompt tokens": sum(u[0] for u in usage), "computed": sum(u[0] - u[1] for u in usage),
            "tokens out": sum(u[2] for u in usage),
            "unfinished": sum(a.error is not None for a in answers)}


def persona_texts(server, persona_seed, own_seed, options):
    persona = text_of(server, f"persona {persona_seed}", 340)
    return [f"{persona}\n{text_of(server, f'own {own_seed} {user}', 20)}"
            for user in range(options.clients)]


def persona_rounds(options):
    rows, texts = [], None
    with Server(options) as s:
        asyncio.run(ask(s.port, body(text_of(s, "warm-up", 8), 4)))
        for number in range(options.rounds):
            cold = persona_texts(s, number, f"cold {number}", options)
            warm = persona_texts(s, number, f"warm {number}", options)
            texts = texts or cold
            for name, prompts in (("cold", cold), ("warm", warm)):
                wall, answers = one_wave(s.port, persona_requests(prompts, options.gen))
                fail_on_errors(answers)
                rows.append(wave_row(f"{name} {number + 1}", wall, answers))
    return rows, texts


def peer_row(options, texts):
    with Peer(options) as peer:
        one_wave(peer.port, [{"prompt": "warm-up", "max_tokens": 4, "stream": True}], PEER_LIMIT_S)
        requests = persona_requests(texts, options.gen)
        for r in requests:  # it has no ignore_eos
            r["logit_bias"] = {"2": -100, "32000": -100, "32007": -100}
            del r["ignore_eos"], r["stream_options"]
        wall, answers = one_wave(peer.port, requests, PEER_LIMIT_S, piece=PEER_PIECE)
    row = wave_row("llama-cpp-python's server, cold", wall, answers)
    row.update({"prompt tokens": None, "computed": None, "tokens out": None})
    return row


def personas(options):
    facts = machine()
    rows, texts = persona_rounds(options)
    cold, warm = rows[0::2], rows[1::2]
    most = 340 + options.clients * (20 + BLOCK)
    bounds = [
        bound("wall s, cold", median(r["wall s"] for r in cold), most=6),
        bound("p50 TTFT s, cold", median(r["p50 TTFT s"] for r in cold), most=3.5),
        bound("p50 TTFT s, warm", median(r["p50 TTFT s"] for r in warm), most=1.2),
        bound("prompt tokens computed, cold", max(r["computed"] for r in cold), most=most),
        bound("prompt tokens computed, warm", max(r["computed"] for r in warm), most=most - 340),
    ]
    notes = []
    if options.peer:
        rows.append(peer_row(options, texts))
        ratio = rows[-1]["wall s"] / bounds[0]["value"]
        notes = [f"{PEER} takes {'more than ' * bool(rows[-1]['unfinished'])}{ratio:.1f} times as "
                 "long (wall, cold)."]
    write_report(options, facts, rows, bounds, notes)


# ---- batch: decode speed by number of clients ----

def decode_rate(answers):
    """Tokens per second while all streams run: between the last first token and the first last."""
    begin_s = max(a.times[0] for a in answers)
    end_s = min(a.times[-1] for a in answers)
    n = sum(begin_s < t <= end_s for a in answers for t in a.times)
    return n / (end_s - begin_s) if end_s > begin_s else None


def batch(options):
    facts, rates = machine(), {n: [] for n in options.sizes}
    with Server(options) as s:
        asyncio.run(ask(s.port, body(ids_of(s, "warm-up", 8), 16)))
        for number in range(options.rounds):
            for n in options.sizes:
                requests = [exact(body(ids_of(s, f"batch {number} {n} {i}", 16), options.gen))
                            for i in range(n)]
                answers = asyncio.run(ask_all(s.port, requests))
                fail_on_errors(answers)
                rates[n].append(decode_rate(answers))
    rows = [{"clients": n, "tok/s": median(r), "least": min(r), "most": max(r),
             "times one client": median(r) / median(rates[1])} for n, r in rates.items()]
    at_8 = next((r["times one client"] for r in rows if r["clients"] == 8), None)
    write_report(options, facts, rows, [bound("tok/s at 8 clients / at 1", at_8, least=4)])


# ---- smooth: streams beside a long prompt ----

async def smooth_load(port, streams, prompt, quiet_s):
    pairs = [begin(port, r) for r in streams]
    while not all(a.times for a, _ in pairs):
        await asyncio.sleep(0.05)
        fail_on_errors([a for a, task in pairs if task.done()])
    quiet = time.perf_counter() + 1
    await asyncio.sleep(1 + quiet_s)
    loud = time.perf_counter()
    long = await ask(port, prompt)
    fail_on_errors([long])
    end = long.times[0]
    running = [not task.done() for _, task in pairs]
    for answer, task in pairs:
        if not task.done():
            answer.leave()
        await task
    if not all(running):
        raise SystemExit("a stream ended before the long prompt did: raise --gen")

    def gaps(low, high):
        return [b - a for answer, _ in pairs for a, b in zip(answer.times, answer.times[1:])
                if low <= a and b <= high]
    return gaps(quiet, loud), gaps(loud, end), long


def gap_row(name, gaps):
    return {"gaps": name, "n": len(gaps), "p50 ms": 1e3 * percentile(gaps, 50),
            "p95 ms": 1e3 * percentile(gaps, 95), "p99 ms": 1e3 * percentile(gaps, 99),
            "most ms": 1e3 * max(gaps)}


def smooth(options):
    facts, context = machine(), options.long + options.gen + 64
    with Server(options, "--ctx", context) as s:
        streams = [exact(body(ids_of(s, f"stream {i}", 16), options.gen))
                   for i in range(options.clients)]
        prompt = exact(body(ids_of(s, "long", options.long), 1))
        without, beside, long = asyncio.run(smooth_load(s.port, streams, prompt, options.quiet))
    rows = [gap_row("without", without), gap_row(f"beside {options.long} tokens", beside)]
    ratio = rows[1]["p99 ms"] / rows[0]["p99 ms"]
    notes = [f"p99 beside the prompt is {rows[1]['p99 ms'] / rows[0]['p50 ms']:.2f} times the "
             f"median gap without it; the prompt's TTFT was {long.ttft:.1f} s."]
    write_report(options, facts, rows, [bound("p99 gap beside / without", ratio, most=2.5)], notes)


# ---- fair: one tenant floods, another asks a little ----

async def short_requests(port, prompts, n_out):
    """One a second, whether or not the one before is over."""
    start, tasks = time.perf_counter(), []
    for i, ids in enumerate(prompts):
        await asyncio.sleep(max(0, start + i - time.perf_counter()))
        tasks.append(begin(port, exact(body(ids, n_out, user="short")), source="127.0.0.3")[1])
    return await asyncio.gather(*tasks)


async def flooding(port, prompts, done):
    """One place of the flood: a long prompt after the other."""
    while not done.is_set():
        answer, task = begin(port, exact(body(next(prompts), 8, user="flood")), source="127.0.0.2")
        stop = asyncio.create_task(done.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            answer.leave()
        done.served += bool(answer.times)
        done.errors += [answer.error] * (answer.error is not None)
        await task


async def fair_load(port, short, long, options):
    done = asyncio.Event()
    done.served, done.errors = 0, []
    places = [asyncio.create_task(flooding(port, long, done)) for _ in range(options.flood)]
    await asyncio.sleep(options.quiet)
    answers = await short_requests(port, short, 4)
    done.set()
    await asyncio.gather(*places)
    if done.errors:
        raise SystemExit(f"{len(done.errors)} requests of the flood failed: {done.errors[0]}")
    return answers, done.served


def fair(options):
    facts = machine()
    with Server(options, "--ctx", options.long + 64) as s:
        short = [ids_of(s, f"short {i}", 20) for i in range(2 * options.requests)]
        base = ids_of(s, "flood", options.long - 1)
        long = ([i + 300] + base for i in range(1 << 20))  # differ in the first token: no reuse
        empty = asyncio.run(short_requests(s.port, short[:options.requests], 4))
        beside, served = asyncio.run(fair_load(s.port, short[options.requests:], long, options))
    fail_on_errors(empty + beside)
    rows = [{"server": name, "requests": len(answers),
             "p50 TTFT s": median(a.ttft for a in answers),
             "p95 TTFT s": percentile([a.ttft for a in answers], 95),
             "most s": max(a.ttft for a in answers)}
            for name, answers in (("empty", empty), ("flooded", beside))]
    ratio = rows[1]["p95 TTFT s"] / rows[0]["p95 TTFT s"]
    notes = [f"The flood: {options.flood} prompts of {options.long} tokens at all times, {served} "
             "answered. The tenants differ in `user` and in address (127.0.0.2, 127.0.0.3)."]
    write_report(options, facts, rows, [bound("p95 TTFT flooded / empty", ratio, most=3)], notes)
