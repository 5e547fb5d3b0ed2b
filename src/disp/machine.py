"""Where and when something was measured."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def now() -> str:
    """Date and time to the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def stamp() -> dict[str, Any]:
    """When, where and with which versions a cell was measured, for its record."""
    return {"date": now(), "hardware": hardware(), "versions": versions()}


def hardware() -> dict[str, Any]:
    """The machine: processor, cores, threads, memory, and the GPU if there is one."""
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def processor() -> str:
    """What the processor is called; "unknown" where nothing says it."""
    table = Path("/proc/cpuinfo")
    if table.is_file():
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    packages = ("disp-mdlm", "torch", "transformers", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
