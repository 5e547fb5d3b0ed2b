"""Data in a folder that are not read with the others are named, and so is what a folder without data may be."""

import json
import os
import sys
import tarfile
import zipfile
from dataclasses import replace

import pytest
from data.test_cases import ask, write
from data.test_locate import ROW, store
from data.test_webdataset import pack
from data.written import png

from disp import cli
from disp.data import beside
from disp.data.convert import convert
from disp.data.formats.splits import other_parts
from disp.data.loading import load_dataset
from disp.data.saving import data_path, save_dataset
from disp.errors import DispError

# What a run writes of itself.
RUN = json.dumps({"what": "purified data", "weights": "0f", "config": {}})
# Names of files, what is given, what is read, and what is said to lie beside it.
BESIDE = {
    "a table above": (["sample.parquet", "data/train-00000-of-00001.parquet"], "", ["sample.parquet"]),
    "tar files below": (["00000.tar", "a/00001.tar"], "", ["00000.tar"]),
    "tables below those in data": (["data/train-0.parquet", "data/more/x.parquet"], "", ["data/train-0.parquet"]),
    "metadata below": (["metadata.jsonl", "cats/metadata.jsonl"], "", ["metadata.jsonl"]),
    "another name": (["train.parquet", "train_extra.parquet"], "", ["train.parquet"]),
    "another split": (
        ["train-0.parquet", "train-1.parquet", "val.parquet"],
        "",
        ["train-0.parquet", "train-1.parquet"],
    ),
    "lines": (["data.jsonl", "more.jsonl"], "", ["data.jsonl"]),
    "another part of it": (
        ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "val-00000-of-00002.jsonl", "train.jsonl"],
        "train-00000-of-00002.jsonl",
        ["train-00000-of-00002.jsonl", "val-00000-of-00002.jsonl", "train.jsonl"],
    ),
    "nothing": (["data.jsonl"], "", ["data.jsonl"]),
    "what was not given": (["a.jsonl", "b.jsonl"], "a.jsonl", ["a.jsonl", "b.jsonl"]),
}


