"""Checkpoints that are torn are passed over; those that are damaged are named before the library reads them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from disp.errors import DispError
from disp.training.checkpoints import check_checkpoint, checkpoints_in


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    save_file({"a": torch.ones(40)}, folder / "model.safetensors")
    torch.save({"a": torch.ones(40)}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 4}))
    return folder


def test_a_whole_checkpoint_passes(checkpoint):
    check_checkpoint(checkpoint)
    assert checkpoints_in(checkpoint.parent) == (checkpoint, [])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
def test_a_damaged_file_is_named_with_the_remedy(checkpoint, name, damage):
    content = (checkpoint / name).read_bytes()
    # In the header of the one; in the values of the other, whose archive has a checksum of them.
    place = content.index(b"dtype" if name == "model.safetensors" else torch.ones(4).numpy().tobytes())
    changed = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
    (checkpoint / name).write_bytes({"cut": content[:-30], "empty": b"", "changed": changed}[damage])
    with pytest.raises(DispError, match=rf"{name} of a checkpoint is damaged .*; delete .*checkpoint-4 and start"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("state", ["", "[]", "{}", '{"global_step": null}', None])
def test_a_checkpoint_without_its_state_is_torn(checkpoint, state):
    (checkpoint / "trainer_state.json").unlink()
    if state is not None:
        (checkpoint / "trainer_state.json").write_text(state)
    assert checkpoints_in(checkpoint.parent) == (None, [checkpoint])
