"""Dimple against its recorded outputs."""

import pytest
import torch
from models.dimple.recorded import compare
from parity_folder import PARITY as ROOT
from references.dimple import photo
from safetensors.torch import load_file, save_file

PARITY = ROOT / "dimple"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason=f"no recorded outputs in {PARITY}")


@needs_parity
def test_what_the_published_code_computed():
    differences = list(compare(PARITY))
    assert len(differences) >= 16
    assert not [difference for difference in differences if not difference.ok]


def test_known_token_counts(make_dimple):
    model = make_dimple()
    assert model.patches(photo(640, 480))[1] == (17, 23)
    model.config.processing["max_pixels"] = 336 * 336
    assert model.patches(photo(640, 480))[1] == (10, 13)
    assert model.patches(photo(480, 640))[1] == (13, 10)


@needs_parity
def test_every_recorded_quantity_is_compared(tmp_path):
    for path in PARITY.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "io.safetensors").unlink()
    save_file({**load_file(PARITY / "io.safetensors"), "something_new": torch.zeros(1)}, tmp_path / "io.safetensors")
    assert [d.quantity for d in compare(tmp_path) if not d.ok] == ["something_new (no comparison for it)"]
