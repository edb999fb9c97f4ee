#!/usr/bin/env python3
"""Backends that are programs of the gateway's: started, watched, restarted, replaced, and gone when
it is, however it ends. The program is fake_vllm.py. Ends with "N passed, N failed"."""
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

from backends import backend, client, free_port, gateway, states, wait_for
from service import run_tests

FAKE = pathlib.Path(__file__).with_name("fake_vllm.py")
CHAT = [{"role": "user", "content": "hello"}]


def program(port, *options):
    return [sys.executable, str(FAKE), port, *map(str, options)]


def managed(port, *options, **more):
    return backend("gpu", f"http://127.0.0.1:{port}", kind="vllm", command=program(port, *options),
                   **{"start_timeout": "60s", "stop_timeout": "5s", **more})


def group(pid):
    """Processes of a group that have not ended."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == pid and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def family(port):
    """Those that have not ended of a program, its guard and all that came from it."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # of a zombie it is empty
            if str(port).encode() in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return found


def wait_healthy(g):
    """It answers, and has told what it serves."""
    wait_for(lambda: states(g)["gpu"] == "healthy" and of_gpu(g)["models"] == ["small"])


def children(pid):
    return [int(c) for c in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def guard_of(g):
    return children(g.pid)[0]


def health(g):
    try:
        return g.json("/health")
    except urllib.error.HTTPError as e:
        return json.load(e)


def of_gpu(g):
    return next(b for b in g.json("/v1/backends")["data"] if b["name"] == "gpu")


def say(g, **more):
    ask = {"model": "small", "messages": CHAT, "max_tokens": 2, **more}
    return client(g).chat.completions.create(**ask).choices[0].message.content


def check_format(text):
    done = subprocess.run(["promtool", "check", "metrics"], input=text, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    said = [line for line in done.stdout.decode().splitlines() if "terrace_" in line]
    assert not said, said


def test_killed_service_leaves_nothing():
    for options, timeout in (["--child"], "60s"), (["--child", "--stubborn"], "500ms"):
        with gateway([managed(free_port(), *options, stop_timeout=timeout)]) as g:
            wait_healthy(g)
            guard = guard_of(g)
            assert len(group(guard)) == 3  # the guard, the program, its child
            os.kill(g.pid, signal.SIGKILL)
            wait_for(lambda: not group(guard))


def test_killed_guard_leaves_nothing():
    with gateway([managed(free_port(), "--child")]) as g:
        wait_healthy(g)
        guard = guard_of(g)
        os.kill(guard, signal.SIGKILL)
        wait_for(lambda: not group(guard))
        wait_for(lambda: of_gpu(g)["restarts"] == 1)
        assert say(g) == "small base"  # which waits until it has started again


def test_output_that_stays_open():
    """Somebody outside of the group holds it when the program has ended."""
    with gateway([managed(free_port(), "--escapee")]) as g:
        wait_healthy(g)
        os.killpg(guard_of(g), signal.SIGKILL)
        wait_for(lambda: of_gpu(g)["restarts"] == 1, 20)
        assert say(g) == "small base"


def test_output_of_any_kind():
    with gateway([managed(free_port(), "--noise")], "--log-format", "json") as g:
        wait_healthy(g)
        wait_for(lambda: any("enough" in line for line in g.log))
        assert say(g) == "small base"
        assert of_gpu(g)["restarts"] == 0
    said = [json.loads(line) for line in g.log if '"module":"gpu"' in line]
    assert all(len(line["msg"]) <= 1024 for line in said) and len(said) > 200, len(said)
    assert said[-1]["msg"] == "enough" and set(said[-2]["msg"]) <= set("\ufffd [31m")


def test_stubborn_program_is_killed():
    with gateway([managed(free_port(), "--child", "--stubborn", stop_timeout="300ms")]) as g:
        wait_healthy(g)
        guard = guard_of(g)
    assert g.status == 0
    assert not group(guard)
    assert any("ended by signal 9, as it did not heed SIGTERM" in line for line in g.log), g.log


# What has left the process group, which has to end with the program as well.
RUNAWAYS = (["--daemon"], "60s"), (["--daemon", "--stubborn"], "300ms"), (["--late"], "60s")


@contextlib.contextmanager
def runaways(options, timeout):
    """A gateway, its port for the program, and the program's family."""
    port = free_port()
    with gateway([managed(port, *options, stop_timeout=timeout)]) as g:
        wait_healthy(g)
        count = 2 if "--late" in options else 3  # the guard, the program, an orphan that stays
        wait_for(lambda: len(family(port)) == count)
        yield g, port, family(port)


def test_runaways_end_with_the_service():
    for case in RUNAWAYS:
        for end in signal.SIGTERM, signal.SIGKILL:
            with runaways(*case) as (g, port, _):
                g.process.send_signal(end)
                g.process.wait(60)
                if end == signal.SIGTERM:  # it has waited for them, and read what they said
                    assert not family(port)
                    assert any("tidied" in line for line in g.log) == (case[0] == ["--daemon"])
                wait_for(lambda: not family(port))


def test_runaways_end_before_the_next_start():
    for case, sig in zip(RUNAWAYS, (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)):
        with runaways(*case) as (g, port, first):
            os.kill(children(guard_of(g))[0], sig)
            wait_for(lambda: of_gpu(g)["restarts"] == 1)
            assert not family(port) & first
            wait_healthy(g)
    options, timeout = RUNAWAYS[1]
    with runaways(options, timeout) as (g, port, first):
        g.config.write_text(json.dumps({"backends": [managed(port, stop_timeout=timeout)]}))
        g.json("/v1/reload", {})
        wait_for(lambda: family(port) - first)
        assert not family(port) & first


def test_files_of_the_service_stay_there():
    """A connection that the program held as well would not end when the service closes it."""
    with gateway([managed(free_port())]) as g:
        wait_healthy(g)
        os.kill(children(guard_of(g))[0], signal.SIGKILL)
        wait_for(lambda: of_gpu(g)["restarts"] == 1)  # the service has asked others things by now
        wait_healthy(g)
        files = pathlib.Path(f"/proc/{guard_of(g)}/fd").iterdir()
        sockets = [f.name for f in files if os.readlink(f).startswith("socket:")]
        assert sockets == ["0"], sockets


def test_orphans_are_reaped():
    port = free_port()
    with gateway([managed(port, "--daemon")]) as g:
        wait_healthy(g)
        guard = guard_of(g)
        wait_for(lambda: len(children(guard)) == 2)  # the program and one of its two orphans


def test_what_cannot_be_ended_is_left():
    """A guard that is stopped stands for a process that a device holds."""
    port = free_port()
    with gateway([managed(port, stop_timeout="100ms")]) as g:
        wait_healthy(g)
        os.kill(guard_of(g), signal.SIGSTOP)
    assert g.status == 0
    assert any("cannot be ended: left" in line for line in g.log), g.log
    wait_for(lambda: not family(port))


def test_what_is_told():
    other = backend("other", f"http://127.0.0.1:{free_port()}", models=["elsewhere"])
    with gateway([managed(free_port()), other]) as g:
        wait_healthy(g)
        wait_for(lambda: states(g)["other"] == "ejected")
        told = health(g)
        assert told["status"] == "ok"  # one of two is down
        assert [b["name"] for b in told["backends"]] == ["gpu"]
        assert told["backends"][0]["restarts"] == 0 and "last_exit" not in told["backends"][0]
        os.killpg(guard_of(g), signal.SIGKILL)
        wait_for(lambda: of_gpu(g)["restarts"] == 1)
        assert of_gpu(g)["last_exit"] == "ended by signal 9"
        wait_healthy(g)
        m = g.metrics()
        assert m['terrace_backend_restarts_total{backend="gpu"}'] == 1
        wait_for(lambda: g.metrics()['terrace_backend_start_seconds{backend="gpu"}'] > 0)
        assert m['terrace_backend_program_running{backend="gpu"}'] == 1
        assert 'terrace_backend_restarts_total{backend="other"}' not in m


def test_health_without_anybody():
    port = free_port()
    broken = {**managed(port), "command": ["/nowhere/vllm", "serve"]}
    with gateway([broken]) as g:
        wait_for(lambda: "last_exit" in of_gpu(g))
        told = health(g)
        assert told["status"] == "loading" and "gpu" in told["reason"], told
        assert "could not be started" in told["reason"]
        assert any("/nowhere/vllm cannot be started: No such file" in line for line in g.log)
    with gateway([backend("gone", f"http://127.0.0.1:{port}", models=["m"])]) as g:
        wait_for(lambda: health(g)["status"] == "unhealthy")


def test_metrics_of_the_engine():
    port = free_port()
    with gateway([managed(port, scrape="100ms")]) as g:
        wait_healthy(g)
        running = 'terrace_backend_engine_requests_running{backend="gpu"}'
        wait_for(lambda: running in g.metrics())
        m = g.metrics()
        assert m[running] == 1
        assert m['terrace_backend_engine_kv_cache_usage_ratio{backend="gpu"}'] == 0.25
        assert m['terrace_backend_engine_prefix_cache_hits_total{backend="gpu"}'] == 20
        assert of_gpu(g)["engine"] == {
            "running": 1, "waiting": 2, "kv_cache_usage": 0.25, "prompt_tokens": 30,
            "generation_tokens": 40, "prefix_cache_queries": 50, "prefix_cache_hits": 20}
        with urllib.request.urlopen(g.url + "/metrics", timeout=60) as reply:
            check_format(reply.read())
        page = f"http://127.0.0.1:{port}/page"
        urllib.request.urlopen(page, b"<html>busy</html>", timeout=60).close()
        wait_for(lambda: running not in g.metrics())  # no numbers are better than old ones
        assert "engine" not in of_gpu(g)
        assert g.metrics()['terrace_backend_scrape_failures_total{backend="gpu"}'] >= 1
        urllib.request.urlopen(page, b"vllm:num_requests_running 7\n", timeout=60).close()
        wait_for(lambda: g.metrics().get(running) == 7)


def test_another_command_under_load():
    port = free_port()
    with gateway([managed(port, "--delay", 0.02, "--name", "old")]) as g:
        wait_healthy(g)
        said, errors, stop = [], [], threading.Event()

        def ask():
            while not stop.is_set():
                try:
                    said.append(say(g, max_tokens=20).split()[1])
                except Exception as e:
                    errors.append(e)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for t in threads:
            t.start()
        wait_for(lambda: len(said) > 20)
        stream = iter(client(g).chat.completions.create(model="small", messages=CHAT, stream=True,
                                                        max_tokens=60))
        next(stream)
        for name in "new", "newer":  # the second time the first has not even begun
            g.config.write_text(json.dumps({"backends": [
                managed(port, "--delay", 0.02, "--name", name)]}))
            g.json("/v1/reload", {})
        assert sum(1 for _ in stream) == 59  # it was not disturbed
        wait_for(lambda: said[-1] == "newer")
        stop.set()
        for t in threads:
            t.join()
        assert not errors, errors
        assert set(said) <= {"old", "new", "newer"}, set(said)
        at = [i for i, s in enumerate(said) if s == "newer"][0]
        assert "old" not in said[at + len(threads):]
        assert len(g.json("/v1/backends")["data"]) == 1


if __name__ == "__main__":
    sys.exit(run_tests(dict(globals())) != 0)
