#!/usr/bin/env python3
"""Adapters that change while the small real model serves. Ends with "N passed, N failed".

HOT_SWAP_SECONDS (300) is how long streams run while adapters are swapped under them, and
HOT_SWAP_CYCLES (2000) how often an adapter is loaded and unloaded."""
import bisect
import collections
import http.client
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "api"))
from lora_files import random_adapter  # noqa: E402
from service import Service, run_tests  # noqa: E402

SECONDS = float(os.environ.get("HOT_SWAP_SECONDS", "300"))
CYCLES = int(os.environ.get("HOT_SWAP_CYCLES", "2000"))
STREAMS, NAMES, CONTENTS, TOKENS = 16, 12, 3, 20
PROMPTS = ("Tell me about the sea.", "Write a list of fruit.")


def call(s, method, path, body=None):
    """Status and answer."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(s.url + path, data, method=method),
                                    timeout=300) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def must(s, method, path, body=None):
    status, text = call(s, method, path, body)
    assert 200 <= status < 300, f"{method} {path}: {status} {text}"
    return text


def body(model, prompt, **more):
    return json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}],
                       "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, **more})


def answer(connection, data):
    connection.request("POST", "/v1/chat/completions", data)
    reply = connection.getresponse()
    text = reply.read()
    assert reply.status == 200, text
    return json.loads(text)["choices"][0]["message"]["content"]


def stream(connection, data):
    """The text, and when each piece of it came."""
    connection.request("POST", "/v1/chat/completions", data)
    reply = connection.getresponse()
    assert reply.status == 200, reply.read()
    text, times = "", []
    for line in reply:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        assert "error" not in event, event
        piece = event["choices"][0]["delta"].get("content") or ""
        times.append(time.monotonic())
        text += piece
    return text, times


def connect(s):
    return http.client.HTTPConnection("127.0.0.1", s.port, timeout=600)


def resident_kib(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1])


def wait_for(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def idle(s):
    m = s.metrics()
    return m["vllm:num_requests_running"] + m["vllm:num_requests_waiting"] == 0


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


# ---- streams while adapters change ----

class Names:
    """Which content each name stood for, and when. A request may get any content that was current
    between its start and its first token."""

    def __init__(self):
        self.lock = threading.Lock()
        self.history = collections.defaultdict(list)  # name -> [[content, from, until]]

    def changing(self, name, content):
        """From now on the new content may be served, and still the old one."""
        with self.lock:
            row = [content, time.monotonic(), float("inf")]
            self.history[name].append(row)
            return row

    def changed(self, name, row):
        with self.lock:
            for other in self.history[name]:
                if other is not row:
                    other[2] = min(other[2], time.monotonic())

    def possible(self, name, begin, end):
        with self.lock:
            return {c for c, since, until in self.history[name] if since <= end and until >= begin}

    def current(self, name):
        with self.lock:
            return self.history[name][-1][0]


class Swapper(threading.Thread):
    """One change a second: another version, a rollback, out of memory, back in, or a name that comes
    and goes."""

    def __init__(self, s, names, folders):
        super().__init__()
        self.s, self.names, self.folders = s, names, folders
        self.rng, self.count, self.failures = random.Random(4), collections.Counter(), []
        self.windows, self.over = [], threading.Event()

    def run(self):
        due = time.monotonic()
        while not self.over.is_set():
            due += 1
            begin = time.monotonic()
            try:
                self.change()
            except Exception as e:
                self.failures.append(repr(e))
            self.windows.append((begin, time.monotonic()))
            self.over.wait(max(0, due - time.monotonic()))

    def change(self):
        kind = self.rng.choice(("swap", "swap", "swap", "rollback", "unload", "load", "visitor"))
        i = self.rng.randrange(NAMES)
        name = f"n{i}"
        self.count[kind] += 1
        if kind == "swap":
            content = self.rng.choice([c for c in range(CONTENTS)
                                       if (i, c) != self.names.current(name)])
            row = self.names.changing(name, (i, content))
            must(self.s, "POST", "/v1/load_lora_adapter",
                 {"lora_name": name, "lora_path": self.folders[i, content], "load_inplace": True})
            self.names.changed(name, row)
        elif kind == "rollback":
            card = json.loads(must(self.s, "GET", f"/v1/adapters/{name}"))
            versions = json.loads(must(self.s, "GET", f"/v1/adapters/{name}/versions"))["data"]
            older = [v for v in versions if v["version"] < card["version"]]
            if not older:
                return
            content = next(k for k, path in self.folders.items() if path == older[-1]["path"])
            row = self.names.changing(name, content)
            must(self.s, "POST", f"/v1/adapters/{name}/rollback", {})
            self.names.changed(name, row)
        elif kind == "visitor":
            must(self.s, "POST", "/v1/load_lora_adapter",
                 {"lora_name": "visitor", "lora_path": self.folders[i, 0]})
            must(self.s, "POST", "/v1/unload_lora_adapter", {"lora_name": "visitor"})
        else:
            must(self.s, "POST", f"/v1/adapters/{name}/{kind}", {})


class Client(threading.Thread):
    def __init__(self, s, seed, names, references, until):
        super().__init__()
        self.connection, self.rng = connect(s), random.Random(seed)
        self.names, self.references, self.until = names, references, until
        self.n, self.wrong, self.failures, self.gaps = 0, [], [], []

    def run(self):
        while time.monotonic() < self.until:
            name = f"n{min(self.rng.randrange(NAMES), self.rng.randrange(NAMES))}"
            prompt = self.rng.randrange(len(PROMPTS))
            begin = time.monotonic()
            try:
                text, times = stream(self.connection, body(name, PROMPTS[prompt], stream=True))
            except Exception as e:
                self.failures.append(repr(e))
                self.connection.close()
                continue
            end = time.monotonic()
            self.n += 1
            self.gaps += zip(times, times[1:])
            allowed = [self.references[c, prompt] for c in self.names.possible(name, begin, end)]
            if text not in allowed:
                self.wrong.append((name, prompt, text, allowed))


def make_references(s, folders):
    """What each content says alone."""
    out, c = {}, connect(s)
    for content, path in folders.items():
        must(s, "POST", "/v1/load_lora_adapter", {"lora_name": "alone", "lora_path": path,
                                                  "load_inplace": True})
        for i, prompt in enumerate(PROMPTS):
            out[content, i] = answer(c, body("alone", prompt))
    must(s, "POST", "/v1/unload_lora_adapter", {"lora_name": "alone"})
    return out


def gaps_beside(clients, windows):
    """Gaps between tokens that touch one of the windows. Long gaps touch more easily than short
    ones, so these can be compared with those of other windows only."""
    begins = [b for b, _ in windows]
    out = []
    for client in clients:
        for begin, end in client.gaps:
            at = bisect.bisect_right(begins, end) - 1
            if at >= 0 and windows[at][1] >= begin:
                out.append(end - begin)
    return out


def test_hot_swap():
    with tempfile.TemporaryDirectory() as root:
        folders = {(i, c): str(random_adapter(pathlib.Path(root).resolve() / f"{i}-{c}",
                                              100 * i + c, rank=4 + 2 * (i % 3),
                                              exponent=-4))
                   for i in range(NAMES) for c in range(CONTENTS)}
        # room for about half of the names
        with Service("--adapter-root", root, "--adapter-budget", "5MiB", "--ctx", "512",
                     "--memory-limit", "600MiB", limit_s=SECONDS + 600) as s:
            references = make_references(s, folders)
            different = len(set(references.values())) / len(references)
            assert different > .9, "adapters change the text"
            names = Names()
            for i in range(NAMES):
                row = names.changing(f"n{i}", (i, 0))
                must(s, "POST", "/v1/load_lora_adapter",
                     {"lora_name": f"n{i}", "lora_path": folders[i, 0]})
                names.changed(f"n{i}", row)
            swapper = Swapper(s, names, folders)
            until = time.monotonic() + SECONDS
            clients = [Client(s, i, names, references, until) for i in range(STREAMS)]
            for t in [swapper, *clients]:
                t.start()
            for t in clients:
                t.join()
            swapper.over.set()
            swapper.join()
            wait_for(lambda: idle(s))
            report(s, swapper, clients)
        assert s.status == 0


def report(s, swapper, clients):
    m = s.metrics()
    step = statistics.median(end - begin for c in clients for begin, end in c.gaps)
    quiet = [(b + .5, e + .5) for b, e in swapper.windows]  # between two changes
    beside = gaps_beside(clients, swapper.windows), gaps_beside(clients, quiet)
    gaps = [percentile(g, .99) for g in beside]
    failures = [f for t in [swapper, *clients] for f in t.failures]
    wrong = [w for c in clients for w in c.wrong]
    print(f"{SECONDS:.0f} s: {sum(c.n for c in clients)} streams, {len(failures)} failed, "
          f"{len(wrong)} wrong; changes {dict(swapper.count)}; "
          f"{m['terrace_adapter_loads_total']:.0f} loads, "
          f"{m['terrace_adapter_evictions_total']:.0f} evictions; "
          f"p99 gap {gaps[0] * 1e3:.0f} ms beside a change ({len(beside[0])} gaps), "
          f"{gaps[1] * 1e3:.0f} ms half a second later ({len(beside[1])}), "
          f"median {step * 1e3:.0f} ms")
    assert not failures, failures[:5]
    assert not wrong, wrong[:3]
    assert m["vllm:kv_cache_usage_perc"] == 0
    if SECONDS >= 300:  # a short run on a busy machine has too few gaps to judge
        assert gaps[0] <= gaps[1] + 2 * step, "changes hold streams up"


# ---- leaks ----

def test_load_and_unload():
    """The same adapter, in and out, with a request now and then."""
    with tempfile.TemporaryDirectory() as root:
        random_adapter(pathlib.Path(root) / "a", 1, rank=16)
        with Service("--adapter-root", root, "--ctx", "512", "--memory-limit", "600MiB",
                     limit_s=900) as s:
            c = connect(s)
            must(s, "POST", "/v1/adapters", {"name": "a", "path": "a"})
            start, began = None, time.monotonic()
            for i in range(CYCLES + CYCLES // 10):
                must(s, "POST", "/v1/adapters/a/load", {})
                if i % 20 == 0:
                    answer(c, body("a", PROMPTS[0], max_tokens=2))
                must(s, "POST", "/v1/adapters/a/unload", {})
                if i == CYCLES // 10:
                    start = resident_kib(s.pid)
            wait_for(lambda: idle(s))
            m = s.metrics()
            end = resident_kib(s.pid)
            print(f"{CYCLES} cycles in {time.monotonic() - began:.1f} s: resident {start} KiB, "
                  f"then {end} KiB ({(end / start - 1) * 100:+.2f} %)")
            assert m["terrace_adapter_loads_total"] >= CYCLES - 1
            assert m["terrace_adapter_bytes"] == 0
            assert m["vllm:kv_cache_usage_perc"] == 0
            assert end <= start * 1.02, "resident memory grew"
        assert s.status == 0


# ---- many ----

def zipf(rng, n):
    return min(int(n ** rng.random()) - 1, n - 1)


def test_three_hundred_adapters():
    """All are answered under a budget for twenty, and always the same way."""
    n, requests, limit_mib = 300, 600, 450
    with tempfile.TemporaryDirectory() as root:
        for i in range(n):
            random_adapter(pathlib.Path(root) / str(i), i, rank=4, layers=10, exponent=-2)
        one = None
        with Service("--adapter-root", root, "--adapter-budget", "3200KiB", "--ctx", "512",
                     "--memory-limit", f"{limit_mib}MiB", limit_s=900) as s:
            for i in range(n):
                card = json.loads(must(s, "POST", "/v1/adapters",
                                       {"name": f"a{i}", "path": str(i)}))
                one = card["bytes"]
            answers, lock, jobs, failures = collections.defaultdict(set), threading.Lock(), [], []
            rng = random.Random(2)
            jobs = [zipf(rng, n) for _ in range(requests)]

            def work():
                c = connect(s)
                while True:
                    with lock:
                        if not jobs:
                            return
                        i = jobs.pop()
                    try:
                        text = answer(c, body(f"a{i}", PROMPTS[0], max_tokens=6))
                    except Exception as e:
                        failures.append(repr(e))
                        return
                    with lock:
                        answers[i].add(text)

            threads = [threading.Thread(target=work) for _ in range(8)]
            for t in threads:
                t.start()
            most = 0
            while any(t.is_alive() for t in threads):
                m = s.metrics()
                most = max(most, m["terrace_adapter_bytes"])
                assert most <= m["terrace_adapter_budget_bytes"]
                time.sleep(0.05)
            peak = next(int(line.split()[1]) for line in open(f"/proc/{s.pid}/status")
                        if line.startswith("VmHWM:"))
            m = s.metrics()  # the last look of the loop may be older than the last answers
            hits, misses = m["terrace_adapter_hits_total"], m["terrace_adapter_misses_total"]
            print(f"{n} adapters of {one} bytes, room for {int(3200 * 1024 // one)}: {requests} "
                  f"requests, {hits:.0f} hits, {misses:.0f} misses, "
                  f"{m['terrace_adapter_evictions_total']:.0f} evictions, at most {most:.0f} bytes "
                  f"of adapters; peak {peak >> 10} of {limit_mib} MiB")
            assert not failures, failures[:5]
            assert all(len(texts) == 1 for texts in answers.values())
            assert len({t for texts in answers.values() for t in texts}) > len(answers) // 2
            assert hits + misses == requests and m["terrace_adapter_evictions_total"] > 0
            assert peak <= limit_mib << 10
        assert s.status == 0


if __name__ == "__main__":
    sys.exit(run_tests(dict(globals())) != 0)
