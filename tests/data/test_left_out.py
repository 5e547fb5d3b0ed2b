"""Fields that are left out are neither looked at nor written back, in any format, and a run says so."""

import json
import sys

import pytest
from data.test_cases import again, ask, write
from data.test_forms import LLAVA, QUESTION, SHAREGPT
from data.written import png, read_json

from disp import cli
from disp.data.convert import convert
from disp.data.loading import load_dataset
from disp.data.saving import data_path, save_dataset
from disp.data.stored import identity
from disp.errors import DispError

TWICE = [
    ({**LLAVA, "caption": "A cat.", "text": "STOP"}, ("caption", "text")),
    ({**QUESTION, "text": "STOP"}, ("text",)),
    ({**SHAREGPT, "rejected_response": "No."}, ("rejected_response",)),
    ({**LLAVA, "image2": "1.png"}, ("image2",)),
    ({**LLAVA, "images": ["1.png"]}, ("images",)),
    ({**QUESTION, "prompt": "Hm?", "response": "No."}, ("prompt", "response")),
]


@pytest.mark.parametrize(("row", "names"), TWICE, ids=str)
def test_what_is_left_out_is_neither_read_nor_written(row, names, tmp_path):
    rows = [{"image": "0.png", "n": 1, **row}]
    folder = write(tmp_path / "in", rows)
    with pytest.raises(DispError, match="holds no usable row"):
        load_dataset(folder)
    dataset = load_dataset(folder, leave_out=names, strict=True)
    rest = {key: value for key, value in rows[0].items() if key not in names}
    assert again(dataset, tmp_path / "out")[0] == [rest] and dataset.samples[0].metadata == {"n": 1}
    assert json.loads((folder / "data.json").read_text()) == rows
    made = convert(dataset, "llava", tmp_path / "made").path.read_text()
    assert not any(f'"{name}"' in made for name in names)


TOLD = [{"caption": "A cat."}, {"rejected": "No."}, {"image2": "1.png"}]


@pytest.mark.parametrize("row", [{**LLAVA, **more} for more in TOLD], ids=str)
def test_the_message_says_how_to_go_on(row, tmp_path):
    with pytest.raises(DispError, match=f"as --leave-out {list(row)[-1]} does"):
        load_dataset(write(tmp_path, [{"image": "0.png", **row}]))


@pytest.mark.parametrize("format", ["parquet", "huggingface", "webdataset", "imagefolder"])
def test_a_table_loses_the_column(format, tmp_path):
    if format in ("parquet", "huggingface"):
        pytest.importorskip("pyarrow")
    rows = [{"id": "a", "image": "0.png", "conversations": ask(), "source": "x"}]
    made = convert(load_dataset(write(tmp_path / "in", rows)), format, tmp_path / "made").path
    name = "metadata" if format in ("parquet", "huggingface") else "source"
    dataset = load_dataset(made, leave_out=[name])
    out = tmp_path / "out"
    path = data_path(dataset, out)
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    files = [file for file in out.rglob("*") if file.is_file()]
    assert files and not any(name.encode() in file.read_bytes() for file in files)
    again = load_dataset(path)
    assert [sample.turns for sample in again.samples] == [sample.turns for sample in dataset.samples]
    assert dataset.samples[0].metadata == {} == again.samples[0].metadata


@pytest.mark.parametrize("format", ["parquet", "huggingface"])
def test_datasets_reads_a_table_that_lost_a_column(format, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"id": "a", "image": "0.png", "conversations": ask(), "source": "x"}]
    made = convert(load_dataset(write(tmp_path / "in", rows)), format, tmp_path / "made").path
    dataset = load_dataset(made, leave_out=["metadata"])
    path = data_path(dataset, tmp_path / "out")
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    read = (
        datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "c"))["train"]
        if format == "parquet"
        else datasets.load_from_disk(str(path))
    )
    assert set(read.column_names) == {"id", "images", "messages"}


def test_pictures_of_tar_files_cannot_be_left_out(tmp_path):
    rows = [{"id": "a", "image": "0.png", "conversations": ask()}]
    made = convert(load_dataset(write(tmp_path / "in", rows)), "webdataset", tmp_path / "made").path
    with pytest.raises(DispError, match="'image' cannot be left out of tar files"):
        load_dataset(made, leave_out=["image"])


def test_a_run_is_one_with_these_fields_left_out(tmp_path):
    folder = write(tmp_path, [{"image": "0.png", **LLAVA, "n": 1}])
    plain, without = load_dataset(folder), load_dataset(folder, leave_out=["n"])
    assert identity(plain) != identity(without) and "left_out" not in identity(plain)
    assert identity(load_dataset(folder, leave_out=["n", "m"])) == identity(without)


def disp(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["disp", *map(str, words)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code


def test_the_option_takes_names_with_commas_and_refuses_one_that_is_nowhere(tmp_path, monkeypatch, capsys):
    rows = [{"image": "0.png", **LLAVA, "caption": "A cat.", "text": "STOP"}]
    folder = write(tmp_path / "in", rows)
    words = ["convert", folder, "--to", "llava", "--out", tmp_path / "out", "--leave-out"]
    assert disp(monkeypatch, *words, "caption, text") in (0, None)
    assert set(read_json(tmp_path / "out" / "data.json")[0]) == {"id", "image", "conversations"}
    assert (tmp_path / "out" / "images" / "0.png").read_bytes() == png(0)
    capsys.readouterr()
    assert disp(monkeypatch, "check", folder, "--leave-out", "caption,text,captoin") == 2
    assert "no row of" in (error := capsys.readouterr().err) and "has a field 'captoin'; take the name out" in error
