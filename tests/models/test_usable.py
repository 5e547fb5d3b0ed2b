"""What a model cannot take is set aside before the run, and models are told apart."""

import copy

import pytest
import torch

from disp.data.llava import Dataset, Problem
from disp.data.sample import Sample, Turn
from disp.errors import DispError
from disp.models.fingerprint import fingerprint
from disp.models.loading import load_model, save_model
from disp.models.usable import usable


@pytest.fixture
def dataset(tmp_path, picture):
    picture(1).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    turns = (Turn("<image>?", "cat"),)
    samples = (
        Sample("good", (tmp_path / "whole.png",), turns),
        Sample("torn", (tmp_path / "torn.png",), turns),
        Sample("text", (), (Turn("?", "dog"), Turn("and?", "word " * 40))),
        Sample("plain", (), (Turn("?", "dog"),)),
    )
    return Dataset(samples, tmp_path / "data.json", tmp_path, (Problem("data.json:row 9", "no conversations"),))


def test_rows_with_damaged_pictures_and_long_answers_are_set_aside(tiny_model, dataset):
    counts = []
    found = usable(dataset, tiny_model, progress=counts.append)
    assert [sample.id for sample in found.samples] == ["good", "plain"] and sum(counts) == 4
    assert [problem.place for problem in found.problems] == [
        "data.json:row 9",
        "data.json:sample 'torn'",
        "data.json:sample 'text'",
    ]
    assert "torn.png: cannot be read" in found.problems[1].reason
    assert "does not fit into 4" in found.problems[2].reason and "--gen-length" in found.problems[2].reason
    with pytest.raises(DispError, match=r"sample 'torn': .*cannot be read"):
        usable(dataset, tiny_model, strict=True)
    with pytest.raises(DispError, match="no row that the model can take; the first: response of"):
        usable(Dataset(dataset.samples[2:3], dataset.path, dataset.image_root), tiny_model)


def test_models_have_one_fingerprint_each(tiny_model, make_model, tmp_path):
    save_model(tiny_model, tmp_path)
    found = fingerprint(tiny_model)
    assert fingerprint(load_model(tmp_path)) == found
    changed = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for parameter in changed.model.layers[1].mlp.parameters():
            parameter.mul_(1.001)
    others = [changed, make_model(seed=1), make_model(gen_length=5), copy.deepcopy(tiny_model).double()]
    assert len({found, *map(fingerprint, others)}) == 5


def test_a_length_that_was_asked_for_is_saved_with_the_model(make_model, tmp_path):
    save_model(make_model(generation={"steps": 4, "block_length": 4}), tmp_path / "a")
    longer = load_model(tmp_path / "a", gen_length=12)
    save_model(longer, tmp_path / "b")
    again = load_model(tmp_path / "b")
    assert again.gen_length == 12
    assert again.generation_defaults == longer.generation_defaults == {"steps": 12, "block_length": 4}


def test_a_wrong_device_is_named():
    with pytest.raises(DispError, match="such as 'cpu', 'cuda' or 'cuda:1', got 'gpu'"):
        load_model("builtin", device="gpu")
