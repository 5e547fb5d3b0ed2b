"""Pictures that rows hold themselves: kept once, in a folder of their own, and never in memory."""

import os
from dataclasses import replace

import pytest
from data.written import WRITTEN, png

from disp.data.loading import load_dataset
from disp.data.references import Embedded, Finder, NotFound, cache_folder
from disp.data.sample import Sample, Turn
from disp.data.saving import save_dataset
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
