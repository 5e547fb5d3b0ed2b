"""Nothing of a dataset is written over by what is made of it, and its hash is of its own files."""

import json
import os
from dataclasses import replace

import pytest
from data.written import WRITTEN, from_value, png

from disp.attacks.poison import poison
from disp.attacks.targets import Refusal
from disp.attacks.triggers import PRESETS
from disp.auditing.audit import audit
from disp.auditing.config import AuditConfig
from disp.baselines.config import BaselineConfig
from disp.baselines.run import run_baseline
from disp.benchmarks.export import write_tasks
from disp.cli import app
from disp.data.convert import convert
from disp.data.loading import load_dataset
from disp.data.saving import data_path, link_images, save_dataset
from disp.data.stored import check_apart, data_sha256, identity
from disp.defence.config import DefenceConfig
from disp.defence.defend import defend
from disp.errors import DispError
from disp.files import check_unused
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify
from disp.suspicion.config import ScoringConfig
from disp.suspicion.run import write_saliency

# Each is refused before there is a model.
WRITERS = {
    "purify": lambda dataset, out: purify(None, dataset, PurifyConfig(), out),
    "poison": lambda dataset, out: poison(dataset, out, PRESETS["patch"], Refusal(), 0.5),
    "baseline": lambda dataset, out: run_baseline(None, dataset, BaselineConfig("random-drop"), out),
    "audit": lambda dataset, out: audit(None, dataset, AuditConfig(), out),
    "tasks": lambda dataset, out: write_tasks(dataset, out),
    "saliency": lambda dataset, out: write_saliency(None, dataset, ScoringConfig(), out),
}
TABLES = ("parquet-folder", "huggingface")
ROW = {"image": "0.png", "conversations": from_value("<image>?", "A.")}


def contents(folder):
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def stored(name, folder):
    """A dataset of a format in ``folder``/data."""
    if name in TABLES:
        pytest.importorskip("pyarrow")
    (folder / "in").mkdir(parents=True)
    given = WRITTEN[name][0](folder / "in")
    dataset = load_dataset(given)
    own, name = (dataset.path, "") if dataset.path.is_dir() else (dataset.path.parent, dataset.path.name)
    own.rename(folder / "data")
    return load_dataset(folder / "data" / name)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["llava", "gzip", "imagefolder", "webdataset", *TABLES])
@pytest.mark.parametrize("below", ["", "data"])
def test_nothing_is_written_into_the_folder_of_the_data(writer, name, below, tmp_path):
    if writer == "tasks":
        pytest.importorskip("pyarrow")
    if name == "gzip":
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "0.png").write_bytes(png(0))
        dataset = stored("llava", tmp_path / "x")
        save_dataset(dataset.samples, tmp_path / "data" / "data.json.gz", dataset.image_root)
        dataset = replace(dataset, path=tmp_path / "data" / "data.json.gz")
    else:
        dataset = stored(name, tmp_path)
    if not below and dataset.source.files in ("json", "lines"):
        check_apart(dataset, tmp_path)  # what is written there is beside the data
        return
    before = contents(tmp_path)
    with pytest.raises(DispError, match=r"is the folder of the data|which is not of this run|holds the honest"):
        WRITERS[writer](dataset, tmp_path / below)
    assert contents(tmp_path) == before


def test_a_link_to_the_folder_of_the_data_is_that_folder(tmp_path):
    dataset = stored("webdataset", tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").symlink_to(tmp_path / "data", target_is_directory=True)
    with pytest.raises(DispError, match="is the folder of the data"):
        check_apart(dataset, tmp_path / "run")
    (tmp_path / "other").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DispError, match="is the folder of the data"):
        check_apart(dataset, tmp_path / "other")
    check_apart(dataset, tmp_path / "data" / "purified")
    check_apart(dataset, tmp_path / "elsewhere")


def test_a_defence_is_refused_before_its_audit_where_it_would_purify_into_the_data(tmp_path):
    dataset = stored("webdataset", tmp_path / "purified-2")
    with pytest.raises(DispError, match="purified-2 is the folder of the data"):
        defend("builtin", dataset, DefenceConfig(rounds=2), tmp_path)
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize(
    "name", ["data.json.gz", "metadata.jsonl", "metadata.csv", "state.json", "data/a.tar", "data/a.parquet"]
)
def test_a_folder_with_another_dataset_is_in_use(name, tmp_path):
    check_unused(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DispError, match="which is not of this run; choose another folder"):
        check_unused(tmp_path)


@pytest.mark.parametrize("way", ["poison", "llava", "imagefolder"])
def test_pictures_of_the_data_are_not_replaced(way, tmp_path):
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("0.png", "images/1.png", "images/0.png")):
        (tmp_path / name).write_bytes(png(number))
    (tmp_path / "set").mkdir()
    rows = [{**ROW, "image": "0.png"}, {**ROW, "image": "images/0.png"}]
    (tmp_path / "set" / "x.json").write_text(json.dumps(rows))
    dataset = load_dataset(tmp_path / "set" / "x.json", tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DispError, match=r"images holds pictures of .* choose another folder"):
        if way == "poison":
            poison(dataset, tmp_path, PRESETS["patch"], Refusal(), 0.5)
        else:
            convert(dataset, way, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["webdataset", "parquet-folder", "huggingface"])
def test_a_run_below_the_data_does_not_change_its_hash(name, tmp_path):
    dataset = stored(name, tmp_path)
    before, out = identity(dataset), dataset.path / "run"
    out.mkdir()
    save_dataset(dataset.samples, data_path(dataset, out), dataset.image_root, like=dataset)
    link_images(dataset, out)
    (out / "run.json").write_text("{}")
    (dataset.path / "README.md").write_text("About it.")
    assert identity(load_dataset(dataset.path)) == before
    # What is read counts.
    file = next(file for file in dataset.path.iterdir() if file.suffix in (".tar", ".parquet", ".arrow"))
    file.write_bytes(file.read_bytes() + b"\0")
    assert data_sha256(dataset) != before["data_sha256"]


def refused(*command):
    """What a command says that is refused."""
    with pytest.raises(DispError) as error:
        app(list(map(str, command)), print_error=False, exit_on_error=False, result_action="return_value")
    return str(error.value)


COMMANDS = (["generate", "builtin", "--data"], ["evaluate", "builtin"])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("out", ["x.jsonl", "link.jsonl", "images/0.png"])
def test_answers_are_not_written_over_the_data(command, out, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(png(0))
    (tmp_path / "x.jsonl").write_text(json.dumps(ROW))
    os.symlink(tmp_path / "x.jsonl", tmp_path / "link.jsonl")
    before = contents(tmp_path)
    assert "is a file of the data" in refused(*command, tmp_path / "x.jsonl", "--out", tmp_path / out)
    assert contents(tmp_path) == before


def test_answers_are_not_written_among_tar_files_or_over_a_manifest(tmp_path):
    dataset = stored("webdataset", tmp_path)
    for command in COMMANDS:
        said = refused(*command, dataset.path, "--out", dataset.path / "answers.jsonl")
        assert "lies in the folder of the data" in said
    manifest = tmp_path / "planted" / "manifest.json"
    poison(dataset, tmp_path / "planted", PRESETS["patch"], Refusal(), 0.5)
    before = manifest.read_bytes()
    said = refused("evaluate", "builtin", dataset.path, "--attack", manifest, "--out", manifest)
    assert "is read by this command" in said and manifest.read_bytes() == before
