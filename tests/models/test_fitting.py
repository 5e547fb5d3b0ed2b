"""What cannot be read or trained on is set aside before the run, and models are told apart."""

import copy
from dataclasses import replace

import pytest
import torch

from disp.data.damaged import without_damaged_pictures
from disp.data.dataset import Dataset, Problem
from disp.data.sample import Sample, Turn
from disp.errors import DispError
from disp.models.fingerprint import fingerprint
from disp.models.fitting import with_fitting_answers
from disp.models.loading import load_model
from disp.models.saving import save_model


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


def test_rows_with_damaged_pictures_are_set_aside(dataset):
    counts = []
    found = without_damaged_pictures(dataset, progress=counts.append)
    assert [sample.id for sample in found.samples] == ["good", "text", "plain"] and sum(counts) == 4
    assert [problem.place for problem in found.problems] == ["data.json:row 9", "data.json:sample 'torn'"]
    assert "torn.png: cannot be read" in found.problems[1].reason
    with pytest.raises(DispError, match=r"sample 'torn': .*cannot be read"):
        without_damaged_pictures(dataset, strict=True)
    with pytest.raises(DispError, match="no row whose pictures can be read"):
        without_damaged_pictures(replace(dataset, samples=dataset.samples[1:2]))


def test_rows_with_long_answers_are_not_trained_on(tiny_model, dataset):
    found = with_fitting_answers(dataset, tiny_model)
    assert [sample.id for sample in found.samples] == ["good", "torn", "plain"]
    assert [problem.place for problem in found.problems] == ["data.json:row 9", "data.json:sample 'text'"]
    assert "does not fit into 4" in found.problems[1].reason and "--gen-length" in found.problems[1].reason
    with pytest.raises(DispError, match=r"sample 'text': response of"):
        with_fitting_answers(dataset, tiny_model, strict=True)
    with pytest.raises(DispError, match="no row that the model can be trained on; response of"):
        with_fitting_answers(replace(dataset, samples=dataset.samples[2:3]), tiny_model)


def test_what_is_cut_is_the_first_of_an_answer(tiny_model):
    whole = tiny_model.encode_responses(["word " * 40], 300)
    assert torch.equal(tiny_model.encode_responses(["word " * 40], 4, cut=True), whole[:, :4])
    assert torch.equal(tiny_model.encode_responses(["cat"], 4, cut=True), tiny_model.encode_responses(["cat"], 4))


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
