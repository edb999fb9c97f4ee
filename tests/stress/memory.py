"""--memory-limit with the small real model: what the process holds at most, under load and at the
start, and what is refused."""
import http.client
import json
import random
import re
import subprocess
import tempfile
import threading

from service import TERRACE, Service, model_path

LIMIT_MIB, CLIENTS, REQUESTS = 360, 12, 2
WORDS = "stone river letter window garden music doctor engine paper animal".split()


def most_resident_mib(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024


def ask(port, rng, failures):
    """Long and short prompts, streams, n > 1, log-probabilities: whatever takes memory."""
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    for i in range(REQUESTS):
        n_words = rng.choice((30, 300, 800))
        body = {"prompt": " ".join(rng.choice(WORDS) for _ in range(n_words)), "max_tokens": 12,
                "ignore_eos": True, "temperature": 1, "top_p": .9, "stream": i % 2 == 0,
                "n": rng.choice((1, 3)), "logprobs": rng.choice((None, 5))}
        c.request("POST", "/v1/completions", json.dumps(body))
        reply = c.getresponse()
        text = reply.read()
        if reply.status != 200:
            failures.append(text)


def test_resident_memory_stays_under_the_limit():
    with tempfile.TemporaryDirectory() as empty:  # the first start packs the weights
        with Service("--memory-limit", f"{LIMIT_MIB}MiB", "--ctx", "1024", "--model-dir", empty,
                     limit_s=600) as s:
            start = most_resident_mib(s.pid)
            failures = []
            threads = [threading.Thread(target=ask, args=(s.port, random.Random(i), failures))
                       for i in range(CLIENTS)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            most = most_resident_mib(s.pid)
            m = s.metrics()
        assert not failures, failures[0]
        assert m['terrace_kv_blocks{state="free"}'] == 0, "the pool of KV blocks was not used up"
        print(f"limit {LIMIT_MIB} MiB: {start:.0f} MiB resident at most until the first request, "
              f"{most:.0f} MiB under load")
        assert most <= LIMIT_MIB
    assert s.status == 0


def test_what_cannot_fit_is_refused_with_numbers():
    with tempfile.TemporaryDirectory() as state:
        done = subprocess.run([TERRACE, "serve", "--model", model_path(), "--port", "0",
                               "--memory-limit", "250MiB", "--ctx", "1024",
                               "--response-cache", "0", "--state-dir", state],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    text = done.stdout.decode()
    found = re.search(r"needs (\d+) MiB \(weights (\d+), scratch (\d+), other (\d+), KV cache for "
                      r"1024 tokens (\d+)\), the limit is 250 MiB", text)
    assert done.returncode and found, text
    needs, *parts = map(int, found.groups())
    assert 250 < needs and abs(needs - sum(parts)) <= len(parts)
    with Service("--memory-limit", f"{needs + 1}MiB", "--ctx", "1024", limit_s=120) as s:
        assert s.json("/v1/completions", {"prompt": "Hello", "max_tokens": 2})["choices"]
    assert s.status == 0
