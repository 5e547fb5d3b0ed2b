"""Importing is quick and silent, and every public name exists."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import disp

HEAVY = ("torch", "transformers", "peft", "PIL", "numpy")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_the_command_line_starts_without_the_heavy_libraries():
    done = run(f"import sys, disp.cli; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_importing_the_package_is_silent_and_loads_nothing():
    done = run(f"import sys, disp; print([name for name in {(*HEAVY, 'cyclopts', 'rich')!r} if name in sys.modules])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", disp.__all__)
def test_public_names_exist(name):
    assert callable(getattr(disp, name))
    assert name in dir(disp)


def test_type_checkers_know_the_same_names():
    tree = ast.parse(Path(disp.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    known = {
        (alias.name, alias.asname, node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert known == {(name, name, getattr(disp, name).__module__) for name in disp.__all__}


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="'lode_model'"):
        disp.lode_model  # noqa: B018
