#!/usr/bin/env python3
"""Long and rude use of a server with the small real model. Ends with "N passed, N failed"."""
import http.client
import json
import os
import pathlib
import random
import socket
import sys
import threading
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "api"))
from service import Service, run_tests  # noqa: E402
from conversations import *  # noqa: E402,F403 its tests are run here
from memory import *  # noqa: E402,F403
from restart import *  # noqa: E402,F403

REQUESTS = int(os.environ.get("STRESS_REQUESTS", "1000"))
LEAVERS = int(os.environ.get("STRESS_LEAVERS", "50"))


def resident_kib(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1])


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def body(i, **more):
    return json.dumps({"messages": [{"role": "user", "content": f"Count from {i % 20} upwards."}],
                       "temperature": 0, "max_tokens": 4, "ignore_eos": True, **more})


def ask(connection, data):
    connection.request("POST", "/v1/chat/completions", data)
    reply = connection.getresponse()
    text = reply.read()
    assert reply.status == 200, text
    return text


def wait_for(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def idle(s):
    m = s.metrics()
    return m["vllm:num_requests_running"] + m["vllm:num_requests_waiting"] == 0


def test_requests_in_a_row():
    """Half of them over one connection, half over one each; a third streams. The pool of KV blocks
    is small, so that the first part of the requests has touched all of it."""
    with Service("--memory-limit", "400MiB", "--ctx", "512", limit_s=1200) as s:
        kept = http.client.HTTPConnection("127.0.0.1", s.port, timeout=120)
        start = None
        began = time.monotonic()
        for i in range(REQUESTS):
            data = body(i, stream=i % 3 == 0)
            if i % 2:
                text = ask(kept, data)
            else:
                fresh = http.client.HTTPConnection("127.0.0.1", s.port, timeout=120)
                text = ask(fresh, data)
                fresh.close()
            assert (b"[DONE]" in text) if i % 3 == 0 else (b'"completion_tokens":4' in text)
            if i == REQUESTS // 3:
                start = resident_kib(s.pid), descriptors(s.pid)
        took = time.monotonic() - began
        wait_for(lambda: descriptors(s.pid) <= start[1])
        end = resident_kib(s.pid), descriptors(s.pid)
        print(f"{REQUESTS} requests in {took:.1f} s; resident {start[0]} KiB after a third, "
              f"{end[0]} KiB at the end; descriptors {start[1]}, {end[1]}")
        assert end[0] - start[0] < 4096, "resident memory grew"
    assert s.status == 0


def leave(s, rng):
    """Reads a little or nothing of a long stream and goes."""
    with socket.create_connection(("127.0.0.1", s.port), timeout=120) as c:
        data = body(rng.randrange(20), stream=rng.random() < .7, max_tokens=2000,
                    n=rng.choice((1, 1, 3))).encode()
        c.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                  % len(data) + data[:rng.choice((len(data), len(data), len(data) // 2))])
        c.settimeout(rng.uniform(0.01, 1.0))
        try:
            for _ in range(rng.randrange(5)):
                c.recv(rng.choice((1, 100, 5000)))
        except TimeoutError:
            pass


def stay(s, rng, results):
    """A stream that is read to its end: all chunks are there, in order."""
    c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=300)
    text = ask(c, body(rng.randrange(20), stream=True, max_tokens=60, logprobs=True)).decode()
    events = [e.removeprefix("data: ") for e in text[:-2].split("\n\n")]
    assert events[-1] == "[DONE]"
    rows = [r for e in events[:-1] for r in
            (json.loads(e)["choices"][0].get("logprobs") or {}).get("content", [])]
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    results.append(len(rows))


def test_clients_that_leave():
    rng = random.Random(1)
    with Service(limit_s=1200) as s:
        ask(http.client.HTTPConnection("127.0.0.1", s.port, timeout=120), body(0))
        wait_for(lambda: idle(s))
        before = descriptors(s.pid)
        survivors = []
        jobs = [lambda r=random.Random(i): leave(s, r) for i in range(LEAVERS)]
        jobs += [lambda r=random.Random(i): stay(s, r, survivors) for i in range(LEAVERS // 5)]
        rng.shuffle(jobs)
        failures = []

        def work():
            while jobs:
                try:
                    jobs.pop()()
                except IndexError:
                    return
                except Exception as e:
                    failures.append(e)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not failures, failures
        wait_for(lambda: idle(s))
        wait_for(lambda: descriptors(s.pid) <= before)
        m = s.metrics()
        cancelled = m['vllm:request_success_total{finished_reason="abort"}']
        print(f"{LEAVERS} clients left, {len(survivors)} stayed; {cancelled:.0f} choices cancelled")
        assert m["vllm:kv_cache_usage_perc"] == 0
        assert survivors == [60] * (LEAVERS // 5), survivors
    assert s.status == 0


sys.exit(run_tests(dict(globals())) != 0)
