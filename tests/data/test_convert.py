"""Other formats of the same data, and what `disp check` says about a set."""

import json
import os
import sys
from datetime import datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest
from data.written import WRITTEN, chat, from_value, png, read_json

from disp import cli
from disp.data.check import check
from disp.data.convert import convert
from disp.data.formats.files import Output
from disp.data.formats.table import FILES, FORMATS
from disp.data.loading import load_dataset
from disp.data.saving import save_dataset
from disp.errors import DispError
from disp.files import sha256

TARGETS = [name for name, each in FORMATS.items() if each.writes]
SAID = [["<image>\nWhat is it?", "A cat.", "How many ears?", "Two."], ["<image><image> And these?", "A dog and a cat."]]


def said(dataset):
    return [[text for turn in sample.turns for text in (turn.prompt, turn.response)] for sample in dataset.samples]


def shown(dataset):
    return [[file.read_bytes() for file in sample.images] for sample in dataset.samples]


@pytest.fixture
def llava(tmp_path):
    (tmp_path / "in").mkdir()
    return load_dataset(WRITTEN["llava"][0](tmp_path / "in"))


@pytest.mark.parametrize("target", TARGETS)
def test_every_format_can_be_made_from_another_and_back(target, llava, tmp_path):
    if target in ("parquet", "huggingface"):
        pytest.importorskip("pyarrow")
    made = convert(llava, target, tmp_path / "out")
    assert (made.rows, made.problems) == (2, ())
    again = load_dataset(tmp_path / "out", strict=True)
    assert again.path == made.path
    if target == "the-cauldron":  # its pictures come first, and it has no word for that
        assert [texts[1] for texts in said(again)] == ["A cat.", "A dog and a cat."]
    else:
        assert said(again) == SAID
    assert shown(again) == [[png(1)], [png(2), png(3)]]
    # What was beside the conversation is still there.
    kept = again.samples[0].metadata
    assert kept.get("source") == {"x": 1} or json.loads(kept["metadata"])["source"] == {"x": 1}
    back = convert(again, "llava", tmp_path / "back")
    rows = read_json(back.path)
    assert [row["conversations"][1]["value"] for row in rows] == ["A cat.", "A dog and a cat."]
    assert shown(load_dataset(tmp_path / "back", strict=True)) == shown(again)
    with pytest.raises(DispError, match="choose another folder"):
        convert(llava, target, tmp_path / "out")


@pytest.mark.parametrize("name", WRITTEN)
def test_every_format_becomes_plain_llava(name, tmp_path):
    if name.startswith(("parquet", "hugging")):
        pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    dataset = load_dataset(WRITTEN[name][0](tmp_path / "in"))
    rows = read_json(convert(dataset, "llava", tmp_path / "out").path)
    for row, sample in zip(rows, dataset.samples, strict=True):
        texts = [message["value"] for message in row["conversations"] if message["from"] != "system"]
        assert sum(text.count("<image>") for text in texts) == len(sample.images)
        assert texts[1::2] == [turn.response for turn in sample.turns]
        names = row["image"] if isinstance(row["image"], list) else [row["image"]]
        assert [(tmp_path / "out" / "images" / each).read_bytes() for each in names] == shown(dataset)[
            dataset.samples.index(sample)
        ]