@pytest.mark.parametrize("case", BESIDE)
def test_data_beside_what_was_read_is_named(case, tmp_path, capsys, monkeypatch):
    names, given, known = BESIDE[case]
    for name in names:
        if "metadata" in name:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps({"file_name": "0.png", "text": "A."}) + "\n")
            (tmp_path / name).with_name("0.png").write_bytes(png(0))
        else:
            store((tmp_path / name).parent, (tmp_path / name).name, [name])
    # What is no data, or lies where a run has written, is not named.
    (tmp_path / "stats.json").write_text('{"count": 3}')
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(RUN)
    store(tmp_path / "out", "data.jsonl", ["x"])
    wanted = sorted(set(names) - set(known))
    assert list(load_dataset(tmp_path / given).unread) == wanted
    told = f"beside it and not read: {', '.join(wanted)}" if wanted else "not read"
    for command in (["check"], ["plan", "builtin"]):
        monkeypatch.setattr(sys, "argv", ["disp", *command, str(tmp_path / given)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        shown = "".join(capsys.readouterr())
        assert not left.value.code and (told in shown) == bool(wanted), shown


def test_results_of_a_run_are_no_data_beside_its_set(tmp_path):
    write(tmp_path, [{"image": "0.png", "conversations": ask()}])
    (tmp_path / "evidence.jsonl").write_text(json.dumps({"prompt": "Hm?", "response": "Yes."}) + "\n")
    assert load_dataset(tmp_path).unread == ("evidence.jsonl",)
    # Anybody's run.json makes no run.
    for other in ("{}", "[]", "{bad", '{"what": "x"}', '{"config": {}}'):
        (tmp_path / "run.json").write_text(other)
        assert "evidence.jsonl" in load_dataset(tmp_path).unread
    for name in ("run.json", "audit-run.json"):
        (tmp_path / "run.json").unlink(missing_ok=True)
        (tmp_path / name).write_text(RUN)
        assert load_dataset(tmp_path).unread == ()


LINE = json.dumps({"image": "0.png", "conversations": ask()})
# A file beside the data, and what it holds: libraries read it, and it was not looked at.
NAMED = {
    "bzip2": ("train-extra.jsonl.bz2", ""),
    "xz": ("more.json.xz", ""),
    "zstd": ("more.jsonl.zst", ""),
    "zip": ("more.jsonl.zip", ""),
    "a table of commas": ("more.csv", "image,question,answer\n0.png,Hm?,Yes.\n"),
    "a table of tabs": ("more.tsv", ""),
    "a packed table": ("more.csv.gz", ""),
    "a tar file packed with zstd": ("00000.tar.zst", ""),
    "capitals": ("MORE.JSONL", f"{LINE}\n"),
    "a table in capitals": ("MORE.PARQUET", ""),
    "capitals of gzip": ("more.jsonl.GZ", "x"),
    "lines of another name": ("train2/x.ndjson", f"{LINE}\n"),
    "deep down": ("train/a/b/c/d/x.jsonl", f"{LINE}\n"),
    "deep down, a table": ("train/a/b/c/d/x.parquet", ""),
    "behind what is no row": ("x.json", f'[{{"x": 1}}, {{"x": 2}}, {LINE}]'),
    "behind lines that are no rows": ("x.jsonl", '{"x": 1}\n' * 200 + f"{LINE}\n"),
    "below a key": ("x.json", f'{{"version": 1, "data": [{{"x": 1}}, {LINE}]}}'),
    "by numbers": ("x.json", f'{{"0": {LINE}, "1": {LINE}}}'),
    "below two keys": ("x.json", f'{{"a": {{"b": [{LINE}]}}}}'),
    "of an image folder": ("x.jsonl", '{"file_name": "0.png", "text": "A."}\n'),
    "damaged": ("x.json", f"[{LINE}"),
    "in another encoding": ("x.jsonl", f"{LINE}\n".encode("utf-16")),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMED)
def test_whatever_may_hold_rows_is_named(case, tmp_path):
    name, content = NAMED[case]
    write(tmp_path, [{"image": "0.png", "conversations": ask()}])
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert load_dataset(tmp_path).unread == (name,)


def test_what_holds_no_rows_is_not_named(tmp_path):
    write(tmp_path, [{"image": "0.png", "conversations": ask()}])
    for name, content in {
        "stats.json": '{"count": 3, "of": {"train": [1, 2]}}',
        "names.json": '["cat", "dog"]',
        "labels.jsonl": '{"label": 1}\n' * 3,
        "empty.json": "",
        "tokenizer.json": '{"model": {"vocab": {"a": 1}}}',
        "cache-0f.arrow": "",
        "notes.txt": LINE,
        "README.md": "---\nlicense: mit\nconfigs: 3\n---\n",
        "out/run.json": RUN,
        "out/deeper/data.jsonl": f"{LINE}\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as packed:
        packed.writestr("0.png", png(0))
    assert load_dataset(tmp_path).unread == ()
    with zipfile.ZipFile(tmp_path / "images.zip", "a") as packed:
        packed.writestr("a/more.jsonl", LINE)
    assert load_dataset(tmp_path).unread == ("images.zip",)


@pytest.mark.parametrize(
    ("declared", "named"),
    [
        ("more.text", ["more.text"]),
        (["a/*.text"], ["a/b.text"]),
        ([{"split": "train", "path": "more.text"}, {"path": ["a/*", "images/*"]}], ["a/b.text", "more.text"]),
        ({"train": "**/*.text"}, ["a/b.text", "more.text"]),
        ("https://x.org/more.csv", ["https://x.org/more.csv (in README.md)"]),
        ("../more.csv", ["../more.csv (in README.md)"]),
        ("**/" * 9 + "*.text", ["**/" * 9 + "*.text (in README.md)"]),
        ("gone/*.csv", []),
        (["data.json", "images/*.png", "**x"], []),
    ],
)  # fmt: skip
def test_what_a_readme_declares_as_data_is_named(declared, named, tmp_path):
    write(tmp_path, [{"image": "0.png", "conversations": ask()}])
    (tmp_path / "a").mkdir()
    for name in ("more.text", "a/b.text"):
        (tmp_path / name).write_text(LINE)
    head = json.dumps({"license": "mit", "configs": [{"config_name": "default", "data_files": declared}]})
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A set\n")
    assert list(load_dataset(tmp_path).unread) == named


def test_a_readme_cannot_stop_the_reading(tmp_path):
    write(tmp_path, [{"image": "0.png", "conversations": ask()}])
    for head in ("{", "!!python/object/apply:os.system [touch x]", "- " * 5000, "configs: [1, {data_files: {a: 2}}]"):
        (tmp_path / "README.md").write_text(f"---\n{head}\n---\n")
        assert load_dataset(tmp_path).unread == ()


def test_it_is_said_where_not_all_was_looked_through(tmp_path, monkeypatch):
    write(tmp_path / "set", [{"image": "0.png", "conversations": ask()}])
    store(tmp_path / "set" / "z", "x.jsonl", ["x"])
    monkeypatch.setattr(beside, "_MOST_ENTRIES", 6)
    assert load_dataset(tmp_path / "set").unread == ("what else lies below set (more than 6 files)",)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may read every file")
def test_a_file_that_cannot_be_opened_may_be_data(tmp_path):
    store(tmp_path, "data.jsonl", ["x"])
    store(tmp_path, "closed.jsonl", ["y"])
    (tmp_path / "closed.jsonl").chmod(0)
    assert load_dataset(tmp_path).unread == ("closed.jsonl",)


def img2dataset(folder, shards=2):
    """What img2dataset leaves: tar files, and for each of them a table of addresses and a file of numbers."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    folder.mkdir()
    for shard in range(shards):
        members = []
        for number in range(2):
            key = f"{shard:05}{number:04}"
            told = {"caption": f"A {key}.", "url": f"https://x.org/{key}.jpg", "key": key, "status": "success"}
            members += [
                (f"{key}.png", png(number)),
                (f"{key}.json", json.dumps(told).encode()),
                (f"{key}.txt", f"A {key}.".encode()),
            ]
        pack(folder / f"{shard:05}.tar", *members)
        rows = [{"url": "https://x.org/0.jpg", "caption": "A.", "key": "0", "status": "success", "width": 16}]
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05}.parquet")
        (folder / f"{shard:05}_stats.json").write_text('{"count": 2, "successes": 2}')
    return folder


@pytest.mark.parametrize("format", [None, "webdataset", "captions"])
def test_the_folder_of_img2dataset_is_its_tar_files(format, tmp_path):
    dataset = load_dataset(img2dataset(tmp_path / "set"), format=format, strict=True)
    assert dataset.source.files == "webdataset" and len(dataset.samples) == 4
    assert dataset.unread == ("00000.parquet", "00001.parquet")
    path = data_path(dataset, tmp_path / "out")
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    assert sorted(file.name for file in path.iterdir()) == ["00000.tar", "00001.tar"]


def test_the_format_says_which_of_two_is_meant(tmp_path):
    folder = img2dataset(tmp_path / "set", 1)
    assert load_dataset(folder).source.files == "webdataset"
    # Tables of rows are no tables about tar files, nor are those of another name.
    for name in ("00000.parquet", "00007.parquet"):
        store(folder, name, ["x"])
        with pytest.raises(DispError, match="say which are the dataset with --format parquet or --format webdataset"):
            load_dataset(folder)
        (folder / name).rename(folder / "other.parquet")
    assert load_dataset(folder, format="parquet").samples[0].id == "x"
    assert len(load_dataset(folder, format="webdataset").samples) == 2
    store(folder, "data.jsonl", ["y"])
    assert load_dataset(folder).source.files == "lines"
    assert load_dataset(folder, format="parquet").source.files == "parquet"
    assert load_dataset(folder, format="webdataset").unread == ("data.jsonl", "other.parquet")
    with pytest.raises(DispError, match="is no dataset of the format 'imagefolder'"):
        load_dataset(folder, format="imagefolder")


@pytest.mark.parametrize("below", ["00000", ""])
def test_pictures_and_texts_in_files_of_their_own_are_named(below, tmp_path):
    folder = tmp_path / "set" / below
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text("A cat.")
    with pytest.raises(DispError, match=r"such as 0.png; pack them .*: tar --sort=name -cf (\w+)\.tar \1$"):
        load_dataset(tmp_path / "set")
    # What is said does work.
    names = sorted(folder.iterdir())
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in names:
            tar.add(name, f"{folder.name}/{name.name}")
    dataset = load_dataset(tmp_path / "set.tar", strict=True)
    assert [sample.images[0].read_bytes() for sample in dataset.samples] == [png(0), png(1)]


def test_folders_with_tables_are_named(tmp_path):
    for name in ("ai2d/train-0.parquet", "chartqa/train-0.parquet"):
        store(tmp_path / name.partition("/")[0], name.partition("/")[2], [name])
    with pytest.raises(DispError, match="holds no data itself; give one of the folders in it that do: ai2d, chartqa"):
        load_dataset(tmp_path)
    with pytest.raises(DispError, match="no split 'test'; it has the splits ai2d, chartqa"):
        load_dataset(tmp_path, split="test")


def test_a_folder_may_be_a_split(tmp_path):
    for name in ("train", "validation"):
        store(tmp_path / name, "0000.parquet", [f"{name}0"])
        store(tmp_path / name, "0001.parquet", [f"{name}1"])
    dataset = load_dataset(tmp_path)
    assert [sample.id for sample in dataset.samples] == ["train0", "train1"]
    assert dataset.unread == ("validation/0000.parquet", "validation/0001.parquet")
    dataset = load_dataset(tmp_path, split="validation")
    assert [sample.id for sample in dataset.samples] == ["validation0", "validation1"]
    path = data_path(dataset, tmp_path / "out")
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    assert [sample.id for sample in load_dataset(tmp_path / "out").samples] == ["validation0", "validation1"]


def test_parts_of_json_are_one_set_where_all_are_there(tmp_path):
    names = [f"train-0000{number}-of-00003.jsonl" for number in range(3)]
    for name in names:
        store(tmp_path, name, [name, f"{name}+"])
    store(tmp_path, "val-00000-of-00001.jsonl", ["val"])
    read = [each for name in names for each in (name, f"{name}+")]
    dataset = load_dataset(tmp_path, strict=True)
    assert [sample.id for sample in dataset.samples] == read
    assert dataset.unread == ("val-00000-of-00001.jsonl",)
    assert [sample.id for sample in load_dataset(tmp_path, split="val").samples] == ["val"]
    # A part of which no row is left is written too: without it the set would not be whole.
    path = data_path(dataset, tmp_path / "out")
    save_dataset(dataset.samples[:3], path, dataset.image_root, like=dataset)
    assert [sample.id for sample in load_dataset(tmp_path / "out").samples] == read[:3]
    assert sorted(file.name for file in path.iterdir()) == names
    (tmp_path / names[1]).unlink()
    with pytest.raises(DispError, match=r"or join its parts \(cat PARTS > data\.jsonl\)"):
        load_dataset(tmp_path)
    rest = [tmp_path / names[0], tmp_path / names[2]]
    (tmp_path / "data.jsonl").write_text("".join(part.read_text() for part in rest))
    assert [sample.id for sample in load_dataset(tmp_path).samples] == [*read[:2], *read[4:]]


def test_parts_are_in_the_order_of_their_numbers(tmp_path):
    for number in range(12):
        store(tmp_path, f"train-{number}-of-12.jsonl", [str(number)])
    assert [sample.id for sample in load_dataset(tmp_path, strict=True).samples] == list(map(str, range(12)))


@pytest.mark.parametrize(
    "names",
    [
        ["a-0-of-2.jsonl", "b-1-of-2.jsonl"],
        ["a-0-of-3.jsonl", "a-1-of-3.jsonl"],
        ["a-1-of-2.jsonl", "a-2-of-2.jsonl"],
        ["a-0-of-2.jsonl", "a-00-of-2.jsonl"],
        ["a-0-of-9999999999.jsonl", "a-1-of-9999999999.jsonl"],
        ["a-0-of-2.jsonl", "a-1-of-2.json"],
        ["a-0-of-2.jsonl", "a-1-of-2.jsonl", "a.jsonl"],
    ],
    ids=" ".join,
)
def test_what_is_no_whole_set_of_parts_is_not_read_as_one(names, tmp_path):
    for name in names:
        store(tmp_path, name, [name])
    with pytest.raises(DispError, match="give the data file itself"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("folder", [False, True])
def test_columns_of_a_table_may_be_declared(folder, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = [{"chat": ask(), "pics": [{"bytes": png(number), "path": None}], "note": "x"} for number in range(2)]
    entry = {"file_name": "a" if folder else "a.parquet", "formatting": "sharegpt"}
    entry["columns"] = {"messages": "chat", "images": "pics"}
    where = tmp_path / "in" / "a" if folder else tmp_path / "in"
    where.mkdir(parents=True)
    for number, row in enumerate(rows) if folder else []:
        pyarrow.parquet.write_table(pa.Table.from_pylist([row]), where / f"{number}.parquet")
    if not folder:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), where / "a.parquet")
    (tmp_path / "in" / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    dataset = load_dataset(tmp_path / "in", strict=True)
    assert dataset.formats == {"llama-factory": 2} and dataset.unread == ()
    assert [sample.images[0].read_bytes() for sample in dataset.samples] == [png(0), png(1)]
    assert load_dataset(tmp_path / "in", format="llama-factory").formats == dataset.formats
    # A purified set is declared too, and its rows have their columns.
    (tmp_path / "out").mkdir()
    path = data_path(dataset, tmp_path / "out")
    save_dataset([sample.with_responses(["new"]) for sample in dataset.samples], path, dataset.image_root, like=dataset)
    again = load_dataset(tmp_path / "out", strict=True)
    assert again.formats == {"llama-factory": 2}
    assert [sample.turns[0].response for sample in again.samples] == ["new", "new"]
    file = next(path.iterdir()) if path.is_dir() else path
    assert set(pyarrow.parquet.read_schema(file).names) == {"chat", "pics", "note"}
    assert convert(replace(dataset), "llava", tmp_path / "llava").rows == 2


def test_a_declared_file_elsewhere_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "x.json").write_text(json.dumps([ROW]))
    (tmp_path / "in" / "dataset_info.json").write_text('{"a": {"file_name": "../x.json"}}')
    with pytest.raises(DispError, match=r"not in its folder; put it there, or put dataset_info\.json where the data"):
        load_dataset(tmp_path / "in")


def test_json_about_tar_files_is_no_second_set(tmp_path):
    pack(tmp_path / "0.tar", ("0.png", png(0)), ("0.txt", b"A."))
    about = {"version": 1, "sample": {"question": "Hm?", "answer": "Yes.", "image": "0.png"}}
    (tmp_path / "about.json").write_text(json.dumps(about))
    assert load_dataset(tmp_path, strict=True).unread == ("about.json",)
    (tmp_path / "about.json").write_text(json.dumps([{"x": 1}, about["sample"]]))
    with pytest.raises(DispError, match=r"holds tar files and rows in about\.json; give the one that is the dataset"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["train-00000-of-00002.jsonl"], ["train-00001-of-00002.jsonl"]),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], []),
        (["a-0001-of-3.tar", "b-0-of-1.tar", "other.tar"], ["a-0000-of-3.tar", "a-0002-of-3.tar"]),
        (["train.jsonl", "0000.parquet", "data1.json"], []),
    ],
)
def test_names_of_parts_tell_which_others_there_are(names, missing):
    assert list(other_parts(names)) == missing
    # A name that speaks of more parts than there can be is no reason to stop.
    assert len(other_parts(["x-0-of-" + "9" * 200 + ".tar"], most=7)) == 7


def test_a_part_that_is_not_there_is_known_to_be_missing(tmp_path):
    store(tmp_path, "train-00001-of-00003.parquet", ["row"])
    wanted = ("train-00000-of-00003.parquet", "train-00002-of-00003.parquet")
    assert load_dataset(tmp_path).unread_parts == load_dataset(tmp_path / "train-00001-of-00003.parquet").unread_parts
    assert load_dataset(tmp_path).unread_parts == wanted
