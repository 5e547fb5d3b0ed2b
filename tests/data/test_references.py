"""Pictures that rows hold themselves: kept once, in a folder of their own, and never in memory."""

import base64
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from data.written import WRITTEN, from_value, png
from PIL import Image

from disp import cli
from disp.attacks.poison import poison
from disp.attacks.targets import Refusal
from disp.attacks.triggers import PRESETS
from disp.data.convert import convert
from disp.data.loading import load_dataset
from disp.data.references import Embedded, Finder, NotFound, cache_folder
from disp.data.sample import Sample, Turn
from disp.data.saving import data_path, link_images, save_dataset
from disp.errors import DispError


def values(row):
    if isinstance(row, dict | list | tuple):
        for each in row.values() if isinstance(row, dict) else row:
            yield from values(each)
    else:
        yield row


@pytest.mark.parametrize("name", ["parquet", "huggingface", "webdataset", "data-uris"])
def test_rows_keep_no_bytes_in_memory(name, tmp_path, cache):
    if name in ("parquet", "huggingface"):
        pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    dataset = load_dataset(WRITTEN[name][0](tmp_path / "in"))
    for sample in dataset.samples:
        kept = list(values({"row": sample.origin.row, **sample.metadata}))
        assert any(isinstance(each, Embedded) for each in kept)
        assert not any(isinstance(each, bytes) or (isinstance(each, str) and len(each) > 200) for each in kept)
        assert all(file.is_relative_to(cache) for file in sample.images)
    files = sorted(file for file in cache.rglob("*.png"))
    before = [file.stat().st_mtime_ns for file in files]
    load_dataset(dataset.path)
    assert [file.stat().st_mtime_ns for file in sorted(cache.rglob("*.png"))] == before


def test_a_torn_file_in_the_cache_is_written_anew(tmp_path):
    found = Finder(tmp_path).find(png(1))
    assert found.file.read_bytes() == png(1) and found.file.suffix == ".png"
    found.file.write_bytes(b"torn")
    assert Finder(tmp_path).find({"bytes": png(1), "path": "x.png"}).file.read_bytes() == png(1)


@pytest.mark.skipif(os.name == "nt", reason="a file where a folder is to be")
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DISP_CACHE", str(tmp_path / "file"))
    with pytest.raises(DispError, match=r"a picture cannot be kept here .* DISP_CACHE"):
        Finder(tmp_path).find(png(1))


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.delenv("DISP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "disp"


def test_names_never_leave_the_image_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "out.png").write_bytes(png(1))
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "out.png")
    (tmp_path / "images" / "é.png").symlink_to(tmp_path / "out.png")
    finder = Finder(tmp_path / "images", beside=tmp_path)
    for name in (
        "link.png",
        "../../x.png",
        "e\u0301.png",
        f"{tmp_path.parent}/x.png",
        "file:///etc/passwd",
        "images/link.png",
    ):
        for picture in (name, {"path": name}, {"bytes": None, "path": name}):
            with pytest.raises(NotFound, match="leaves the image folder"):
                finder.find(picture)
    # Beside the folder is the dataset's own, but only where no image folder was given.
    assert finder.find("out.png").file == tmp_path / "out.png"
    with pytest.raises(NotFound, match="does not exist"):
        replace(finder, beside=None).find("out.png")


def test_a_picture_in_memory_or_elsewhere_is_not_written(tmp_path, picture):
    for name in ("x.json", "x.jsonl"):
        for image in (picture(1), tmp_path.parent / "elsewhere.png"):
            with pytest.raises(DispError, match=r"'s': image .* does not lie in the image folder"):
                save_dataset([Sample("s", (image,), (Turn("a", "b"),))], tmp_path / name, tmp_path)
    with pytest.raises(DispError, match=r"is written as \.json or \.jsonl, not '\.txt'"):
        save_dataset([], tmp_path / "x.txt", tmp_path)


