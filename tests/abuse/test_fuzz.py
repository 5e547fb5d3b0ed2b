"""Readers of data, results, configs, manifests and evidence take any bytes: right, or `DispError` in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from abuse.campaign import tried
from abuse.targets import CORPUS, TARGETS, attempt, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MANY = int(os.environ.get("DISP_FUZZ", "1"))
bounded = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def replaced(value, path, new):
    """The value with what lies at a path in it replaced, or taken out where ``new`` is ``...``."""
    if not path:
        return new
    inside = replaced(value[path[0]], path[1:], new)
    items = value.items() if isinstance(value, dict) else enumerate(value)
    kept = [(key, inside if key == path[0] else each) for key, each in items if key != path[0] or inside is not ...]
    return dict(kept) if isinstance(value, dict) else [each for _, each in kept]


def paths(value):
    found = [()]
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found += [(key, *below) for key, each in items for below in paths(each)]
    return found


@st.composite
def changed(draw, name):
    """Bytes of the corpus: cut, changed, or with a value of another type somewhere."""
    content = draw(st.sampled_from(seeds(name)))
    kind = draw(st.sampled_from(["bytes", "value", "value", "value"]))
    if kind == "value":
        line = draw(st.sampled_from(content.splitlines() if name in ("lines", "evidence", "decisions") else [content]))
        try:
            value = json.loads(line)
        except ValueError:
            kind = "bytes"
        else:
            new = replaced(value, draw(st.sampled_from(paths(value))), draw(values | st.just(...)))
            return b"" if new is ... else json.dumps(new).encode() + b"\n"
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        action = draw(st.sampled_from(["cut", "flip", "insert"]))
        if action == "cut":
            del changed[place:]
        elif action == "flip" and changed:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        else:
            changed[place:place] = draw(st.binary(max_size=5))
    return bytes(changed)


def fuzz(name: str, examples: int) -> None:
    @given(content=changed(name))
    @settings(parent=bounded, max_examples=examples)
    def each(content: bytes) -> None:
        try:
            attempt(name, content)
        except BaseException:
            tried(f"fuzz: {name}", failed=True)
            raise
        tried(f"fuzz: {name}")

    each()


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs(name):
    fuzz(name, 25)


@pytest.mark.abuse
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TARGETS)
def test_many_inputs(name):
    fuzz(name, 400 * MANY)


@pytest.mark.parametrize("file", sorted(CORPUS.iterdir()), ids=lambda file: file.name)
def test_the_corpus(file: Path):
    attempt(file.name.rsplit("-", 1)[0], file.read_bytes())
