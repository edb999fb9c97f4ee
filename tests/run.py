#!/usr/bin/env python3
"""Runs the test tiers and counts. usage: tests/run.py [TIER ...]; without a tier, all of them.

Each tier is a function that returns (passed, failed). The last line is "N passed, N failed"; the
exit status is 1 if anything failed. FUZZ_SECONDS sets how long each fuzz target runs (10).
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FUZZ_SECONDS = int(os.environ.get("FUZZ_SECONDS", "10"))

SANITIZED = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:allocator_may_return_null=1",
             "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
             "TSAN_OPTIONS": "halt_on_error=1:allocator_may_return_null=1"}


def run(*args, env=None, quiet=False, cwd=ROOT):
    """Exit status of a command; its output is shown unless quiet, and then only on failure."""
    full = {**os.environ, **SANITIZED, **(env or {})}
    if not quiet:
        return subprocess.run(args, cwd=cwd, env=full).returncode
    done = subprocess.run(args, cwd=cwd, env=full, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.stdout.write(done.stdout.decode(errors="replace")[-20000:])
    return done.returncode


def build(folder, *options, env=None, target="all"):
    """Configures once and builds; ends the run if that fails, as nothing after it has a meaning."""
    if not (ROOT / folder / "build.ninja").exists():
        if run("meson", "setup", folder, *options, env=env, quiet=True):
            sys.exit(f"tests: {folder} cannot be configured")
    if run("ninja", "-C", folder, target, quiet=True):
        sys.exit(f"tests: {folder} does not build")


def test_model():
    """The path of the small real model, fetched at first use; "" if no source can be reached."""
    done = subprocess.run([ROOT / "build/terrace", "pull", "smollm2:135m"], stdout=subprocess.PIPE)
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def meson_tests(folder, *args, model=""):
    """Runs the Meson tests of a build and counts TAP lines; a program that dies counts as one. Without
    a model, tests of the real one are skipped: they are about numbers, and slow under sanitizers."""
    run("meson", "test", "-C", folder, "--no-rebuild", "-q", *args, quiet=True,
        env={"TERRACE_TEST_MODEL": model} if model else {})
    passed = failed = 0
    for line in (ROOT / folder / "meson-logs/testlog.json").read_text().splitlines():
        result = json.loads(line)
        out = result.get("stdout", "")
        good = len(re.findall(r"^ok ", out, re.M))
        bad = len(re.findall(r"^not ok (?!.*# SKIP)", out, re.M))
        if result["result"] not in ("OK", "EXPECTEDFAIL", "SKIP") and not bad:
            bad = 1
        if bad:
            print(f"--- {result['name']}: {result['result']}")
            print(out[-6000:], result.get("stderr", "")[-6000:], sep="\n")
        passed, failed = passed + good, failed + bad
    return passed, failed


def counted(*args, env=None):
    """Runs a script that ends with "N passed, N failed"."""
    done = subprocess.run(args, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE)
    text = done.stdout.decode(errors="replace")
    sys.stdout.write(text)
    counts = re.findall(r"^(\d+) passed, (\d+) failed", text, re.M)
    if not counts:
        return 0, 1
    passed, failed = map(int, counts[-1])
    return passed, failed or int(done.returncode != 0)


def tier_lint():
    results = [run("make", "-s", "lint")]
    return results.count(0), len(results) - results.count(0)


def tier_unit():
    build("build")
    return meson_tests("build", model=test_model())


def tier_asan():
    build("build-asan", "-Db_sanitize=address,undefined", "-Dbuildtype=debugoptimized")
    return meson_tests("build-asan", "--timeout-multiplier", "5")


def tier_tsan():
    build("build-tsan", "-Db_sanitize=thread", "-Dbuildtype=debugoptimized")
    return meson_tests("build-tsan", "--timeout-multiplier", "5", "--suite", "threads")


def tier_fuzz():
    build("build-fuzz", "-Dfuzz=true", "-Dtests=disabled", "-Dbuildtype=debugoptimized",
          env={"CC": "clang-14"}, target="fuzzers")
    passed = failed = 0
    for target in sorted((ROOT / "build-fuzz/tests/fuzz").glob("fuzz_*")):
        if not (target.is_file() and os.access(target, os.X_OK)):
            continue
        seeds = ROOT / "tests/fuzz/corpus" / target.name.removeprefix("fuzz_")
        corpus = ROOT / "build-fuzz/corpus" / target.name
        corpus.mkdir(parents=True, exist_ok=True)
        args = [target, f"-max_total_time={FUZZ_SECONDS}", "-rss_limit_mb=2048", "-timeout=20",
                "-print_final_stats=1", f"-artifact_prefix={corpus.parent}/{target.name}-", corpus]
        if seeds.exists():
            args.append(seeds)
        done = subprocess.run(args, cwd=ROOT, env={**os.environ, **SANITIZED},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text = done.stdout.decode(errors="replace")
        runs = re.search(r"number_of_executed_units:\s*(\d+)", text)
        print(f"{target.name}: {runs[1] if runs else '?'} executions, "
              f"{'no finding' if done.returncode == 0 else 'FAILED'}")
        if done.returncode:
            print(text[-8000:])
        passed, failed = passed + (done.returncode == 0), failed + (done.returncode != 0)
    return passed, failed


def tier_cli():
    build("build")
    return counted("tests/cli/run.py")


def tier_api():
    build("build")
    return counted("tests/api/run.py")


def tier_stress():
    """The short forms; `make soak` runs the long ones."""
    build("build")
    results = []
    for script in (
        "run",
        "cache",
        "faults",
        "hot_swap",
        "kills",
        "limits",
        "models",
        "tiers",
    ):
        results.append(counted(sys.executable, f"tests/stress/{script}.py"))
    return tuple(map(sum, zip(*results)))


TIERS = {"lint": tier_lint, "unit": tier_unit, "asan": tier_asan, "tsan": tier_tsan,
         "fuzz": tier_fuzz, "cli": tier_cli, "api": tier_api, "stress": tier_stress}


def main():
    names = sys.argv[1:] or list(TIERS)
    unknown = [n for n in names if n not in TIERS]
    if unknown:
        sys.exit(f"tests/run.py: no tier {unknown[0]}; there are: {' '.join(TIERS)}")
    total_passed = total_failed = 0
    for name in names:
        start = time.monotonic()
        print(f"== {name}", flush=True)
        passed, failed = TIERS[name]()
        print(f"{name}: {passed} passed, {failed} failed, {time.monotonic() - start:.0f} s\n",
              flush=True)
        total_passed, total_failed = total_passed + passed, total_failed + failed
    print(f"{total_passed} passed, {total_failed} failed")
    return 1 if total_failed or not total_passed else 0


if __name__ == "__main__":
    sys.exit(main())
