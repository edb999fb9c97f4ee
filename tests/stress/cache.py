#!/usr/bin/env python3
"""The response cache under a random mix: few questions, many clients, a third of whom leaves early,
and room for some of the answers only. Every whole answer is the one that the engine alone gives:
that of the service itself, and that of a backend behind it.

CACHE_SECONDS (10): how long, each. Ends with "N passed, N failed"."""
import http.client
import json
import os
import pathlib
import random
import sys
import tempfile
import threading
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "api"))
from service import Service, run_tests  # noqa: E402

SECONDS = float(os.environ.get("CACHE_SECONDS", "10"))
CLIENTS, QUESTIONS, BUDGET = 16, 24, 128 << 10


def question(i):
    rng = random.Random(i)
    drawn = {"temperature": 0.8, "seed": i} if i % 3 == 0 else {"temperature": 0}
    return {"messages": [{"role": "user", "content": f"Tell me about the number {i}."}],
            "max_tokens": rng.randrange(1, 24), "ignore_eos": True, **drawn}


def text_of(data):
    """The text of a whole answer, streamed or not, or what is wrong with it."""
    if data.startswith(b"{"):
        return json.loads(data)["choices"][0]["message"]["content"]
    events = data.split(b"\n\n")
    if events[-2:] != [b"data: [DONE]", b""]:
        return f"cut: {data[-200:]}"
    chunks = [json.loads(e[6:]) for e in events[:-2]]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)


def ask(port, body, leave=False):
    """The text, and what the cache did; a client that leaves hears nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    if leave:
        connection.sock.settimeout(random.random() / 5)
    try:
        reply = connection.getresponse()
        if leave:
            reply.read(random.randrange(1, 400))
            return None, None
        return text_of(reply.read()), reply.getheader("x-terrace-cache")
    except TimeoutError:
        return None, None
    finally:
        connection.close()


class Client(threading.Thread):
    def __init__(self, port, seed, until, want, question):
        super().__init__()
        self.port, self.rng, self.until, self.want = port, random.Random(seed), until, want
        self.question = question
        self.wrong, self.counts = [], {}

    def run(self):
        while time.monotonic() < self.until:
            i = min(self.rng.randrange(QUESTIONS), self.rng.randrange(QUESTIONS))
            body = {**self.question(i), "stream": self.rng.random() < 0.5}
            if self.rng.random() < 0.1:
                body["cache"] = self.rng.choice([{"no-cache": True}, {"no-store": True},
                                                 {"ttl": 0.5}, {"s-maxage": 1}])
            try:
                text, how = ask(self.port, body, self.rng.random() < 0.33)
            except (OSError, ValueError, http.client.HTTPException) as e:
                text, how = f"{type(e).__name__}: {e}", "error"
            self.counts[how] = self.counts.get(how, 0) + 1
            if how and text != self.want[i]:
                self.wrong.append((i, body["stream"], how, text, self.want[i]))


def wait_idle(*services):
    until = time.monotonic() + 60
    while True:
        m = [s.metrics() for s in services]
        if not sum(v for one in m for k, v in one.items() if k in (
                "vllm:num_requests_running", "vllm:num_requests_waiting", "terrace_cache_in_flight")):
            return
        assert time.monotonic() < until
        time.sleep(0.05)


def mix(s, model, engine):
    """Clients ask `s` for a model whose answers come from `engine`, which may be s itself."""
    def of_model(i):
        return {**question(i), "model": model}

    want = [ask(s.port, {**of_model(i), "cache": {"no-cache": True, "no-store": True}})[0]
            for i in range(QUESTIONS)]
    assert s.json("/v1/cache")["entries"] == 0
    until = time.monotonic() + SECONDS
    clients = [Client(s.port, i, until, want, of_model) for i in range(CLIENTS)]
    for c in clients:
        c.start()
    for c in clients:
        c.join()
    wait_idle(s, engine)
    wrong = [w for c in clients for w in c.wrong]
    counts = {}
    for c in clients:
        for how, n in c.counts.items():
            counts[how] = counts.get(how, 0) + n
    cache = s.json("/v1/cache")
    print({k or "left": v for k, v in counts.items()}, cache)
    assert not wrong, f"{len(wrong)} wrong: {wrong[:3]}"
    assert cache["in_flight"] == 0 and cache["bytes"] <= BUDGET
    assert min(counts.get(k, 0) for k in ("hit", "miss", "coalesced", "bypass")) > 0, counts
    assert cache["evictions"] > 0


SMALL = ("--memory-limit", "600MiB", "--ctx", "512")


def test_mix():
    with Service("--response-cache", BUDGET, *SMALL, limit_s=SECONDS + 300) as s:
        mix(s, s.model, s)


def test_remote_mix():
    with Service(*SMALL, limit_s=SECONDS + 300) as up, tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "gateway.yaml"
        config.write_text(json.dumps({"backends": [
            {"name": "up", "url": up.url, "models": [{"name": "remote", "as": up.model}]}]}))
        with Service("--config", config, "--response-cache", BUDGET, file="none",
                     limit_s=SECONDS + 300) as s:
            mix(s, "remote", up)
            assert s.json("/v1/backends")["data"][0]["requests"] == 0


if __name__ == "__main__":
    sys.exit(run_tests(globals()) != 0)
