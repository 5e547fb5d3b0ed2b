"""Create .venv with the pinned dependencies and this package; standard library only, quick when nothing has changed.

Linux wheels of PyTorch on PyPI are CUDA builds of several gigabytes. On a machine without an NVIDIA GPU the CPU build
is installed instead: from PyTorch's own index, or from wherever pip is configured to look if it finds one there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "disp-installed"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    """Install unless the stamp says that this very state is installed."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the interpreter is whatever make found
        sys.exit(
            f"disp needs Python 3.11 or later; this is {platform.python_version()}. Call make with PYTHON=python3.12"
        )
    inputs = b"".join(path.read_bytes() for path in (LOCK, ROOT / "pyproject.toml", Path(__file__)))
    state = hashlib.sha256(inputs + str(ROOT).encode()).hexdigest()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == state:
        return
    start = time.monotonic()
    if not PYTHON.exists():
        print("creating .venv", flush=True)
        venv.create(VENV, with_pip=True)
    torch = next(line for line in LOCK.read_text().splitlines() if line.startswith("torch=="))
    print(f"installing {torch}", flush=True)
    pip("install", *torch_arguments(torch))
    print("installing the other dependencies", flush=True)
    pip("install", "-r", str(LOCK))
    pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    pip("check")
    STAMP.write_text(state)
    print(f"installed in {time.monotonic() - start:.0f} s", flush=True)


def torch_arguments(torch: str) -> list[str]:
    """What pip needs to install the right build of PyTorch."""
    if has_gpu() or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return [torch]
    if is_reachable(CPU_INDEX):
        return [torch, "--index-url", CPU_INDEX]
    report = pip("install", "--dry-run", "--report", "-", torch, capture=True)
    names = [item["metadata"]["name"] for item in json.loads(report)["install"]]
    if any(name.startswith(("nvidia", "cuda")) for name in names):
        sys.exit(
            f"{CPU_INDEX} cannot be reached, and pip would install the CUDA build of PyTorch (several gigabytes) on "
            f"this machine without a GPU. Install a CPU build of {torch} into .venv yourself, then run this again."
        )
    return [torch]


def has_gpu() -> bool:
    """Whether nvidia-smi lists a device."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def is_reachable(url: str) -> bool:
    """Whether the package index answers within five seconds."""
    try:
        with urllib.request.urlopen(f"{url}/torch/", timeout=5):
            return True
    except OSError:
        return False


def pip(*arguments: str, capture: bool = False) -> str:
    """Run the environment's pip quietly; its own message is shown where it fails."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=False)
    if done.returncode:
        sys.exit(f"pip {arguments[0]} failed; see above. Mend the cause and run the same command again.")
    return done.stdout or ""


if __name__ == "__main__":
    main()
