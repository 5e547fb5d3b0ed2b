"""Tiny LaViDas of both variants."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from references.lavida import (
    VARIANTS,
    make,
    write,
    write_dream_tokenizer,
)

from disp.models.lavida.loading import load_official
from disp.models.lavida.model import Lavida


@pytest.fixture(scope="session", params=VARIANTS)
def model(request) -> Lavida:
    return make(request.param)


@pytest.fixture(scope="session")
def dream_folder(tmp_path_factory) -> Path:
    model, folder = make("dream", vocab_size=264), tmp_path_factory.mktemp("dream")
    write(model, folder, mask_token_id=None, eos_token_id=None)
    write_dream_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def dream(dream_folder) -> Lavida:
    return load_official(dream_folder, torch.float64)
