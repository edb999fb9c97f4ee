#!/usr/bin/env python3
"""Three tiers under load: a small real model and a mid-size shape here, a larger shape on a second
server, adapters in one tier; every request must be answered, and the tiers must have counted it.

TIER_SECONDS (120) is the time under load, TIER_CLIENTS (12) the clients at once. TIER_SHAPES=real
makes the mid-size models in the exact shapes of Phi-3-mini and Llama-3.1-8B (random weights, 12 GB
on the disk with their packed forms); by default they are tiny ones of the same architectures.
Ends with "N passed, N failed"."""
import collections
import http.client
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import threading
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "api"))
from service import ROOT, Service, run_tests  # noqa: E402

SECONDS = float(os.environ.get("TIER_SECONDS", "120"))
CLIENTS = int(os.environ.get("TIER_CLIENTS", "12"))
PIRATE = ROOT / "tests/vectors/adapter/pirate"
REAL = os.environ.get("TIER_SHAPES") == "real"

CONFIG = """
backends:
  - {name: second, kind: openai, url: "%(url)s", models: ["%(large)s"]}
tiers:
  - name: small
    models: ["%(small)s"]
    targets: {ttft: 2s, token: 200ms}
    fallback: [mid]
  - name: mid
    models: ["%(mid)s"]
    targets: {ttft: 20s, token: 2s}
    fallback: [small]
    concurrency: 8
  - name: own
    models: ["%(large)s"]
    backends: [second]
    targets: {ttft: 30s, token: 3s}
    fallback: [mid]
  - name: styled
    models: ["%(small)s"]
    adapter: pirate
    targets: {ttft: 5s, token: 300ms}
default_tier: small
aliases: {gpt-4o-mini: small, expert: own}
routes:
  - {name: code, when: {keywords: [function, compile]}, tier: mid}
  - {name: long, when: {prompt_tokens: {min: 200}}, tier: mid}
  - {name: german, when: {language: de}, tier: own}
"""

# what is asked, and the tier that must answer
ASKED = [
    ({"model": "auto"}, "Say something short.", "small"),
    ({}, "Say something else.", "small"),
    ({"model": "gpt-4o-mini"}, "Count to five.", "small"),
    ({"model": "auto"}, "Write a function that compiles.", "mid"),
    ({"model": "auto"}, "Tell me about rivers. " * 40, "mid"),
    ({"model": "mid"}, "Name a colour.", "mid"),
    ({"model": "styled"}, "Greet me.", "styled"),
    ({"model": "expert"}, "Explain rain.", "own"),
    ({"model": "auto"}, "Wie wird das Wetter und was ist der Grund?", "own"),
]


def shapes(folder):
    """Files of the mid-size and the large model."""
    made = []
    for arch, quant in (("phi3-mini", "q4_k_m"), ("llama3.1-8b", "q4_k_m")) if REAL else \
                       (("tiny-phi3", "q8_0"), ("tiny-llama", "q8_0")):
        path = (ROOT / "build/models" if REAL else folder) / f"{arch}-{quant}.gguf"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            subprocess.run([ROOT / "build/bench/synth-gguf", arch, quant, path], check=True)
        made.append(path)
    return made


class Client(threading.Thread):
    def __init__(self, port, seed, until):
        super().__init__()
        self.port, self.rng, self.until = port, random.Random(seed), until
        self.tiers, self.failures, self.moved = collections.Counter(), [], 0

    def ask(self):
        more, text, tier = self.rng.choice(ASKED)
        stream = self.rng.random() < 0.5
        body = {"messages": [{"role": "user", "content": text}], "stream": stream,
                "max_tokens": self.rng.randrange(1, 12), "ignore_eos": True,
                "seed": self.rng.randrange(1 << 30), **more}
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        try:
            c.request("POST", "/v1/chat/completions", json.dumps(body))
            reply = c.getresponse()
            answer = reply.read().decode()
        finally:
            c.close()
        assert reply.status == 200, (reply.status, answer)
        route = reply.headers["x-terrace-route"]
        came = re.search(r"tier=(\w+);", route)[1]
        self.tiers[came] += 1
        self.moved += came != tier
        if stream:
            events = [e.removeprefix("data: ") for e in answer[:-2].split("\n\n")
                      if not e.startswith(":")]  # comments keep a slow stream alive
            assert events[-1] == "[DONE]", events[-1]
            last = [json.loads(e)["choices"] for e in events[:-1]]
            assert [c[0]["finish_reason"] for c in last if c][-1] == "length", events[-2]
        else:
            answer = json.loads(answer)
            assert answer["usage"]["completion_tokens"] == body["max_tokens"], answer["usage"]

    def run(self):
        while time.monotonic() < self.until:
            try:
                self.ask()
            except Exception as e:
                self.failures.append(repr(e))


def counted(metrics, name):
    """Sum of a metric over labels, by tier."""
    out = collections.Counter()
    for key, value in metrics.items():
        if found := re.fullmatch(name + r'\{tier="(\w+)".*\}', key):
            out[found[1]] += value
    return out


def test_load_over_all_tiers():
    with tempfile.TemporaryDirectory() as folder:
        mid, large = shapes(pathlib.Path(folder))
        with Service("--memory-limit", "8GiB", "--threads", "1", file=large,
                     limit_s=SECONDS + 900) as second:
            config = pathlib.Path(folder) / "terrace.yaml"
            config.write_text("")
            with Service("--config", config, "--model", mid, "--memory-limit", "7GiB",
                         "--lora-modules", f"pirate={PIRATE}", limit_s=SECONDS + 900) as first:
                while "pirate" not in (names := [m["id"] for m in
                                                 first.json("/v1/models")["data"]]):
                    time.sleep(0.05)
                config.write_text(CONFIG % {"url": second.url, "large": second.model,
                                            "small": names[0], "mid": names[1]})
                first.json("/v1/reload", {})
                until = time.monotonic() + SECONDS
                clients = [Client(first.port, i, until) for i in range(CLIENTS)]
                for c in clients:
                    c.start()
                for c in clients:
                    c.join()
                failures = [f for c in clients for f in c.failures]
                tiers = sum((c.tiers for c in clients), collections.Counter())
                m = first.metrics()
    n = sum(tiers.values())
    targets = counted(m, "terrace_tier_target_total")
    print(f"{n} requests in {SECONDS:.0f} s: {dict(tiers)}, {sum(c.moved for c in clients)} by "
          f"another tier than the first; targets counted {dict(targets)}")
    for line in sorted(k for k in m if k.startswith("terrace_tier_target")):
        print(f"  {line} {m[line]:.0f}")
    assert not failures, failures[:5]
    assert set(tiers) == {"small", "mid", "own", "styled"}, tiers
    assert sum(counted(m, "terrace_tier_requests_total").values()) == n
    assert sum(counted(m, "terrace_tier_failed_total").values()) == 0
    assert not any(counted(m, "terrace_tier_running").values())
    for tier in tiers:
        assert targets[tier] >= tiers[tier], (tier, targets, tiers)


sys.exit(run_tests(dict(globals())) != 0)
