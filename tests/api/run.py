#!/usr/bin/env python3
"""The API as the official clients and raw sockets use it. Ends with "N passed, N failed"."""
import os
import pathlib
import re
import subprocess
import sys

from service import Service

HERE = pathlib.Path(__file__).resolve().parent
VENV = HERE / ".venv"


def set_up():
    """The clients, in the versions of requirements.txt and package-lock.json."""
    wanted = (HERE / "requirements.txt").read_text()
    mark = VENV / "installed.txt"
    if not mark.exists() or mark.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([VENV / "bin/pip", "install", "-q", "-r", HERE / "requirements.txt"],
                       check=True)
        mark.write_text(wanted)
    lock = HERE / "package-lock.json"
    mark = HERE / "node_modules/installed.json"
    if not mark.exists() or mark.read_text() != lock.read_text():
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=HERE, check=True)
        mark.write_text(lock.read_text())


def main():
    set_up()
    if sys.argv[1:] == ["--set-up"]:
        return 0
    programs = {
        "openai for Python": [VENV / "bin/python", HERE / "openai_python.py"],
        "openai for Node": ["node", HERE / "openai_node.mjs"],
        "raw sockets": [sys.executable, HERE / "raw.py"],
        "personas": [VENV / "bin/python", HERE / "personas.py"],
        "adapters": [VENV / "bin/python", HERE / "adapters.py"],
        "activated adapters": [sys.executable, HERE / "activated.py"],
        "tool calls": [VENV / "bin/python", HERE / "tool_calls.py"],
        "dialects of backends": [VENV / "bin/python", HERE / "dialects.py"],
        "backends": [VENV / "bin/python", HERE / "backends.py"],
        "managed programs": [VENV / "bin/python", HERE / "managed.py"],
        "adapters on backends": [VENV / "bin/python", HERE / "pushed.py"],
        "nginx on either side": [sys.executable, HERE / "nginx.py"],
        "security": [sys.executable, HERE / "security.py"],
        "response cache": [VENV / "bin/python", HERE / "response_cache.py"],
        "answers of backends": [VENV / "bin/python", HERE / "remote_cache.py"],
        "several models": [VENV / "bin/python", HERE / "models.py"],
        "a full disk": [VENV / "bin/python", HERE / "full_disk.py"],
        "metrics": [sys.executable, HERE / "metrics.py"],
    }
    passed = failed = 0
    with Service(limit_s=900) as s:
        env = {**os.environ, "TERRACE_URL": s.url, "TERRACE_MODEL_ID": s.model}
        for name, command in programs.items():
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE)
            text = done.stdout.decode(errors="replace")
            counts = re.findall(r"^(\d+) passed, (\d+) failed", text, re.M)
            good, bad = map(int, counts[-1]) if counts else (0, 1)
            bad = bad or int(done.returncode != 0)
            print(f"{name}: {good} passed, {bad} failed")
            if bad:
                print(text)
            passed, failed = passed + good, failed + bad
    if s.status != 0:
        print(f"the server ended with status {s.status}:\n" + "".join(s.log[-20:]))
        failed += 1
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
