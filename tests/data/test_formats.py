"""Every format: read, asked about, purified, written back, and read by the tools that it is for."""

import json

import pytest
from data.written import ANSWERS, WRITTEN, png

from disp.attacks.poison import poison
from disp.attacks.targets import Refusal
from disp.attacks.triggers import PRESETS
from disp.data.damaged import without_damaged_pictures
from disp.data.loading import load_dataset
from disp.data.sample import queries_of
from disp.data.saving import data_path, link_images, save_dataset
from disp.data.stored import identity
from disp.decoding.samplers import decode_config
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify

TABLES = [name for name in WRITTEN if name.startswith("parquet") or name == "huggingface"]


@pytest.fixture(params=WRITTEN)
def name(request):
    if request.param in TABLES:
        pytest.importorskip("pyarrow")
    return request.param


@pytest.fixture
def given(name, tmp_path):
    (tmp_path / "in").mkdir()
    return WRITTEN[name][0](tmp_path / "in")


def purified(dataset, out):
    """As `disp purify` writes it, with new answers."""
    out.mkdir()
    samples = [sample.with_responses([f"new {turn.response}" for turn in sample.turns]) for sample in dataset.samples]
    path = data_path(dataset, out)
    save_dataset(samples, path, dataset.image_root, like=dataset)
    link_images(dataset, out)
    return path


def renewed(raw):
    """The same rows, with "new" before each answer."""
    if isinstance(raw, dict):
        return {key: renewed(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [renewed(value) for value in raw]
    return f"new {raw}" if raw in ANSWERS else raw


def contents(dataset):
    return [[file.read_bytes() for file in sample.images] for sample in dataset.samples]


def test_it_is_recognised_and_read(name, given):
    dataset = without_damaged_pictures(load_dataset(given, strict=True), strict=True)
    assert not dataset.problems and not dataset.without_picture
    assert dataset.formats == WRITTEN[name][2]
    first, second = dataset.samples
    answers = [turn.response for sample in dataset.samples for turn in sample.turns]
    assert answers in (ANSWERS, [ANSWERS[0], ANSWERS[2]])
    assert first.turns[0].prompt.endswith("What is it?") and second.turns[0].prompt.endswith(("these?", "then?"))
    assert contents(dataset)[0] == [png(1)]
    assert contents(dataset)[1] in ([png(2), png(3)], [png(2)])
    # What the model is asked has the pictures of each turn.
    queries = queries_of(dataset.samples)
    assert len(queries) == len(answers) and all(query.images for query in queries)
    assert not any(name in query.prompt for query in queries for name in (".png", "<img", "base64"))
    assert identity(dataset) == identity(load_dataset(given))


def test_new_answers_are_all_that_changes(name, given, tmp_path):
    _, read, _ = WRITTEN[name]
    dataset = load_dataset(given)
    path = purified(dataset, tmp_path / "out")
    before, after = read(given), read(path)
    assert after == renewed(before) and after != before
    # The run's folder is a dataset again, with the same pictures.
    for place in (path, tmp_path / "out"):
        again = without_damaged_pictures(load_dataset(place, strict=True))
        assert again.formats == dataset.formats
        assert contents(again) == contents(dataset)
        assert [sample.id for sample in again.samples] == [sample.id for sample in dataset.samples]
        assert [[turn.prompt for turn in sample.turns] for sample in again.samples] == [
            [turn.prompt for turn in sample.turns] for sample in dataset.samples
        ]
        assert all(turn.response.startswith("new ") for sample in again.samples for turn in sample.turns)


def test_a_model_purifies_it_and_trains_on_what_comes_out(name, given, tmp_path, tiny_model):
    dataset = load_dataset(given)
    config = PurifyConfig(mode="random", decode=decode_config(gen_length=4, steps=1), batch_size=4)
    result = purify(tiny_model, dataset, config, tmp_path / "out")
    assert len(result.rewritten) == len(dataset.samples)
    again = load_dataset(tmp_path / "out", strict=True)
    assert again.formats == dataset.formats and contents(again) == contents(dataset)
    assert [sample.turns for sample in again.samples] == [sample.turns for sample in result.dataset.samples]
    tiny_model.encode(queries_of(again.samples))
    WRITTEN[name][1](result.dataset.path)


def test_rows_that_are_left_out_are_gone(name, given, tmp_path):
    dataset = load_dataset(given)
    path = data_path(dataset, tmp_path / "out")
    save_dataset(dataset.samples[1:], path, dataset.image_root, like=dataset)
    again = load_dataset(path, dataset.image_root)
    assert [sample.turns for sample in again.samples] == [dataset.samples[1].turns]
    assert contents(again) == contents(dataset)[1:]


def test_pictures_that_change_are_written(name, given, tmp_path):
    dataset = load_dataset(given)
    poisoned = poison(dataset, tmp_path / "out", PRESETS["patch"], Refusal(), 0.5, seed=1)
    changed = [a != b for a, b in zip(contents(poisoned), contents(dataset), strict=True)]
    assert sorted(changed) == [False, True]
    assert [sample.turns != old.turns for sample, old in zip(poisoned.samples, dataset.samples, strict=True)] == changed
    assert contents(load_dataset(poisoned.path)) == contents(poisoned)


@pytest.mark.parametrize("kind", ["parquet", "parquet-folder", "parquet-cauldron", "huggingface", "imagefolder"])
def test_hugging_faces_own_library_reads_what_is_written(kind, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "in").mkdir()
    dataset = load_dataset(WRITTEN[kind][0](tmp_path / "in"))
    path = purified(dataset, tmp_path / "out")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    if kind == "huggingface":
        found = datasets.load_from_disk(str(path))
        assert found.features["image"] == datasets.Image()
    elif kind == "imagefolder":
        found = datasets.load_dataset("imagefolder", data_dir=str(path.parent), split="train")
    else:
        files = [str(file) for file in (sorted(path.glob("*")) if path.is_dir() else [path])]
        found = datasets.load_dataset("parquet", data_files=files, split="train")
    assert len(found) == 2
    text = json.dumps([{key: value for key, value in row.items() if "image" not in key} for row in found])
    assert text.count('"new ') == len(queries_of(dataset.samples))
    if kind in ("huggingface", "imagefolder"):
        assert [row["image"].size for row in found] == [(16, 12)] * 2


def test_webdatasets_own_library_reads_what_is_written(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "in").mkdir()
    path = purified(load_dataset(WRITTEN["webdataset"][0](tmp_path / "in")), tmp_path / "out")
    shards = [str(file) for file in sorted(path.glob("*.tar"))]
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert [row["json"]["conversations"][1]["value"] for row in found] == ["new A cat.", "new A dog and a cat."]
    assert [row["png"].size for row in found] == [(16, 12)] * 2
    assert [row["cls"] for row in found] == [7, 7]
