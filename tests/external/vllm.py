#!/usr/bin/env python3
"""A real vLLM as a backend: one that the gateway starts and watches, and the same one as somebody
else's. VLLM_VENV and VLLM_MODEL name its environment and a model folder (setup_vllm.sh makes both).
Ends with "N passed, N failed"."""
import os
import pathlib
import signal
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "api"))
from backends import backend, client, free_port, gateway, states, wait_for  # noqa: E402
from lora_files import random_adapter  # noqa: E402
from managed import group, of_gpu  # noqa: E402
from pushed import register  # noqa: E402
from service import Service, run_tests  # noqa: E402

VENV, MODEL = os.environ["VLLM_VENV"], os.environ["VLLM_MODEL"]
START_S = 400
CHAT = [{"role": "user", "content": "Name three colours."}]


def command(port):
    return ["env", "VLLM_CPU_KVCACHE_SPACE=1", "OMP_NUM_THREADS=1", "VLLM_CPU_OMP_THREADS_BIND=nobind",
            "HF_HUB_OFFLINE=1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", f"{VENV}/bin/vllm", "serve", MODEL, "--served-model-name", "small",
            "--host", "127.0.0.1", "--port", port, "--max-model-len", 1024, "--enforce-eager",
            "--max-num-seqs", 4, "--dtype", "bfloat16", "--enable-lora", "--max-loras", 2,
            "--max-lora-rank", 16]


def text_of(stream):
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def scrape(url, name):
    with urllib.request.urlopen(url + "/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def program(g):
    path = pathlib.Path(f"/proc/{g.pid}/task/{g.pid}/children")
    return [int(p) for p in path.read_text().split()]


def use(g, url):
    """Chat, stream, cancel; what the gateway passes on equals what vLLM says itself."""
    ask = client(g).chat.completions.create
    more = {"model": "small", "messages": CHAT, "temperature": 0, "max_tokens": 12}
    whole = ask(**more)
    assert whole.usage.completion_tokens == 12, whole
    assert text_of(ask(**more, stream=True)) == whole.choices[0].message.content
    assert scrape(url, "vllm:generation_tokens_total") >= 24
    stream = ask(**{**more, "max_tokens": 900}, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    wait_for(lambda: scrape(url, "vllm:num_requests_running") == 1)
    stream.close()
    wait_for(lambda: scrape(url, "vllm:num_requests_running") == 0)
    m = g.metrics()
    assert m['terrace_backend_outcomes_total{backend="gpu",outcome="ok"}'] >= 2
    assert m['terrace_backend_outcomes_total{backend="gpu",outcome="failed"}'] == 0
    told = "terrace_backend_engine_generation_tokens_total"
    wait_for(lambda: g.metrics().get(told + '{backend="gpu"}') ==
             scrape(url, "vllm:generation_tokens_total"))
    wait_for(lambda: of_gpu(g).get("engine", {}).get("running") == 0)
    assert "kv_cache_usage" in of_gpu(g)["engine"]


def words(s, model, n=8):
    ask = {"messages": CHAT, "temperature": 0, "max_tokens": n, "model": model}
    return client(s).chat.completions.create(**ask).choices[0].message.content


def use_adapters(g, root):
    """Two adapters and a new version of one, as vLLM computes them and as this engine does."""
    with Service("--adapter-root", root) as ours:
        base = words(g, "small")
        print(f"base: {base!r}, here {words(ours, ours.model)!r}")
        for name, seed in ("one", 1), ("two", 2), ("one", 3):
            folder = random_adapter(root / f"{name}-{seed}", seed, exponent=-5)
            register(g, name, folder)
            register(ours, name, folder, base_model=ours.model)
            there, here = words(g, name), words(ours, name)
            print(f"{name}, seed {seed}: {there!r}, here {here!r}")
            assert there != base
            assert os.path.commonprefix([there, here]), "not even the first token is the same"
    wait_for(lambda: len(of_gpu(g)["adapters"]) == 2)  # the first version of "one" has gone
    assert sorted(a.split("-")[0] for a in of_gpu(g)["adapters"]) == ["one@2", "two@1"]
    large = random_adapter(root / "large", 4, rank=32, layers=1)
    register(g, "large", large)
    try:
        words(g, "large")
        raise AssertionError("taken")
    except Exception as e:
        print(f"a rank that it does not take: {e}")
        assert "rank" in str(e) and "gpu" in str(e), e


def test_managed_and_external():
    with tempfile.TemporaryDirectory() as root:
        managed_and_external(pathlib.Path(root))


def managed_and_external(root):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    managed = backend("gpu", url, kind="vllm", command=command(port),
                      start_timeout=f"{START_S}s", stop_timeout="20s", probe_timeout="2s",
                      scrape="1s")
    external = [backend("gpu", url, kind="vllm", models=["small"], probe_timeout="2s",
                        scrape="1s")]
    with gateway([managed], "--adapter-root", root, limit_s=4 * START_S) as g:
        began = time.monotonic()
        wait_for(lambda: states(g)["gpu"] == "healthy", START_S)
        print(f"vLLM was healthy after {time.monotonic() - began:.0f} s")
        wait_for(lambda: g.json("/v1/backends")["data"][0]["models"] == ["small"])
        use(g, url)
        use_adapters(g, root)
        with gateway(external) as other:
            wait_for(lambda: states(other)["gpu"] in ("healthy", "half-open"))
            use(other, url)
        # killed in the middle of a stream: a clear error, then a new one answers
        first, = program(g)
        stream = client(g).chat.completions.create(model="small", messages=CHAT, max_tokens=900,
                                                   stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        os.killpg(first, signal.SIGKILL)
        try:
            for _ in stream:
                pass
            raise AssertionError("the stream ended as if nothing had happened")
        except Exception as e:
            assert "backend gpu" in str(e), e
        began = time.monotonic()
        again = client(g).with_options(timeout=START_S).chat.completions.create(
            model="small", messages=CHAT, max_tokens=4)
        print(f"killed, it answered again after {time.monotonic() - began:.0f} s")
        assert again.usage.completion_tokens == 4
        print(f"and with an adapter: {words(g, 'one')!r}")
        assert of_gpu(g)["restarts"] == 1 and len(of_gpu(g)["adapters"]) == 1
        second, = program(g)
        assert second != first
    assert g.status == 0
    wait_for(lambda: not group(second), 20)  # those that were killed need a moment


def test_killed_gateway_leaves_no_vllm():
    port = free_port()
    managed = backend("gpu", f"http://127.0.0.1:{port}", kind="vllm", command=command(port),
                      stop_timeout="20s")
    with gateway([managed]) as g:
        wait_for(lambda: program(g))
        guard, = program(g)
        wait_for(lambda: len(group(guard)) >= 3, START_S)  # the guard, vLLM, a worker of its own
        os.kill(g.pid, signal.SIGKILL)
        wait_for(lambda: not group(guard), 40)


if __name__ == "__main__":
    sys.exit(run_tests(dict(globals())) != 0)
