"""MMaDA against its recorded outputs."""

from __future__ import annotations

import json

import pytest
import torch
from models.mmada.recorded import compare
from parity_folder import PARITY
from safetensors.torch import load_file

from disp.models.mmada.loading import load_official
from disp.models.mmada.published import detect

recorded = pytest.mark.skipif(not (PARITY / "mmada").is_dir(), reason=f"no recorded outputs in {PARITY / 'mmada'}")


@recorded
def test_every_recorded_quantity():
    differences = list(compare(PARITY / "mmada"))
    assert len(differences) >= 13
    assert [difference for difference in differences if not difference.ok] == []


@recorded
def test_published_names_come_back():
    weights = load_file(PARITY / "mmada" / "model.safetensors")
    model = load_official(PARITY / "mmada")
    assert model.official_state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.official_state_dict().items())
    tower = load_file(PARITY / "mmada" / "vq.safetensors")
    assert all(torch.equal(tensor, tower[name]) for name, tensor in model.vq_state_dict().items())
    assert model.vq_state_dict().keys() == tower.keys()


@recorded
def test_only_mmada_is_detected():
    found = {folder.name: detect(json.loads((folder / "config.json").read_text())) for folder in PARITY.iterdir()}
    assert [name for name, is_mmada in found.items() if is_mmada] == ["mmada"]