def _named_variously(folder):
    """A set whose rows name pictures in every way that is understood; another folder has files of the same names."""
    for number, name in enumerate(("images/0.png", "0.png", "images/1.png", "other/2.png", "images/d\u00e9.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    where = folder.as_posix()
    return [
        ("1.png", 2),
        ("images/0.png", 0),
        (f"{where}/0.png", 1),
        ("./1.png", 2),
        (f"{where}/images/1.png", 2),
        (f"file://{where}/images/1.png", 2),
        ("other/2.png", 3),
        ("images\\1.png", 2),
        ("de\u0301.png", 4),
    ]


@pytest.mark.parametrize("choose", [slice(None), slice(0, 2), slice(4, 6), slice(3, 9, 4)])
@pytest.mark.parametrize("way", ["purified", "poisoned", "llava", "sharegpt", "imagefolder", "webdataset"])
def test_rows_show_the_same_pictures_wherever_they_are_written(way, choose, tmp_path):
    (tmp_path / "in").mkdir()
    named = _named_variously(tmp_path / "in")[choose]
    _check_written_again(tmp_path, way, named, None)


@pytest.mark.parametrize("given", ["photos", "images"])
def test_names_that_begin_with_the_image_folder_are_found_again(given, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / given).mkdir()
    (tmp_path / given / "0.png").write_bytes(png(0))
    _check_written_again(tmp_path, "purified", [("0.png", 0), (f"{given}/0.png", 0)], tmp_path / given)


def _check_written_again(folder, way, named, image_root):
    rows = [
        {"id": str(number), "image": name, "conversations": from_value("<image>?", "A.")}
        for number, (name, _) in enumerate(named)
    ]
    (folder / "in" / "x.json").write_text(json.dumps(rows))
    dataset = load_dataset(folder / "in" / "x.json", image_root, strict=True)
    assert [sample.images[0].read_bytes() for sample in dataset.samples] == [png(number) for _, number in named]
    out = folder / "out"
    if way == "purified":
        out.mkdir()
        path = data_path(dataset, out)
        save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
        link_images(dataset, out)
    elif way == "poisoned":
        path = poison(dataset, out, PRESETS["patch"], Refusal(), 0).path
    else:
        path = convert(dataset, way, out).path
    again = load_dataset(path, strict=True)
    assert [sample.images[0].read_bytes() for sample in again.samples] == [png(number) for _, number in named]


@pytest.mark.parametrize("name", ["parquet", "parquet-folder", "huggingface"])
def test_tables_that_name_files_find_these_again(name, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"id": "x", "image": "0.png", "question": "?", "answer": "A."}
    (tmp_path / "in" / "images").mkdir(parents=True)
    (tmp_path / "in" / "images" / "0.png").write_bytes(png(0))
    table = pa.Table.from_pylist([row])
    if name == "huggingface":
        with pa.OSFile(str(tmp_path / "in" / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        (tmp_path / "in" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    else:
        for part in range(2 if name == "parquet-folder" else 1):
            pq.write_table(table, tmp_path / "in" / f"train-{part}.parquet")
    dataset = load_dataset(tmp_path / "in", strict=True)
    path = data_path(dataset, tmp_path / "out")
    (tmp_path / "out").mkdir()
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    link_images(dataset, tmp_path / "out")
    assert load_dataset(path, strict=True).samples[0].images[0].read_bytes() == png(0)


def set_of(folder, *names):
    """A data file whose rows name these pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": name, "image": name, "conversations": from_value("<image>?", "A.")} for name in names]
    (folder / "train.json").write_text(json.dumps(rows))
    return folder / "train.json"


def shown_by(dataset):
    return [file.read_bytes() for sample in dataset.samples for file in sample.images]


def test_a_link_to_pictures_that_were_moved_is_named_and_made_anew(tmp_path):
    data = set_of(tmp_path / "set", "0.png")
    (tmp_path / "set" / "images").mkdir()
    (tmp_path / "set" / "images" / "0.png").write_bytes(png(0))
    (tmp_path / "out").mkdir()

    def written(folder):
        dataset = load_dataset(tmp_path / folder / data.name, strict=True)
        path = data_path(dataset, tmp_path / "out")
        save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
        link_images(dataset, tmp_path / "out")
        return path

    path = written("set")
    assert shown_by(load_dataset(path, strict=True)) == [png(0)]
    (tmp_path / "set").rename(tmp_path / "moved")
    with pytest.raises(
        DispError, match=r"link \S*out/images leads to \S*set/images, which is not there.*give --images"
    ):
        load_dataset(path, strict=True)
    assert shown_by(load_dataset(written("moved"), strict=True)) == [png(0)]


@pytest.mark.parametrize("of_a_folder", [True, False])
def test_links_that_lead_out_are_followed_where_the_image_folder_is_named(of_a_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "disk" / "coco").mkdir(parents=True)
    (tmp_path / "disk" / "coco" / "0.png").write_bytes(png(0))
    data = set_of(tmp_path / "set", "coco/0.png")
    if of_a_folder:
        (tmp_path / "set" / "coco").symlink_to(tmp_path / "disk" / "coco")
    else:
        (tmp_path / "set" / "coco").mkdir()
        (tmp_path / "set" / "coco" / "0.png").symlink_to(tmp_path / "disk" / "coco" / "0.png")
    with pytest.raises(DispError, match=r"leaves the image folder .* by a link; if .* yours, give --images ") as error:
        load_dataset(data)
    given = Path(str(error.value).rpartition("--images ")[2].rstrip(")"))
    dataset = load_dataset(data, given, strict=True)
    assert shown_by(dataset) == [png(0)] and dataset.linked == 1
    # What is written shows it as well, where it is named in the same way.
    (tmp_path / "out").mkdir()
    path = data_path(dataset, tmp_path / "out")
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    link_images(dataset, tmp_path / "out")
    assert shown_by(load_dataset(path, tmp_path / "out" / "images", strict=True)) == [png(0)]
    made = convert(dataset, "sharegpt", tmp_path / "converted")
    assert shown_by(load_dataset(made.path, strict=True)) == [png(0)] and load_dataset(made.path).linked == 0
    # It is said that this was done.
    monkeypatch.setattr(sys, "argv", ["disp", "plan", "builtin", str(data), "--images", str(given)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code and "1 names of pictures lead out of" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["disp", "check", str(data), "--images", str(given)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "1 names of pictures lead out of the image folder by links" in capsys.readouterr().out


def test_names_leave_no_image_folder_also_where_links_are_followed(tmp_path):
    (tmp_path / "out.png").write_bytes(png(1))
    (tmp_path / "images").mkdir()
    finder = Finder(tmp_path / "images", rows=tmp_path / "data")
    for name in ("../out.png", f"{tmp_path}/out.png", f"file://{tmp_path}/out.png", "a/../../out.png", "..\\out.png"):
        for picture in (name, {"path": name}):
            with pytest.raises(NotFound, match="leaves the image folder"):
                finder.find(picture)


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    cached = tmp_path / "datasets--owner--name"
    data = set_of(cached / "snapshots" / "0f" / "data", "images/0.png", "images/1.png")
    (cached / "blobs").mkdir()
    (cached / "blobs" / "a0").write_bytes(png(0))
    (tmp_path / "secret.png").write_bytes(png(1))
    images = data.parent / "images"
    images.mkdir()
    (images / "0.png").symlink_to("../../../../blobs/a0")
    (images / "1.png").symlink_to("../../../../../secret.png")
    dataset = load_dataset(data)
    assert shown_by(dataset) == [png(0)] and dataset.linked == 0
    assert "leaves the image folder" in dataset.problems[0].reason
    # A cache that is itself made of links is none.
    (cached / "blobs").rename(tmp_path / "elsewhere")
    (cached / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DispError, match="leaves the image folder"):
        load_dataset(data)


def test_names_that_go_up_from_the_data_are_found_in_the_image_folder(tmp_path):
    data = set_of(tmp_path / "set" / "annotations", "../images/0.png", "..\\images\\1.png", "../../secret.png")
    (tmp_path / "set" / "images").mkdir()
    for number, name in enumerate(("set/images/0.png", "set/images/1.png", "secret.png")):
        (tmp_path / name).write_bytes(png(number))
    with pytest.raises(DispError) as error:
        load_dataset(data)
    assert f"leaves the image folder {data.parent}; give --images {tmp_path / 'set'}, in which it" in str(error.value)
    for given in (tmp_path / "set", tmp_path / "set" / "images", data.parent / ".." / "images"):
        dataset = load_dataset(data, given)
        assert shown_by(dataset) == [png(0), png(1)]
        assert "secret.png' leaves the image folder" in dataset.problems[0].reason
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        path = data_path(dataset, out)
        save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
        link_images(dataset, out)
        assert shown_by(load_dataset(path, strict=True)) == [png(0), png(1)]


def test_the_folder_that_names_are_relative_to_is_offered(tmp_path, monkeypatch):
    (tmp_path / "top" / "data" / "images").mkdir(parents=True)
    (tmp_path / "top" / "data" / "images" / "0.png").write_bytes(png(0))
    data = set_of(tmp_path / "top" / "data", "data/images/0.png", "data/images/1.png")
    for given in (None, data.parent / "images"):
        with pytest.raises(DispError) as error:
            load_dataset(data, given)
        assert f"does not exist in {data.parent / 'images'}; give --images {tmp_path / 'top'}, in which it" in str(
            error.value
        )
    dataset = load_dataset(data, tmp_path / "top")
    assert shown_by(dataset) == [png(0)]
    assert "give --images, the folder that names are relative to" in dataset.problems[0].reason
    # The whole disk, or what lies in everybody's folders, is offered to no row.
    monkeypatch.setenv("HOME", str(tmp_path / "top"))
    with pytest.raises(DispError, match="give --images, the folder that names are relative to"):
        load_dataset(data)


def test_pictures_may_lie_beside_the_folder_of_the_rows(tmp_path):
    names = ("0.png", "images/1.png", "pics/2.png")
    for number, place in enumerate(("images/0.png", "images/1.png", "data/pics/2.png")):
        (tmp_path / "set" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / place).write_bytes(png(number))
    for number, name in enumerate(names):
        row = {"id": name, "image": name, "conversations": from_value("<image>?", "A.")}
        part = tmp_path / "set" / "data" / f"train-{number:05}-of-00003.jsonl"
        part.write_text(json.dumps(row) + "\n")
    for given in ("set", "set/data"):
        dataset = load_dataset(tmp_path / given, strict=True)
        assert shown_by(dataset) == [png(0), png(1), png(2)]
        out = tmp_path / given.replace("/", "-") / "out"
        out.mkdir(parents=True)
        path = data_path(dataset, out)
        save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
        link_images(dataset, out)
        assert shown_by(load_dataset(path, strict=True)) == [png(0), png(1), png(2)]


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
@pytest.mark.parametrize("before", ["", "\n", "  "])
def test_base64_is_read_whatever_picture_it_is(kind, before, tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, kind)
    text = before + base64.b64encode(content.getvalue()).decode()
    dataset = load_dataset(set_of(tmp_path, text), strict=True)
    assert shown_by(dataset) == [content.getvalue()]
    path = data_path(dataset, tmp_path / "out")
    (tmp_path / "out").mkdir()
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    assert json.loads(path.read_text())[0]["image"] == text
