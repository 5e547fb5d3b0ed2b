"""Create .venv with the pinned dependencies and this package; standard library only, quick when nothing has changed.

Linux wheels of PyTorch on PyPI are CUDA builds of several gigabytes. On a machine without an NVIDIA GPU the CPU build
is installed instead, asked for by its local version "+cpu", which PyPI never holds: from PyTorch's own index, or, where
that cannot be reached, from wherever pip is configured to look. (Asking pip for a dry run is no safeguard: where
an index serves no metadata files, and always before pip 23.3, it downloads the wheels to find out what is in them.)
"""

from __future__ import annotations

import hashlib
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
    STAMP.unlink(missing_ok=True)
    start = time.monotonic()
    if not PYTHON.exists():
        print("creating .venv", flush=True)
        venv.create(VENV, with_pip=True)
    torch = next(line.split()[0] for line in LOCK.read_text().splitlines() if line.startswith("torch=="))
    install_torch(torch)
    print("installing the other dependencies", flush=True)
    # Where torch is a CPU build it is there already: its own index has files of other hashes.
    pip("install", "--require-hashes", "-r", str(LOCK))
    pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    pip("check")
    STAMP.write_text(state)
    print(f"installed in {time.monotonic() - start:.0f} s", flush=True)


def install_torch(torch: str) -> None:
    """Install the build of PyTorch that suits this machine."""
    if platform.system() != "Linux" or has_gpu():
        print(f"installing {torch}", flush=True)
        pip("install", torch)
    elif not is_installed(torch):
        print(f"installing {torch}, CPU build", flush=True)
        index = ["--index-url", CPU_INDEX] if is_reachable(CPU_INDEX) else []
        remedy = f"Install a CPU build of {torch} into {VENV} yourself"
        pip("install", "--no-deps", f"{torch}+cpu", *index, remedy=f"{remedy} ({CPU_INDEX} has them)")


def is_installed(requirement: str) -> bool:
    """Whether the environment has this version, whatever its build."""
    name, version = requirement.split("==")
    code = f"import importlib.metadata as m; print(m.version('{name}'))"
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("+")[0] == version


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


def pip(*arguments: str, remedy: str = "Mend the cause") -> None:
    """Run the environment's pip quietly; its own message is shown where it fails."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"pip {arguments[0]} failed; see above. {remedy} and run the same command again.")


if __name__ == "__main__":
    main()
