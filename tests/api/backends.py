#!/usr/bin/env python3
"""A gateway in front of other servers, as the official client sees it: two more services with the real
small model, a program that the gateway manages, and one behind TLS. Ends with "N passed, N failed"."""
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error

import openai

from service import TERRACE, Service, model_path, run_tests

CHAT = [{"role": "user", "content": "Name three colours."}]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def client(s):
    return openai.OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=0)


def running(s):
    m = s.metrics()
    return m["vllm:num_requests_running"] + m["vllm:num_requests_waiting"]


def states(s):
    return {b["name"]: b["state"] for b in s.json("/v1/backends")["data"]}


def models(s, name):
    """What a backend serves, as the gateway knows it."""
    return next(b["models"] for b in s.json("/v1/backends")["data"] if b["name"] == name)


@contextlib.contextmanager
def gateway(backends, *args, limit_s=300, **more):
    """A service without a model of its own; its config file can be written again as s.config."""
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "gateway.yaml"
        config.write_text(json.dumps({"backends": backends, **more}))  # JSON is YAML
        with Service("--config", config, *args, file="none", limit_s=limit_s) as s:
            s.config = config
            yield s


def backend(name, url, **more):
    return {"name": name, "url": url, "probe": "300ms", "eject": "300ms", **more}


@contextlib.contextmanager
def pair():
    """Two upstreams under the name "remote", and a gateway that asks them in turn."""
    with Service() as a, Service() as b:
        names = [{"name": "remote", "as": a.model}]
        with gateway([backend("a", a.url, models=names), backend("b", b.url + "/v1", models=names)],
                     balance={"policy": "round-robin"}) as g:
            yield a, b, g


def test_chat_and_stream():
    with pair() as (a, b, g):
        direct = client(a).chat.completions.create(model=a.model, messages=CHAT, temperature=0,
                                                   max_tokens=20)
        seen = set()
        for _ in range(2):
            raw = client(g).chat.completions.with_raw_response.create(
                model="remote", messages=CHAT, temperature=0, max_tokens=20)
            seen.add(raw.headers["x-terrace-backend"])
            got = raw.parse()
            assert got.choices[0].message.content == direct.choices[0].message.content
            assert got.usage.completion_tokens == 20
            stream = client(g).chat.completions.create(
                model="remote", messages=CHAT, temperature=0, max_tokens=20, stream=True)
            text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
            assert text == direct.choices[0].message.content
        done = client(g).completions.create(model="remote", prompt="One, two,", max_tokens=4)
        assert done.usage.completion_tokens == 4
        assert "remote" in [m.id for m in client(g).models.list()]
        assert client(g).models.retrieve("remote").id == "remote"
        # what the backend says about a bad request reaches the client as it is
        try:
            client(g).chat.completions.create(model="remote", messages=CHAT, temperature=-1)
            raise AssertionError("taken")
        except openai.BadRequestError as e:
            assert "temperature" in str(e)
        try:
            client(g).chat.completions.create(model="nowhere", messages=CHAT)
            raise AssertionError("taken")
        except (openai.NotFoundError, openai.InternalServerError):
            pass
        m = g.metrics()
        assert m['terrace_backend_outcomes_total{backend="a",outcome="ok"}'] >= 2
        assert m['terrace_backend_completion_tokens_total{backend="b"}'] >= 20


def test_cancel_reaches_the_backend():
    with pair() as (a, b, g):
        stream = client(g).chat.completions.create(
            model="remote", messages=CHAT, max_tokens=1500, stream=True,
            extra_body={"ignore_eos": True})
        next(iter(stream))
        assert running(a) + running(b) == 1
        stream.close()
        wait_for(lambda: running(a) + running(b) == 0)
        assert all(x["requests"] == 0 for x in g.json("/v1/backends")["data"])