@pytest.mark.parametrize("target", ["parquet", "huggingface", "imagefolder"])
def test_hugging_faces_own_library_reads_a_new_set(target, llava, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    path = convert(llava, target, tmp_path / "out").path
    if target == "huggingface":
        found = datasets.load_from_disk(str(path))
    elif target == "parquet":
        found = datasets.load_dataset("parquet", data_files=str(path), split="train")
    else:
        found = datasets.load_dataset("imagefolder", data_dir=str(path.parent), split="train")
    assert [[message["content"] for message in row["messages"]] for row in found] == SAID
    assert [[picture.size for picture in row["images"]] for row in found] == [[(16, 12)], [(16, 12)] * 2]


def test_webdatasets_own_library_reads_a_new_set(llava, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    shards = [str(file) for file in sorted(convert(llava, "webdataset", tmp_path / "out").path.glob("*.tar"))]
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert [[message["content"] for message in row["json"]["messages"]] for row in found] == SAID
    assert [sum(key.endswith("png") for key in row) for row in found] == [1, 2]


def test_llama_factory_finds_its_data_by_its_own_rules(llava, tmp_path):
    convert(llava, "llama-factory", tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out" / "dataset_info.json").read_text()).values()
    rows = json.loads((tmp_path / "out" / entry["file_name"]).read_text())
    columns, tags = entry["columns"], entry["tags"]
    for row, texts in zip(rows, SAID, strict=True):
        messages = row[columns["messages"]]
        assert [message[tags["content_tag"]] for message in messages] == texts
        assert [message[tags["role_tag"]] for message in messages[:2]] == [tags["user_tag"], tags["assistant_tag"]]
        # Pictures are looked for in the folder of dataset_info.json; there is one placeholder for each.
        assert all((tmp_path / "out" / name).is_file() for name in row[columns["images"]])
        assert sum(text.count("<image>") for text in texts) == len(row[columns["images"]])


@pytest.mark.parametrize("target", ["webdataset", "huggingface", "llama-factory"])
def test_a_conversion_that_was_killed_is_begun_again(target, llava, tmp_path, monkeypatch):
    if target == "huggingface":
        pytest.importorskip("pyarrow")
    whole = convert(llava, target, tmp_path / "whole").path

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(llava, target, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("disp.data.convert.os", SimpleNamespace(replace=killed, path=os.path))
        with pytest.raises(KeyboardInterrupt):
            convert(llava, target, tmp_path / "out")
        (tmp_path / "out" / "data.json").unlink(missing_ok=True)
    again = convert(llava, target, tmp_path / "out").path
    left = sorted(file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*"))
    assert left == sorted(file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*"))
    assert sha256(again) == sha256(whole)


def test_what_a_format_cannot_hold_is_said(tmp_path):
    (tmp_path / "1.png").write_bytes(png(1))
    rows = [
        {"id": "a", "conversations": from_value("Hi", "Ho")},
        {"id": "b", "image": "1.png", "conversations": from_value("What?", "A cat.")},
        {"id": "c", "image": "1.png", "messages": [{"role": "system", "content": "Be."}, *chat("<image>?", "A.")]},
        {"id": "d", "image": "1.png", "conversations": from_value("See <image> here", "A cat.")},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    dataset = load_dataset(tmp_path)
    made = convert(dataset, "imagefolder", tmp_path / "folder")
    assert made.rows == 3 and "'a'" in made.problems[0].place and "no picture" in made.problems[0].reason
    made = convert(dataset, "the-cauldron", tmp_path / "cauldron")
    assert made.rows == 2 and [problem.place[-2] for problem in made.problems] == ["c", "d"]
    # A picture that was in no text is now at its beginning.
    assert said(load_dataset(convert(dataset, "llava", tmp_path / "llava").path))[1][0] == "<image>\nWhat?"
    with pytest.raises(DispError, match="'questions' is only read; choose one of llava, sharegpt"):
        convert(dataset, "questions", tmp_path / "x")


def test_the_commands(tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    for name, number in (("a.png", 1), ("same.png", 1), ("b.png", 2)):
        (tmp_path / "images" / name).write_bytes(png(number))
    (tmp_path / "images" / "broken.png").write_bytes(b"x")
    ask = from_value("<image>\nWhat?", "A cat.")
    rows = [
        {"id": "1", "image": "a.png", "conversations": ask},
        {"id": "1", "image": "same.png", "conversations": ask},
        {"id": "2", "image": "b.png", "conversations": ask},
        {"id": "3", "conversations": from_value("Hi", "Ho", "Hm", "Ha")},
        *({"id": name, "image": f"{name}.png", "conversations": ask} for name in ("gone", "lost", "broken")),
        {"id": "v", "video": "v.mp4", "conversations": ask},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["disp", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code, capsys.readouterr()

    code, shown = run("check", tmp_path, "--json")
    found = json.loads(shown.out)
    assert not code and found["formats"] == {"llava": 4}
    assert (found["rows"], found["turns"], found["without_picture"], found["set_aside"]) == (4, 5, 1, 4)
    assert (found["pictures"], found["picture_formats"], found["smallest"]) == (2, {"PNG": 2}, "16×12")
    assert found["same_picture"] == {"pictures": 1, "rows": 2} and found["picture_sizes"] == {"up to 64": 2}
    assert (found["same_id"], found["same_text"], found["same_text_and_picture"]) == (1, 2, 1)
    assert [(reason["rows"], reason["first"]) for reason in found["reasons"]] == [
        (2, "data.json:row 5"),
        (1, "data.json:row 8"),
        (1, "data.json:sample 'broken'"),
    ]
    code, shown = run("check", tmp_path)
    assert not code and "2 × image 'gone.png' does not exist" in shown.out
    assert "4 rows with 5 turns; 1 rows have no picture" in shown.out
    code, shown = run("check", tmp_path, "--strict")
    assert code == 2 and "data.json:row 5" in shown.err
    code, shown = run("convert", tmp_path, "--to", "ms-swift", "--out", tmp_path / "out")
    assert not code and f"4 rows in {tmp_path / 'out' / 'data.jsonl'}" in shown.out and "4 rows set aside" in shown.err
    code, shown = run("convert", tmp_path, "--to", "swift", "--out", tmp_path / "more")
    assert code == 2 and "Did you mean 'ms-swift'?" in shown.err
    (tmp_path / "text.json").write_text(json.dumps([rows[3]]))
    code, shown = run("purify", "builtin", tmp_path / "text.json", "--out", tmp_path / "p")
    assert code == 2 and "none of its 1 row has a picture" in shown.err and "--allow-text-rows" in shown.err
    code, shown = run("train", "builtin", tmp_path / "text.json", "--out", tmp_path / "t")
    assert code == 2 and "has a picture" in shown.err


def test_a_check_of_nothing_but_text(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"conversations": from_value("Hi", "Ho")}]))
    found = check(load_dataset(tmp_path))
    assert (found.pictures, found.smallest, found.same_picture) == (0, None, {"pictures": 0, "rows": 0})
    assert "0 pictures: none" in found.to_text()


def test_a_table_says_what_it_has_no_column_for(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [{"id": str(number), "question": "What?"} for number in range(70)]
    rows[68]["licence"] = "CC0"
    outputs = (Output(row, "", row["id"]) for row in rows)
    with pytest.raises(DispError, match="a row has 'licence', for which the table that is written has no column"):
        FILES["parquet"].save(tmp_path / "data.parquet", outputs, None)
    rows[0]["licence"] = "CC0"
    FILES["parquet"].save(tmp_path / "data.parquet", (Output(row, "", row["id"]) for row in rows), None)


def test_what_a_table_holds_is_kept_as_json_has_it_and_the_rest_is_named(tmp_path, monkeypatch, capsys):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    when = datetime(2026, 1, 2, 3, 4, 5)
    row = {
        "image": {"bytes": png(0), "path": "0.png"},
        "question": "What is it?",
        "answer": "A cat.",
        "when": when,
        "day": when.date(),
        "took": timedelta(seconds=1.5),
        "price": Decimal("1.10"),
        "score": float("nan"),
        "meta": {"when": when, "list": [when.date(), None], "n": 1},
        "best": float("inf"),
        "worst": [float("-inf")],
        "digest": b"\x01" * 16,
    }
    rows = [row, {**row, "best": 1.0, "worst": None, "digest": None}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    dataset = load_dataset(tmp_path / "in.parquet", strict=True)
    kept = {
        "when": "2026-01-02T03:04:05",
        "day": "2026-01-02",
        "took": 1.5,
        "price": "1.10",
        "score": None,
        "meta": {"when": "2026-01-02T03:04:05", "list": ["2026-01-02", None], "n": 1},
    }
    assert dataset.unkept == {"best": 1, "worst": 1, "digest": 1}
    assert [sample.metadata for sample in dataset.samples] == [
        kept,
        {**kept, "best": 1.0, "worst": None, "digest": None},
    ]
    for target in ("llava", "parquet"):
        arguments = ["convert", str(tmp_path / "in.parquet"), "--to", target, "--out", str(tmp_path / target)]
        monkeypatch.setattr(sys, "argv", ["disp", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr().err
        assert not left.value.code
        assert all(f"left out the field '{key}' of 1 rows, which JSON cannot hold" in said for key in dataset.unkept)
        again = load_dataset(tmp_path / target, strict=True)
        assert {key: again.samples[0].metadata[key] for key in kept} == kept
    # A purified set is a table of the same columns, with all that they hold.
    save_dataset(dataset.samples, tmp_path / "out.parquet", dataset.image_root, like=dataset)
    (first, _) = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert first["when"] == when and first["digest"] == b"\x01" * 16 and first["price"] == Decimal("1.10")
