"""The commands that the pages of the families give."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from disp.cli import app
from disp.training.recipes import recipes

PAGES = sorted((Path(__file__).parents[2] / "docs" / "models").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_pages_exist(page):
    """Verbs, options and their values, not what they do; recipes are looked up."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("disp ")]
    assert commands or page.stem == "builtin"  # which needs no command of its own
    for command in commands:
        _, bound, _ = app.parse_args(command, print_error=False, exit_on_error=False)
        if name := bound.arguments.get("recipe"):
            assert name in recipes()
    if page.stem == "index":
        text = page.read_text(encoding="utf-8")
        assert all(f"| `{name}` |" in text for name in recipes())
