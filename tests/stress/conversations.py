"""Conversations that share personas, in a pool of KV blocks far too small for all of them: the
answers are those of a server without a prefix cache. The short form of bench/serving.py cache."""
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def test_a_small_pool_changes_no_answer():
    done = subprocess.run([sys.executable, ROOT / "bench/serving.py", "cache", "--quick"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
    assert done.returncode == 0, done.stdout.decode()[-3000:]
    report = json.loads((ROOT / "build/bench/serving-cache.json").read_text())
    for bound in report["bounds"]:
        if "TTFT" not in bound["figure"]:  # times belong to the bench
            assert bound["met"], bound
    on, small = report["rows"][1:]
    print(f"{report['notes'][0]} Hit rate {on['hit rate']:.2f} and {small['hit rate']:.2f}, "
          f"{small['evictions']:.0f} blocks evicted, {small['preemptions']:.0f} preemptions")
