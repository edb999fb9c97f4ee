#!/usr/bin/env python3
"""Three upstreams, each of another dialect, that are killed, hang and answer garbage at random, behind
one gateway.

Every request must be answered right, or with a clear error, within its deadline; what a stream brings
comes from one upstream, in order, once. A third of the requests share four questions and may be
answered together or again, never by a part of an answer. While the breaker keeps an upstream out, it
gets nothing but probes. FAULTS_SECONDS (20) sets how long the faults go on. Ends with "N passed, N
failed"."""
import collections
import datetime
import http.client
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "api"))
from service import Service, run_tests  # noqa: E402

SECONDS = float(os.environ.get("FAULTS_SECONDS", "20"))
CLIENTS = 8
DEADLINE_S = 4
IN_FLIGHT_S = 0.1  # a request that was sent before the ejection may arrive after it
NAMES = {"ant": "openai", "bee": "ollama", "cat": "anthropic"}
CONFIG = """
backends:
%s
balance: {policy: least-tokens, retries: 2}
"""
BACKEND = """  - {name: %s, url: "http://127.0.0.1:%d", api: %s, models: [m], first_byte_timeout: 1s,
     idle_timeout: 1s, connect_timeout: 500ms, probe: 200ms, probe_timeout: 300ms, eject: 200ms,
     eject_max: 1s, slow_start: 500ms}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Upstream:
    def __init__(self, name):
        self.name, self.port, self.chats, self.mode = name, free_port(), [], "ok"
        self.row = BACKEND % (name, self.port, NAMES[name])
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, HERE / "fake_upstream.py", str(self.port), self.name,
             NAMES[self.name]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "listening\n"
        threading.Thread(target=self.read, args=(self.process.stdout,), daemon=True).start()

    def read(self, lines):
        for line in lines:
            _, when, mode = line.split()
            self.chats.append((float(when), mode))

    def set(self, mode):
        if mode == self.mode:
            return
        if mode == "killed":
            self.process.kill()
            self.process.wait()
        else:
            if self.mode == "killed":
                self.start()
            self.process.stdin.write(mode + "\n")
            self.process.stdin.flush()
        self.mode = mode

    def end(self):
        self.process.kill()
        self.process.wait()


class Wrong(Exception):
    pass


def check(good, *what):
    if not good:
        raise Wrong(*what)


def right(words, request, n, whole):
    """Are these the words of one upstream, in order, once; all of them if whole?"""
    check(len(words) == n if whole else len(words) <= n, "number of words", words)
    names = {w.split("/")[1] for w in words}
    check(len(names) <= 1, "more than one upstream", words)
    check(words == [f"{request}/{w.split('/')[1]}/{i}" for i, w in enumerate(words)],
          "wrong words", words)


def clear_error(error):
    check(isinstance(error, dict) and len(error.get("message", "")) > 10, "unclear error", error)
    check("127.0.0.1" not in json.dumps(error), "the error tells an address", error)


def read_stream(reply, request, n):
    """"ok", or "cut" for a stream that ended with a clear error."""
    text = reply.read().decode()
    check(text.endswith("data: [DONE]\n\n"), "no end", text[-200:])
    events = [e.removeprefix("data: ") for e in text[:-2].split("\n\n")]
    events = [json.loads(e) for e in events[:-1] if not e.startswith(":")]
    words = [e["choices"][0]["delta"].get("content") for e in events if "choices" in e]
    words = [w for w in words if w]  # a translated stream begins with the role
    errors = [e["error"] for e in events if "error" in e]
    check(len(errors) <= 1 and (not errors or "error" in events[-1]), "errors", errors)
    right(words, request, n, not errors)
    for e in errors:
        clear_error(e)
    return "cut" if errors else "ok"


def ask(port, request, n, streams, **more):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S + 10)
    body = json.dumps({"model": "m", "stream": streams,
                       "messages": [{"role": "user", "content": f"{request} {n}"}], **more})
    try:
        c.request("POST", "/v1/chat/completions", body, {"x-request-timeout": str(DEADLINE_S)})
        reply = c.getresponse()
        if reply.status == 200 and streams:
            return read_stream(reply, request, n)
        answer = json.loads(reply.read())
        if reply.status == 200:
            right(answer["choices"][0]["message"]["content"].split(), request, n, True)
            return "ok"
        check(reply.status in (502, 503, 504), "status", reply.status, answer)
        clear_error(answer["error"])
        return str(reply.status)
    finally:
        c.close()


class Load:
    def __init__(self, port):
        self.port, self.lock, self.results, self.wrong = port, threading.Lock(), [], []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(CLIENTS)]
        for t in self.threads:
            t.start()

    def one(self, rng, name):
        streams = rng.random() < 0.6
        if rng.random() < 0.7:
            return ask(self.port, name, rng.randrange(1, 30), streams)
        shared = rng.randrange(4)  # which others ask, too; remembered for a moment
        return ask(self.port, f"shared{shared}", 10 + shared, streams, temperature=0,
                   cache={"ttl": 0.1})

    def run(self, i):
        rng = random.Random(i)
        k = 0
        while not self.stop.is_set():
            k += 1
            began = time.monotonic()
            try:
                how = self.one(rng, f"r{i}x{k}")
            except Exception as e:
                with self.lock:
                    self.wrong.append(repr(e))
                continue
            with self.lock:
                self.results.append((how, time.monotonic() - began))

    def end(self):
        self.stop.set()
        for t in self.threads:
            t.join()


def ejections(log):
    """(name, begin, end) as the log tells it."""
    since, found = {}, []
    for line in log:
        if m := re.match(r"(\S+Z) \w+ +gateway: backend (\w+): (ejected|half-open|healthy)", line):
            when = datetime.datetime.fromisoformat(m[1].replace("Z", "+00:00")).timestamp()
            if m[3] == "ejected":
                since.setdefault(m[2], when)
            elif m[2] in since:
                found.append((m[2], since.pop(m[2]), when))
    return found


def chaos(upstreams, seconds):
    rng = random.Random(time.time_ns())
    modes = collections.Counter()
    end = time.monotonic() + seconds
    for u, mode in zip(upstreams, ["killed", "hang", "garbage"]):  # each once for certain
        time.sleep(0.5)
        u.set(mode)
        modes[mode] += 1
        time.sleep(1.5)
        u.set("ok")
    while time.monotonic() < end:
        u = rng.choice(upstreams)
        mode = rng.choice(["ok", "killed", "hang", "garbage"])
        if mode != "ok" and all(v.mode != "ok" for v in upstreams if v is not u):
            mode = "ok"  # one is well, most of the time
            if rng.random() < 0.1:
                mode = "hang"
        u.set(mode)
        modes[mode] += 1
        time.sleep(rng.uniform(0.3, 1.2))
    for u in upstreams:
        u.set("ok")
    return modes


def wait_for(what, seconds=30):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_faults():
    upstreams = [Upstream(n) for n in NAMES]
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
            f.write(CONFIG % "".join(u.row for u in upstreams))
            f.flush()
            with Service("--config", f.name, "--response-cache", "1MiB", file="none",
                         limit_s=SECONDS + 300) as s:
                run_faults(s, upstreams)
            assert s.status == 0, s.log
    finally:
        for u in upstreams:
            u.end()


def healthy(s):
    return all(b["state"] in ("healthy", "half-open") for b in s.json("/v1/backends")["data"])


def run_faults(s, upstreams):
    wait_for(lambda: healthy(s))
    load = Load(s.port)
    modes = chaos(upstreams, SECONDS)
    load.end()
    wait_for(lambda: healthy(s))
    after = [ask(s.port, f"after{i}", 10, i % 2 == 0) for i in range(30)]
    out = ejections(list(s.log))
    late = sum(since + IN_FLIGHT_S < when < until for u in upstreams for when, _ in u.chats
               for name, since, until in out if name == u.name)
    how = collections.Counter(h for h, _ in load.results)
    slowest = max(t for _, t in load.results)
    m, cache = s.metrics(), s.json("/v1/cache")
    probes = sum(v for k, v in m.items() if k.startswith("terrace_backend_probes_total"))
    print(f"{SECONDS:.0f} s, faults {dict(modes)}: {len(load.results)} requests, "
          f"{dict(how)}, {len(load.wrong)} wrong, slowest {slowest:.1f} s; "
          f"{len(out)} ejections, {probes:.0f} probes, {late} requests to an ejected one; "
          f"{m['terrace_proxy_retries_total']:.0f} retries; {cache['hits']} answered again, "
          f"{cache['coalesced']} with others, {cache['reruns']} of them asked again")
    assert cache["hits"] and cache["coalesced"] and not cache["in_flight"], cache
    assert not load.wrong, load.wrong[:5]
    assert how["ok"] > 0.5 * len(load.results), how
    assert slowest < DEADLINE_S + 2, slowest
    assert late == 0, late
    assert after == ["ok"] * 30, after
    wait_for(lambda: all(b["requests"] == 0 for b in s.json("/v1/backends")["data"]))
    assert descriptors(s.pid) < 100, descriptors(s.pid)


class Few:
    """`with Few(n, ...) as (s, upstreams)`: n upstreams behind a gateway."""

    def __init__(self, n, lines="", **balance):
        self.upstreams = [Upstream(name) for name in list(NAMES)[:n]]
        rows = "".join(u.row.replace("}\n", lines + "}\n") for u in self.upstreams)
        self.file = tempfile.NamedTemporaryFile("w", suffix=".yaml")
        self.file.write(f"backends:\n{rows}balance: {json.dumps(balance)}\n")
        self.file.flush()
        self.service = Service("--config", self.file.name, file="none", limit_s=120)

    def __enter__(self):
        s = self.service.__enter__()
        wait_for(lambda: healthy(s))
        return s, self.upstreams

    def __exit__(self, *what):
        self.service.__exit__(*what)
        for u in self.upstreams:
            u.end()
        self.file.close()


def test_hedging():
    """One hangs for as long as nothing else is known of it: short answers come from the other."""
    with Few(2, policy="round-robin", hedge_after="100ms") as (s, (ant, bee)):
        for _ in range(2):  # trials are over, and both take requests
            assert ask(s.port, "warm", 2, False) == "ok"
        ant.process.send_signal(signal.SIGSTOP)
        try:
            body = {"model": "m", "max_tokens": 5,
                    "messages": [{"role": "user", "content": "q 5"}]}
            took = []
            for _ in range(4):
                began = time.monotonic()
                text = s.json("/v1/chat/completions", body)["choices"][0]["message"]["content"]
                right(text.split(), "q", 5, True)
                took.append(time.monotonic() - began)
        finally:
            ant.process.send_signal(signal.SIGCONT)
        assert s.metrics()["terrace_proxy_hedges_total"] >= 1
        assert max(took) < 1, took  # the time limit for the first byte


def test_keys_stay_inside():
    os.environ["FAULTS_TEST_KEY"] = "sk-very-secret"
    with Few(1, lines=", key_env: FAULTS_TEST_KEY", retries=0) as (s, (ant,)):
        assert ask(s.port, "a", 3, True) == "ok"
        ant.set("deny")
        request = urllib.request.Request(s.url + "/v1/chat/completions", json.dumps(
            {"model": "m", "messages": [{"role": "user", "content": "a 1"}]}).encode())
        try:
            urllib.request.urlopen(request, timeout=20)
            raise AssertionError("answered")
        except urllib.error.HTTPError as e:
            text = e.read().decode()
            assert e.code == 502 and "refuses our key" in text, text
        shown = text + json.dumps(s.json("/v1/backends")) + "".join(s.log)
        assert "very-secret" not in shown, shown


if __name__ == "__main__":
    sys.exit(run_tests(dict(globals())) != 0)
