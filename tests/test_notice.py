"""NOTICE names every picture of the repository that shows somebody else's drawings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIXELS = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp"}


def drawn_by_us(picture: Path) -> bool:
    """Whether it is made of lines and letters alone: as SVG, or beside the SVG that shows the same."""
    vector = picture.with_suffix(".svg")
    return vector.exists() and "<image" not in vector.read_text(encoding="utf-8")


def test_notice_names_the_pictures_with_drawings():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a clone")
    pictures = [name for name in done.stdout.splitlines() if Path(name).suffix.lower() in PIXELS | {".svg"}]
    named = re.findall(r"^ {4}(\S+)$", (ROOT / "NOTICE").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(named) == sorted(name for name in pictures if not drawn_by_us(ROOT / name))
