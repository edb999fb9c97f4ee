#!/usr/bin/env python3
"""Three models, room for two, eight clients that ask for any of them: every answer is there and is
the model's own, memory stays under the limit, and nothing is left behind. Then models are loaded and
unloaded by hand, again and again. MODELS_SECONDS (12) and MODELS_CYCLES (12) set how long.
Ends with "N passed, N failed"."""
import http.client
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "api"))
from service import ROOT, Service, model_path, run_tests  # noqa: E402

SECONDS = float(os.environ.get("MODELS_SECONDS", "12"))
CYCLES = int(os.environ.get("MODELS_CYCLES", "12"))
CLIENTS = 8
LIMIT_MIB = 450  # 192 for the process; each model needs 105 at least
NAMES = ["real:1", "odd:1", "odder:1"]
QUESTIONS = ["Name three colours.", "Count to five.", "What is a prime?", "Who are you?"]


def shelf(folder):
    """The small real model, and two of its shape with random numbers."""
    for name in NAMES:
        (folder / name.split(":")[0]).mkdir()
    (folder / "real/1.gguf").symlink_to(model_path())
    for seed, name in ((1, "odd"), (2, "odder")):
        subprocess.run([ROOT / "build/bench/synth-gguf", "smollm2-135m", "q4_0",
                        folder / name / "1.gguf", "--seed", str(seed)], check=True)


def post(port, path, body):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    c.request("POST", path, json.dumps(body))
    reply = c.getresponse()
    text = reply.read()
    c.close()
    assert reply.status == 200, (reply.status, text)
    return text


def ask(port, model, question):
    answer = json.loads(post(port, "/v1/chat/completions", {
        "model": model, "messages": [{"role": "user", "content": question}],
        "temperature": 0, "max_tokens": 6, "ignore_eos": True, "timeout": 60}))
    assert answer["model"] == model
    return answer["choices"][0]["message"]["content"]


def memory_kib(pid, what="VmRSS"):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith(what + ":"):
            return int(line.split()[1])


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def counter(s, name):
    metrics = s.metrics()
    return sum(v for k, v in metrics.items() if k.startswith(name + "{"))


def client(s, expected, until, seed, results):
    rng = random.Random(seed)
    while time.monotonic() < until:
        model, question = rng.choice(NAMES), rng.choice(QUESTIONS)
        try:
            got = ask(s.port, model, question)
            results.append(got == expected[model, question] or (model, question, got))
        except Exception as e:
            results.append(e)


def test_three_models_room_for_two():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shelf(folder)
        with Service("--model-dir", folder, "--ctx", 512, "--memory-limit", f"{LIMIT_MIB}MiB",
                     file="none", limit_s=SECONDS + 300) as s:
            expected = {(m, q): ask(s.port, m, q) for m in NAMES for q in QUESTIONS}
            assert len({expected[m, QUESTIONS[0]] for m in NAMES}) == 3
            results, peak = [], 0
            until = time.monotonic() + SECONDS
            threads = [threading.Thread(target=client, args=(s, expected, until, i, results))
                       for i in range(CLIENTS)]
            for t in threads:
                t.start()
            while any(t.is_alive() for t in threads):
                peak = max(peak, memory_kib(s.pid))
                time.sleep(0.05)
            wrong = [r for r in results if r is not True]
            loads, evictions = (counter(s, f"terrace_model_{what}_total")
                                for what in ("loads", "evictions"))
            print(f"{SECONDS:.0f} s: {len(results)} answers, {len(wrong)} wrong; {loads:.0f} loads, "
                  f"{evictions:.0f} evictions; resident {peak >> 10} MiB at most")
            assert not wrong, wrong[:3]
            assert evictions >= 3 and peak >> 10 < LIMIT_MIB
        assert s.status == 0, "".join(s.log[-20:])


def test_cycles():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shelf(folder)
        with Service("--model-dir", folder, "--ctx", 512, "--memory-limit", f"{LIMIT_MIB}MiB",
                     file="none", limit_s=1200) as s:
            start = None
            for i in range(CYCLES):
                for model in NAMES[:2]:
                    ask(s.port, model, QUESTIONS[0])
                    post(s.port, "/v1/models/unload", {"model": model})
                if i == CYCLES // 5:
                    start = memory_kib(s.pid), descriptors(s.pid)
            end = memory_kib(s.pid), descriptors(s.pid)
            print(f"{CYCLES} cycles of two models: resident {start[0]} KiB after a fifth, {end[0]} KiB "
                  f"at the end; descriptors {start[1]}, {end[1]}")
            assert end[0] - start[0] < 2048 and end[1] <= start[1] + 1
        assert s.status == 0


sys.exit(run_tests(dict(globals())) != 0)
