#!/usr/bin/env python3
"""Adapters of the registry on backends: loaded there by vLLM's API, once, under a name of their own,
again after a restart, and unloaded. The backends are fake_vllm.py. Ends with "N passed, N failed"."""
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import urllib.error
import urllib.request

import openai

from backends import backend, client, free_port, gateway, wait_for
from lora_files import random_adapter
from managed import of_gpu, program
from service import run_tests

CHAT = [{"role": "user", "content": "hello"}]


def adapter(folder, seed, rank=4):
    return random_adapter(folder, seed, rank=rank, layers=1)


def post(g, path, body, method="POST"):
    """Status and answer."""
    ask = urllib.request.Request(g.url + path, json.dumps(body).encode(), method=method)
    try:
        with urllib.request.urlopen(ask, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def register(g, name, path, **more):
    status, said = post(g, "/v1/adapters", {"base_model": "small", "name": name, "path": str(path),
                                            **more})
    assert status in (200, 201), said
    return said


def calls(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/calls", timeout=60) as reply:
        return json.load(reply)


def loads(port):
    return [c.split()[1] for c in calls(port) if c.startswith("load ")]


def answer(g, model, **more):
    """Model and root, as the fake tells them."""
    ask = {"model": model, "messages": CHAT, "max_tokens": 2, **more}
    return client(g).chat.completions.create(**ask).choices[0].message.content.split()


def wait_healthy(g):
    wait_for(lambda: all(b["state"] == "healthy" for b in g.json("/v1/backends")["data"]))


@contextlib.contextmanager
def service(*options, names=("gpu",), config=None, **more):
    """A gateway with fake vLLM servers as managed backends; g.ports by name, g.root for adapters."""
    ports = {name: free_port() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        own = [backend(n, f"http://127.0.0.1:{p}", models=["small"], start_timeout="60s",
                       command=program(p, "--name", n, *(options if n == names[0] else ())),
                       **{"kind": "vllm", **more})
               for n, p in ports.items()]
        with gateway(own, "--adapter-root", folder, "--response-cache", "1MiB",
                     **(config or {})) as g:
            g.ports, g.root = ports, pathlib.Path(folder)
            wait_healthy(g)
            yield g


def test_answers_are_of_a_version():
    """An answer that was given under an adapter is not given again under another version of it."""
    def ask(model):
        raw = client(g).chat.completions.with_raw_response.create(
            model=model, messages=CHAT, max_tokens=2, temperature=0)
        return raw.headers["x-terrace-cache"], raw.parse().choices[0].message.content
    with service() as g:
        register(g, "support", adapter(g.root / "one", 1))
        asked = [ask("support") for _ in range(3)]
        assert [how for how, _ in asked] == ["miss", "hit", "hit"] and len({a for _, a in asked}) == 1
        assert [ask("small")[0] for _ in range(2)] == ["miss", "hit"]
        register(g, "support", adapter(g.root / "two", 2))
        newer = ask("support")
        assert newer[0] == "miss" and newer[1] != asked[0][1] and ask("support") == ("hit", newer[1])
        assert post(g, "/v1/cache?adapter=support", {}, "DELETE") == (200, {"dropped": 2})
        assert [ask(m)[0] for m in ("support", "small")] == ["miss", "hit"]


def test_loaded_once_and_by_version():
    with service("--delay", 0.2) as g:
        port = g.ports["gpu"]
        register(g, "support", adapter(g.root / "one", 1))
        said, errors = [], []

        def ask():
            try:
                said.append(answer(g, "support"))
            except Exception as e:
                errors.append(e)
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not errors, errors
        name, = loads(port)  # once for all of them
        assert name.startswith("support@1-") and len(said) == 8
        assert all(s == [name, str(g.root / "one")] for s in said), said
        assert answer(g, "small") == ["small", "gpu"]
        raw = client(g).chat.completions.with_raw_response.create(
            model="small", messages=CHAT, max_tokens=2, extra_body={"adapter": "support"})
        assert "adapter=support@1" in raw.headers["x-terrace-route"], raw.headers
        assert raw.parse().choices[0].message.content.split()[0] == name
        assert of_gpu(g)["adapters"] == [name]
        # what was loaded is no model for clients
        assert name not in [m["id"] for m in g.json("/v1/models")["data"]]
        assert post(g, "/v1/chat/completions", {"model": name, "messages": CHAT})[0] in (404, 503)
        # another version is another name, and the one before goes
        register(g, "support", adapter(g.root / "two", 2))
        newer, root = answer(g, "support")
        assert newer.startswith("support@2-") and root == str(g.root / "two")
        wait_for(lambda: of_gpu(g)["adapters"] == [newer])
        assert f"unload {name}" in calls(port)
        assert post(g, "/v1/adapters/support", {}, "DELETE")[0] in (200, 204)
        wait_for(lambda: of_gpu(g)["adapters"] == [])
        m = g.metrics()
        assert m['terrace_backend_adapter_loads_total{backend="gpu"}'] == 2
        assert m['terrace_backend_adapters{backend="gpu"}'] == 0


def test_after_a_restart():
    with service() as g:
        port = g.ports["gpu"]
        register(g, "support", adapter(g.root / "one", 1))
        name, _ = answer(g, "support")
        # it forgets without our noticing
        urllib.request.urlopen(urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/unload_lora_adapter",
            json.dumps({"lora_name": name}).encode()), timeout=60).close()
        assert answer(g, "support")[0] == name
        assert loads(port) == [name, name]
        guard, = pathlib.Path(f"/proc/{g.pid}/task/{g.pid}/children").read_text().split()
        os.killpg(int(guard), signal.SIGKILL)
        wait_for(lambda: of_gpu(g)["restarts"] == 1)
        assert answer(g, "support")[0] == name
        assert loads(port) == [name]  # of the new process
        # a gateway that does not know what is loaded there finds out
        external = backend("gpu", f"http://127.0.0.1:{port}", kind="vllm", models=["small"])
        with gateway([external], "--adapter-root", g.root) as other:
            register(other, "support", g.root / "one")
            assert answer(other, "support")[0] == name


def test_least_recently_used_leave():
    with service(max_adapters=2) as g:
        for i in range(4):
            register(g, f"a{i}", adapter(g.root / f"a{i}", i))
        names = [answer(g, f"a{i}")[0] for i in range(3)]
        wait_for(lambda: sorted(of_gpu(g)["adapters"]) == sorted(names[1:]))
        assert answer(g, "a1")[0] == names[1]
        names.append(answer(g, "a3")[0])
        wait_for(lambda: sorted(of_gpu(g)["adapters"]) == sorted([names[1], names[3]]))
        assert answer(g, "a0")[0] == names[0]  # it comes back


def test_replicas_that_have_it_come_first():
    with service(names=("gpu", "other"), config={"balance": {"policy": "round-robin"}}) as g:
        for i in range(3):
            register(g, f"a{i}", adapter(g.root / f"a{i}", i))
        for _ in range(4):
            for i in range(3):
                answer(g, f"a{i}")
        assert sum(len(loads(port)) for port in g.ports.values()) == 3


def test_versions_and_kills_under_load():
    """Every answer comes from a version that was current while it was asked for, whatever happens
    to versions and replicas."""
    with service("--delay", 0.005, names=("gpu", "second", "third"), max_adapters=2) as g:
        versions = [[str(adapter(g.root / f"a{i}", i))] for i in range(6)]
        for i, paths in enumerate(versions):
            register(g, f"a{i}", paths[0])
        stop, answered, errors = threading.Event(), [], []

        def ask(seed):
            pick = random.Random(seed)
            while not stop.is_set():
                i = pick.randrange(len(versions))
                first = len(versions[i]) - 1
                try:
                    root = answer(g, f"a{i}")[1]
                    assert root in versions[i][max(first - 1, 0):], (root, versions[i], first)
                    answered.append(root)
                except Exception as e:
                    errors.append(e)
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
        for t in threads:
            t.start()
        children = pathlib.Path(f"/proc/{g.pid}/task/{g.pid}/children")
        for turn in range(8):
            i, before = turn % len(versions), len(answered)
            versions[i].append(str(adapter(g.root / f"a{i}-{turn}", 100 + turn)))
            register(g, f"a{i}", versions[i][-1])
            if turn % 3 == 0:  # one at a time
                wait_healthy(g)
                os.killpg(int(children.read_text().split()[0]), signal.SIGKILL)
            wait_for(lambda: len(answered) > before + 20)
        stop.set()
        for t in threads:
            t.join()
        assert not errors, errors
        wait_for(lambda: all(len(b["adapters"]) <= 2 and b["requests"] == 0
                             for b in g.json("/v1/backends")["data"]))


def test_refused():
    with service("--no-lora", names=("gpu", "other")) as g:
        register(g, "support", adapter(g.root / "one", 1))
        for _ in range(4):  # the one that takes no adapters is asked once
            assert answer(g, "support")[1] == str(g.root / "one")
        assert answer(g, "small")[1] in ("gpu", "other")
        register(g, "large", adapter(g.root / "large", 3, rank=32))
        for _ in range(2):
            try:
                answer(g, "large")
                raise AssertionError("taken")
            except openai.InternalServerError as e:
                assert "rank 32 is greater than max_lora_rank 16" in str(e) or "loads none" in str(e), e
        register(g, "moved", adapter(g.root / "moved", 4))
        shutil.rmtree(g.root / "moved")
        try:
            answer(g, "moved")
            raise AssertionError("taken")
        except openai.InternalServerError as e:
            assert str(g.root) not in str(e), e  # our paths are our own
        assert all(b["state"] == "healthy" for b in g.json("/v1/backends")["data"])


def test_what_cannot_be_pushed():
    with service() as g:
        register(g, "a", adapter(g.root / "a", 1))
        register(g, "b", adapter(g.root / "b", 2))
        for more in {"adapter": ["a", "b"]}, {"adapter": [{"name": "a", "scale": 0.5}]}:
            status, said = post(g, "/v1/chat/completions",
                                {"model": "small", "messages": CHAT, **more})
            assert status == 400 and "backends" in said["error"]["message"], said
        (g.root / "x.gguf").write_bytes(b"GGUF")
        status, said = post(g, "/v1/adapters", {"name": "x", "path": "x.gguf", "base_model": "small"})
        assert status in (400, 501) and "PEFT" in said["error"]["message"], (status, said)
        status, said = post(g, "/v1/adapters", {"name": "p", "path": "a", "base_model": "small",
                                                "pin": True})
        assert status >= 400 and "pinned" in said["error"]["message"], said


def test_another_gateway_has_its_own():
    """Behind a backend that is no vLLM, what the body says is all that there is."""
    with service(kind="openai") as g:
        register(g, "support", adapter(g.root / "one", 1))
        raw = client(g).chat.completions.with_raw_response.create(
            model="small", messages=CHAT, max_tokens=2, extra_body={"adapter": "support"})
        assert raw.parse().choices[0].message.content == "small gpu"
        status, said = post(g, "/v1/chat/completions", {"model": "support", "messages": CHAT})
        assert status == 503 and "takes no adapters" in said["error"]["message"], said
        assert loads(g.ports["gpu"]) == []


def test_root_of_another_machine():
    with tempfile.TemporaryDirectory() as elsewhere:
        with service(adapter_root=elsewhere) as g:
            register(g, "support", adapter(g.root / "team/one", 1))
            shutil.copytree(g.root / "team", f"{elsewhere}/team")
            assert answer(g, "support")[1] == f"{elsewhere}/team/one"


def test_given_by_a_tier():
    config = {"tiers": [{"name": "helpful", "models": ["small"], "adapter": "support"}]}
    with service(config=config) as g:
        register(g, "support", adapter(g.root / "one", 1))
        assert answer(g, "helpful")[1] == str(g.root / "one")
        assert answer(g, "helpful", extra_body={"adapter": []}) == ["small", "gpu"]


if __name__ == "__main__":
    sys.exit(run_tests(dict(globals())) != 0)
