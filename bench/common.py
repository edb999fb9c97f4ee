"""What the benchmark scripts share: model files, facts of the machine, running a program."""
import datetime
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"


def model_file(name):
    """The path of ARCH:QUANT (made by synth-gguf at first use), "smollm2" (the real one), or a path."""
    if name == "smollm2":
        done = subprocess.run([ROOT / "build/terrace", "pull"], stdout=subprocess.PIPE, check=True)
        return pathlib.Path(done.stdout.decode().strip())
    if ":" not in name:
        return pathlib.Path(name)
    arch, quant = name.split(":")
    path = ROOT / f"build/models/{arch}-{quant}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {path.relative_to(ROOT)}, which takes minutes for a large model", file=sys.stderr)
        part = path.with_suffix(".part")  # so that half a file is never taken for a model
        subprocess.run([ROOT / "build/bench/synth-gguf", arch, quant, part], check=True)
        part.rename(path)
    return path


def machine():
    """What a figure belongs to. A load over 0.5 before the run makes it worthless."""
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"other programs are at work (load {load:.1f}): the figures will mean little", file=sys.stderr)
    info = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True)
    memory = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) // 1024
    return {"cpu": info.get("model name"), "family": info.get("cpu family"), "cores": os.cpu_count(),
            "memory_mib": memory, "commit": commit.stdout.decode().strip(),
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "load_before": load}


def run_json(*args):
    """Runs a program that prints JSON; ends the script if it fails."""
    done = subprocess.run([str(a) for a in args], capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, args))}:\n{done.stderr.decode()}")
    return json.loads(done.stdout)