def test_a_backend_dies():
    with pair() as (a, b, g):
        raw = client(g).chat.completions.with_raw_response.create(
            model="remote", messages=CHAT, max_tokens=1500, stream=True,
            extra_body={"ignore_eos": True})
        dying = {"a": a, "b": b}[raw.headers["x-terrace-backend"]]
        stream = iter(raw.parse())
        next(stream)
        os.kill(dying.pid, signal.SIGKILL)
        try:
            for _ in stream:
                pass
            raise AssertionError("the stream ended as if nothing had happened")
        except openai.APIError as e:
            assert "backend" in str(e) and "127.0.0.1" not in str(e), e
        for _ in range(4):
            got = client(g).chat.completions.create(model="remote", messages=CHAT, max_tokens=4)
            assert got.usage.completion_tokens == 4
        assert sorted(states(g).values()) == ["ejected", "healthy"]


def test_reload():
    with pair() as (a, b, g):
        stream = client(g).chat.completions.create(
            model="remote", messages=CHAT, max_tokens=60, stream=True,
            extra_body={"ignore_eos": True})
        stream = iter(stream)
        next(stream)
        config = json.loads(g.config.read_text())
        used = next(x["name"] for x in g.json("/v1/backends")["data"] if x["requests"])
        config["backends"] = [x for x in config["backends"] if x["name"] != used]
        g.config.write_text(json.dumps(config))
        g.json("/v1/reload", {})
        assert states(g)[used] == "draining"
        reasons = [c.choices[0].finish_reason for c in stream if c.choices]
        assert reasons[-1] == "length"  # it was not disturbed
        wait_for(lambda: used not in states(g))
        g.config.write_text("backends: [{name: x}]")
        try:
            g.json("/v1/reload", {})
            raise AssertionError("taken")
        except urllib.error.HTTPError as e:
            assert e.code == 400 and b"backends[0].url" in e.read()
        assert len(states(g)) == 1
        client(g).chat.completions.create(model="remote", messages=CHAT, max_tokens=2)


def children(pid):
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_managed_program():
    port = free_port()
    with tempfile.TemporaryDirectory() as state:
        command = [str(TERRACE), "serve", "--model", model_path(), "--port", str(port),
                   "--state-dir", state]
        mine = backend("mine", f"http://127.0.0.1:{port}", command=command, kind="llama-server",
                       start_timeout="2m")
        with gateway([mine], "--drain", "1s") as g:
            wait_for(lambda: states(g)["mine"] == "healthy")
            wait_for(lambda: models(g, "mine"))
            model = models(g, "mine")[0]
            ask = client(g).chat.completions.create
            assert ask(model=model, messages=CHAT, max_tokens=3).usage.completion_tokens == 3
            first, = children(g.pid)
            os.kill(int(first), signal.SIGKILL)
            wait_for(lambda: children(g.pid) not in ([], [first]))
            # a request that comes while it starts waits for it
            assert ask(model=model, messages=CHAT, max_tokens=3).usage.completion_tokens == 3
            second, = children(g.pid)
        assert g.status == 0
        assert not pathlib.Path(f"/proc/{second}").exists()
        assert any("mine: " in line and "ready" in line for line in g.log), g.log


def test_tls():
    with tempfile.TemporaryDirectory() as folder:
        cert, key = f"{folder}/cert.pem", f"{folder}/key.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
                        "-days", "1", "-subj", "/CN=localhost", "-addext",
                        "subjectAltName=IP:127.0.0.1"], check=True, stderr=subprocess.DEVNULL)
        port = free_port()
        with tempfile.TemporaryDirectory() as state:
            process = subprocess.Popen([TERRACE, "serve", "--model", model_path(), "--port",
                                        str(port), "--tls-cert", cert, "--tls-key", key,
                                        "--state-dir", state], stderr=subprocess.DEVNULL)
            try:
                url = f"https://127.0.0.1:{port}"
                with gateway([backend("trusted", url, ca_file=cert),
                              backend("unknown", url, models=["m"])]) as g:
                    wait_for(lambda: states(g)["trusted"] in ("healthy", "half-open"))
                    wait_for(lambda: models(g, "trusted"))
                    model = models(g, "trusted")[0]
                    got = client(g).chat.completions.create(model=model, messages=CHAT,
                                                            max_tokens=3)
                    assert got.usage.completion_tokens == 3
                    assert states(g)["unknown"] == "ejected"
            finally:
                process.kill()
                process.wait()


if __name__ == "__main__":
    sys.exit(run_tests(dict(globals())) != 0)
