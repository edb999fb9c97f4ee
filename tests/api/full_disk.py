#!/usr/bin/env python3
"""A disk that takes nothing more while adapters are registered, personas computed under them and
keys are made: a clear error, nothing half done, and all goes on once there is room. Ends with "N passed, N failed"."""
import json
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from lora_files import random_adapter
from service import TERRACE, Service, new_key, run_tests

FULL = (0, resource.RLIM_INFINITY)  # files that may not grow, as far as a process can tell
ROOM = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def heed_errors():
    """Else the limit would be told by a signal that ends the process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def limit(pid, room):
    resource.prlimit(pid, resource.RLIMIT_FSIZE, room)


def ask(s, method, path, body=None, headers=None):
    data = json.dumps(body).encode() if body is not None else None
    try:
        with urllib.request.urlopen(urllib.request.Request(
                s.url + path, data, headers or {}, method=method), timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def refused(got):
    status, text = got
    assert status in (500, 503, 507), got
    assert "terrace.db" in json.loads(text)["error"]["message"], text


def names(s):
    return sorted(a["name"] for a in json.loads(ask(s, "GET", "/v1/adapters")[1])["data"])


def chat(s, **more):
    return ask(s, "POST", "/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0, **more})


def test_adapters():
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as state:
        for seed, name in enumerate(("old", "new")):
            random_adapter(pathlib.Path(root) / name, seed=seed)
        options = ("--adapter-root", root, "--ctx", "512", "--memory-limit", "600MiB")
        with Service(*options, state=state, preexec=heed_errors) as s:
            assert ask(s, "POST", "/v1/adapters", {"name": "old", "path": "old"})[0] == 201
            assert ask(s, "PUT", "/v1/adapters/aliases/prod", {"adapter": "old"})[0] == 200
            before = chat(s, adapter="prod")
            assert before[0] == 200
            limit(s.pid, FULL)
            refused(ask(s, "POST", "/v1/adapters", {"name": "new", "path": "new"}))
            refused(ask(s, "POST", "/v1/load_lora_adapter",
                        {"lora_name": "new", "lora_path": f"{root}/new"}))
            refused(ask(s, "PUT", "/v1/adapters/aliases/next", {"adapter": "old"}))
            refused(ask(s, "PUT", "/v1/users/ann/adapter", {"adapter": "old"}))
            refused(ask(s, "DELETE", "/v1/adapters/old"))
            assert names(s) == ["old"]
            assert chat(s, adapter="new")[0] == 404 and chat(s, adapter="prod")[0] == 200
            assert ask(s, "GET", "/health")[0] == 200
            limit(s.pid, ROOM)
            assert ask(s, "POST", "/v1/adapters", {"name": "new", "path": "new"})[0] == 201
            assert names(s) == ["new", "old"]
        with Service(*options, state=state) as s:
            assert names(s) == ["new", "old"]
            assert [chat(s, adapter=a)[0] for a in ("prod", "new")] == [200, 200]


def persona(s, name):
    return s.json("/v1/personas/" + name)


def until(holds):
    late = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < late
        time.sleep(0.05)


def kept(folder):
    """The names in the list, the files of computed prompts, and whatever else lies there."""
    listed = json.loads((folder / "personas.json").read_text())["personas"]
    files = {f.name for f in (folder / "personas").iterdir()}
    return {p["name"] for p in listed}, files, {f.name for f in folder.glob("*.part")}


def test_personas():
    """Under adapters, with room for no file, then for the list alone: they work on, the log says what
    is not kept, and the next start has all of them, from files or computed again."""
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as state:
        for seed, name in enumerate(("a", "b")):
            random_adapter(pathlib.Path(root) / name, seed=seed)
        options = ("--adapter-root", root, "--ctx", "1024", "--memory-limit", "700MiB")
        folder = pathlib.Path(state)

        def make(s, name, adapter):
            status, text = ask(s, "POST", "/v1/personas", {
                "name": name, "system": f"You are {name}, and kind. " * 9, "adapter": adapter})
            assert status == 200 and json.loads(text)["status"] == "ready", (status, text)

        def says(s):
            got = {}
            for name in ("early", "none", "half", "after"):
                status, text = chat(s, persona=name, max_tokens=12)
                assert status == 200, text
                usage = json.loads(text)["usage"]
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                assert cached >= persona(s, name)["prompt_tokens"] > 50, (name, usage)
                got[name] = json.loads(text)["choices"]
            return got

        def log_has(s, *words):
            until(lambda: any(all(w in line for w in words) for line in s.log))

        with Service(*options, state=state, preexec=heed_errors) as s:
            for name in ("a", "b"):
                assert ask(s, "POST", "/v1/adapters", {"name": name, "path": name})[0] == 201
            make(s, "early", "a")
            make(s, "gone", "b")
            until(lambda: all(persona(s, p)["kept_bytes"] for p in ("early", "gone")))
            limit(s.pid, FULL)
            make(s, "none", "b")
            assert ask(s, "DELETE", "/v1/personas/gone")[0] == 200
            log_has(s, "persona none is not kept for the next start", "none.kv")
            log_has(s, "personas are not kept", "personas.json")
            until(lambda: kept(folder) == ({"early", "gone"}, {"early.kv"}, set()))
            assert ask(s, "GET", "/health")[0] == 200
            limit(s.pid, (64 << 10, resource.RLIM_INFINITY))
            make(s, "half", "a")
            log_has(s, "persona half is not kept for the next start", "half.kv")
            assert kept(folder) == ({"early", "none", "half"}, {"early.kv"}, set())
            limit(s.pid, FULL)
            make(s, "after", "b")
            log_has(s, "persona after is not kept for the next start", "after.kv")
            limit(s.pid, ROOM)
            until(lambda: "after" in kept(folder)[0])  # without another change
            before = says(s)
        assert kept(folder) == ({"early", "none", "half", "after"}, {"early.kv"}, set())
        with Service(*options, state=state) as s:
            until(lambda: all(persona(s, p)["status"] == "ready" for p in before))
            assert ask(s, "GET", "/v1/personas/gone")[0] == 404
            log_has(s, "persona early", "tokens from")
            assert not any("tokens from" in line for line in s.log if "persona early" not in line)
            assert says(s) == before
            until(lambda: all(persona(s, p)["kept_bytes"] for p in before))


def key_create(state, name, preexec=None):
    return subprocess.run([TERRACE, "key", "create", name, "--state-dir", state],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=preexec)


def full():
    heed_errors()
    resource.setrlimit(resource.RLIMIT_FSIZE, FULL)


def test_keys():
    """A key that is printed is one that opens; one that could not be kept is not printed."""
    with tempfile.TemporaryDirectory() as state:
        admin = new_key(state, "root", "--role", "admin")
        done = key_create(state, "late", full)
        assert done.returncode == 1 and not done.stdout, done
        assert b"terrace.db" in done.stderr and b"BUG" not in done.stderr, done.stderr
        listed = subprocess.run([TERRACE, "key", "list", "--json", "--state-dir", state],
                                stdout=subprocess.PIPE, check=True).stdout
        assert [k["name"] for k in json.loads(listed)] == ["root"], listed
        key = key_create(state, "late").stdout.decode().strip()
        with Service("--ctx", "512", "--memory-limit", "600MiB", state=state, key=admin,
                     preexec=heed_errors) as s:
            headers = {"Authorization": "Bearer " + key}
            limit(s.pid, FULL)  # who has a key is answered; the books are written when they can be
            for _ in range(3):
                assert ask(s, "POST", "/v1/completions", {"prompt": "Hi", "max_tokens": 1},
                           headers)[0] == 200
            limit(s.pid, ROOM)
            assert ask(s, "POST", "/v1/completions", {"prompt": "Hi", "max_tokens": 1},
                       headers)[0] == 200
            until(lambda: sum(r["requests"] for r in s.json("/v1/usage?group_by=key")["data"]
                              if r["key_name"] == "late") >= 4)


if __name__ == "__main__":
    sys.exit(run_tests(dict(globals())) != 0)
