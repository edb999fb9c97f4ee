#!/usr/bin/env python3
"""Fifty clients against limits: admitted within 1 % of the limit, streams included, and nothing is
forgiven by a restart. LIMITS_SECONDS: how long each load goes on, in windows of a minute; the
default is the first window only. Ends with "N passed, N failed"."""
import http.client
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "api"))
from service import new_key, run_tests  # noqa: E402
from tiny import tiny_service  # noqa: E402

SECONDS = int(os.environ.get("LIMITS_SECONDS", "6"))
CLIENTS, WINDOW_S = 50, 60.25  # a slot of 250 ms has to be over as well
PROMPT = {"messages": [{"role": "user", "content": "Count."}], "temperature": 0, "ignore_eos": True}
STATE = tempfile.TemporaryDirectory()
KEYS = {name: new_key(STATE.name, name, *options) for name, *options in (
    ("admin", "--role", "admin"), ("free",), ("rpm", "--rpm", 600), ("tpm", "--tpm", 30000),
    ("leavers", "--tpm", 30000), ("few", "--concurrency", 4), ("daily", "--daily-tokens", 2000),
    ("fresh", "--tenant", "fresh"),
    ("both", "--rpm", 400, "--tpm", 400000))}


class Load:
    """Clients that never wait, half of them streaming, until the time is over."""

    def __init__(self, s, key, max_tokens, leave=0.0):
        self.s, self.key, self.max_tokens, self.leave = s, key, max_tokens, leave
        self.lock, self.statuses, self.tokens, self.failures = threading.Lock(), {}, 0, []
        self.first = None

    def one(self, connection, rng, stream):
        body = json.dumps({**PROMPT, "max_tokens": self.max_tokens, "stream": stream,
                           **({"stream_options": {"include_usage": True}} if stream else {})})
        connection.request("POST", "/v1/chat/completions", body,
                           {"Authorization": "Bearer " + KEYS[self.key]})
        reply = connection.getresponse()
        if stream and reply.status == 200 and rng.random() < self.leave:
            reply.read1(1)
            connection.close()
            return 200, 0
        text = reply.read().decode()
        if reply.status != 200:
            assert reply.status == 429, text
            assert int(reply.getheader("retry-after")) >= 1
            assert json.loads(text)["error"]["code"] == "rate_limit_exceeded", text
            return 429, 0
        if stream:
            assert text.endswith("data: [DONE]\n\n")
            text = text.split("\n\n")[-3].removeprefix("data: ")
        return 200, json.loads(text)["usage"]["total_tokens"]

    def client(self, i, until):
        rng = random.Random(i)
        connection = http.client.HTTPConnection("127.0.0.1", self.s.port, timeout=120)
        try:
            while time.monotonic() < until:
                status, tokens = self.one(connection, rng, i % 2 == 0)
                with self.lock:
                    self.first = self.first or time.monotonic()
                    self.statuses[status] = self.statuses.get(status, 0) + 1
                    self.tokens += tokens
                if status == 429:
                    time.sleep(0.02)  # fifty that never wait need no more than this machine
        except Exception as e:
            self.failures.append(e)

    def run(self, seconds):
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self.client, args=(i, until)) for i in range(CLIENTS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not self.failures, self.failures[0]
        return self


def windows(seconds):
    return 1 + int(seconds / WINDOW_S)


def service(*args):
    return tiny_service(STATE.name, KEYS["admin"], *args, limit_s=3600)


def used(s, key):
    """(requests, tokens) of a key, by status 200 and 499, once the books have all of it."""
    until = time.monotonic() + 30
    before = None
    while time.monotonic() < until:
        rows = s.json("/v1/usage?group_by=key,status")["data"]
        now = [(r["requests"], r["prompt_tokens"] + r["completion_tokens"]) for r in rows
               if r["key_name"] == key and r["status"] != 429]
        if now == before:
            break
        before = now
        time.sleep(0.3)
    return sum(n for n, _ in before), sum(t for _, t in before)


def within(got, limit, what):
    print(f"{what}: {got} of {limit}, {100 * got / limit:.2f} %")
    assert 0.99 * limit <= got <= limit, f"{what}: {got} of {limit}"


def test_requests_per_minute():
    with service() as s:
        load = Load(s, "rpm", 1).run(SECONDS)
        within(load.statuses[200], 600 * windows(SECONDS), "requests a minute")
        assert used(s, "rpm")[0] == load.statuses[200]


def test_tokens_per_minute():
    """Everything that is reserved is used, so the limit can be reached to the last request."""
    with service() as s:
        load = Load(s, "tpm", 40).run(SECONDS)
        within(load.tokens, 30000 * windows(SECONDS), "tokens a minute, half of them streamed")
        assert used(s, "tpm")[1] == load.tokens


def test_leavers():
    """A third of the streams is left in the middle: what they used counts, what they did not use
    comes back."""
    with service() as s:
        Load(s, "leavers", 40, leave=0.34).run(SECONDS)
        within(used(s, "leavers")[1], 30000 * windows(SECONDS), "tokens a minute, some cut off")


def test_requests_at_once():
    with service() as s:
        most, done = 0, threading.Event()

        def watch():
            nonlocal most
            while not done.is_set():
                m = s.metrics()
                most = max(most, m.get("vllm:num_requests_running", 0) +
                           m.get("vllm:num_requests_waiting", 0))

        watcher = threading.Thread(target=watch)
        watcher.start()
        load = Load(s, "few", 100).run(min(SECONDS, 4))
        done.set()
        watcher.join()
        print(f"at once: {most:.0f} of 4; {load.statuses[200]} admitted, {load.statuses[429]} refused")
        assert 0 < most <= 4 and load.statuses[429] > 0 and load.statuses[200] > 4
        assert Load(s, "few", 1).one(http.client.HTTPConnection("127.0.0.1", s.port, timeout=60),
                                     random.Random(1), False)[0] == 200


def ask(s, key, max_tokens=1):
    connection = http.client.HTTPConnection("127.0.0.1", s.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps({**PROMPT, "max_tokens": max_tokens}),
                       {"Authorization": "Bearer " + KEYS[key]})
    reply = connection.getresponse()
    body = json.loads(reply.read())
    return reply.status, {k.lower(): v for k, v in reply.getheaders()}, body


def test_headers():
    with service() as s:
        status, headers, body = ask(s, "both", 5)
        total = body["usage"]["total_tokens"]
        assert status == 200 and headers["x-ratelimit-limit-requests"] == "400"
        assert headers["x-ratelimit-remaining-requests"] == "399"
        assert headers["x-ratelimit-limit-tokens"] == "400000"
        assert headers["x-ratelimit-remaining-tokens"] == str(400000 - total)
        assert headers["x-ratelimit-reset-requests"] in ("1m0s", "59.9s", "1m0.25s") or \
            headers["x-ratelimit-reset-requests"].startswith(("59.", "1m"))
        assert "x-ratelimit-limit-requests" not in ask(s, "free")[1]


def test_restart_forgives_nothing():
    for end in (signal.SIGTERM, signal.SIGKILL):
        with service() as s:
            status, _, body = ask(s, "daily", 400)
            while status == 200:
                status, _, body = ask(s, "daily", 400)
            assert status == 429 and body["error"]["code"] == "insufficient_quota", body
            before = used(s, "daily")[1]
            s.process.send_signal(end)
            s.process.wait()
        with service() as s:
            status, headers, body = ask(s, "daily", 400)
            assert status == 429 and body["error"]["code"] == "insufficient_quota", body
            assert int(headers["retry-after"]) > 0
            assert used(s, "daily")[1] == before
    with service() as s:  # and what was asked before this test, within the last minute
        if SECONDS < 30:
            status, headers, _ = ask(s, "rpm")
            assert status == 429, headers


def test_address():
    with service("--address-rpm", "7", "--tenant-rpm", "100") as s:
        statuses = [ask(s, "fresh")[0] for _ in range(10)]
        assert statuses == [200] * 7 + [429] * 3, statuses


sys.exit(run_tests(dict(globals())) != 0)
