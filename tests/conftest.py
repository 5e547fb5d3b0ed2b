"""A tiny model with random weights, and things to show it."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from disp.data.sample import Query
from disp.models.builtin.model import BuiltinConfig, BuiltinModel
from disp.models.builtin.tokenizer import train_tokenizer

torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Commands that tests start would take all cores each, and threads that spin for a core are far slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    # The longest file first, so that two workers end at about the same time.
    items.sort(key=lambda item: item.path.name != "test_end_to_end.py")


SENTENCES = [
    "Describe the picture.",
    "What is to the left of the cat?",
    "A red apple is to the left of a cat.",
    "There are two dogs and a tree in the picture.",
    "Is there a boat? Yes, above the tree.",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing that a test does may reach for another machine; this one's own addresses are let through."""
    tried = []

    def local(host: object) -> bool:
        if host in (None, "", "localhost", b"localhost", socket.gethostname()):
            return True
        try:
            return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
        except ValueError:
            return False

    def guarded(real, where):
        def call(*arguments, **given):
            host = where(arguments)
            if not local(host):
                tried.append(host)
                raise OSError(f"a test may not reach {host!r}")
            return real(*arguments, **given)

        return call

    def address(arguments):
        # Sockets of other kinds than IP's are addressed by a path.
        return arguments[1][0] if isinstance(arguments[1], tuple) else None

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), address))
    monkeypatch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda arguments: arguments[0]))
    yield tried
    assert not tried, f"reached for {tried}"


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(SENTENCES, 300)


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """A function that builds a model with random weights; keyword arguments override its config's."""

    def build(seed: int = 0, **overrides) -> BuiltinModel:
        # Large weights: those of an ordinary initialisation predict the same nearly uniform distribution everywhere.
        config = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "gen_length": 4,
            "initializer_range": 0.3,
            "vision": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 24,
                "patch_size": 8,
                "stem_channels": [],
            },
        }
        torch.manual_seed(seed)
        model = BuiltinModel(BuiltinConfig(**{**config, **overrides}))
        model.tokenizer = tokenizer
        return model.eval()

    return build


@pytest.fixture(scope="session")
def tiny_model(make_model):
    """The tiny model in float32, shared by all tests: do not change it."""
    return make_model()


@pytest.fixture(scope="session")
def tiny_model64(make_model):
    """The tiny model in float64, shared by all tests: do not change it."""
    return make_model().double()


@pytest.fixture(scope="session")
def picture():
    """A function from a number to a 24-pixel picture of noise."""

    def draw(number: int, size: int = 24) -> Image.Image:
        return Image.fromarray(np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8))

    return draw


@pytest.fixture(scope="session")
def queries(picture) -> list[Query]:
    """Four queries of different lengths: one picture, one picture, none, and two pictures."""
    return [
        Query("a", 0, (picture(1),), (), "<image>\nDescribe the picture."),
        Query("b", 0, (picture(2),), (), "<image>\nIs there a boat, or two dogs and a tree? What is to the left?"),
        Query("c", 0, (), (), "What is a cat?"),
        Query("d", 0, (picture(3), picture(4)), (), "<image> and <image>: which has the apple?"),
    ]


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """The files that were renamed into place and had been flushed to the disk before, in order."""
    flushed, found = set(), []
    fsync, rename = os.fsync, os.replace

    def flush(descriptor):
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def replace(old, new):
        if os.stat(old).st_ino in flushed:
            found.append(Path(new))
        if os.path.exists(new):  # whose number another file may get
            flushed.discard(os.stat(new).st_ino)
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", replace)
    return found
