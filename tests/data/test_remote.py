"""Datasets in stores that fsspec knows: copied once, read as if they lay here."""

import json
import subprocess
import sys
from io import BytesIO

import fsspec
import pytest

from disp.cli import main
from disp.data.loading import load_dataset
from disp.data.remote import url_of, written_to
from disp.data.sample import open_image
from disp.errors import DispError


@pytest.fixture
def store(monkeypatch, tmp_path):
    monkeypatch.setenv("DISP_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/bucket", recursive=True)


def rows(*answers):
    return [
        {
            "id": str(number),
            "image": f"{number}.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}],
        }
        for number, answer in enumerate(answers)
    ]


@pytest.fixture
def put(store, picture):
    """A function that puts a set into the store."""

    def put(*answers):
        store.pipe_file("/bucket/set/data.json", json.dumps(rows(*answers)).encode())
        for number in range(len(answers)):
            picture(number).save(content := BytesIO(), format="PNG")
            store.pipe_file(f"/bucket/set/images/{number}.png", content.getvalue())

    return put


def answers(dataset):
    return [turn.response for sample in dataset.samples for turn in sample.turns]


def test_a_folder_is_copied_with_its_pictures_once_and_again_when_it_has_changed(put, store, picture, monkeypatch):
    put("a cat", "a dog")
    found = load_dataset("memory://bucket/set")
    assert answers(found) == ["a cat", "a dog"]
    assert open_image(found.samples[1].images[0]).tobytes() == picture(1).tobytes()
    assert found.path.name == "data.json" and found.path.parent.name == "set"
    copied = []
    plain = type(store).get_file
    monkeypatch.setattr(type(store), "get_file", lambda self, *rest, **more: copied.append(rest) or plain(self, *rest))
    again = load_dataset("memory://bucket/set")
    assert (again.path, copied) == (found.path, [])
    put("a cat", "a boat", "a hat")
    assert answers(load_dataset("memory://bucket/set")) == ["a cat", "a boat", "a hat"]
    assert answers(found) == ["a cat", "a dog"] and found.path.exists()


def test_a_file_is_copied_alone(store, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = arrow.table({"question": ["What?"], "answer": ["a cat"]})
    pyarrow.parquet.write_table(table, content := BytesIO())
    store.pipe_file("/bucket/rows.parquet", content.getvalue())
    store.pipe_file("/bucket/other.parquet", b"not this one")
    found = load_dataset("memory://bucket/rows.parquet")
    assert answers(found) == ["a cat"]
    assert [path.name for path in (tmp_path / "cache" / "remote").rglob("*.parquet")] == ["rows.parquet"]


def test_a_file_of_this_machine_is_read_where_it_lies(tmp_path):
    file = tmp_path / "my set" / "data.json"
    file.parent.mkdir()
    file.write_text(json.dumps([{"question": "What?", "answer": "a cat"}]))
    found = load_dataset(file.as_uri())
    assert found.path == file
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/none.json", r"^memory://bucket/none\.json: no such data file$"),
        (
            "nosuch://bucket/set",
            r"^nosuch://bucket/set cannot be read \(ValueError: .*nosuch.*copy it",
        ),
    ],
)
def test_what_cannot_be_read_is_named(store, url, message):
    store.pipe_file("/bucket/x", b"")
    with pytest.raises(DispError, match=message):
        load_dataset(url)


def test_a_store_whose_package_is_missing_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DispError, match=r"^s3://bucket/set cannot be read: .*[Ii]nstall s3fs"):
        load_dataset("s3://bucket/set")


def test_paths_are_no_urls(tmp_path):
    for path in (tmp_path, tmp_path / "a: b", tmp_path.relative_to("/")):
        assert url_of(path) is None
    assert url_of(type(tmp_path)("s3://bucket//set")) == "s3://bucket/set"


def test_results_are_not_written_there():
    command = [sys.executable, "-m", "disp", "purify", "builtin", "data", "--out", "s3://bucket/out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "s3://bucket/out is no folder of this machine" in done.stderr


@pytest.fixture
def disp(monkeypatch):
    """A function that runs a command in this process, where the store is, and returns its exit code."""

    def disp(*arguments):
        monkeypatch.setattr(sys, "argv", ["disp", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code or 0

    return disp


@pytest.mark.parametrize(("format", "last"), [("llava", "data.json"), ("parquet", "data.parquet")])
def test_a_dataset_is_converted_into_a_store_and_read_from_there(
    disp, put, store, picture, monkeypatch, capsys, format, last
):
    put("a cat", "a dog")
    written = []
    plain = type(store).put_file
    monkeypatch.setattr(type(store), "put_file", lambda self, *rest: written.append(rest[1]) or plain(self, *rest))
    assert disp("convert", "memory://bucket/set", "--to", format, "--out", "memory://bucket/new") == 0
    assert f"2 rows in memory://bucket/new/{last}" in capsys.readouterr().out
    assert written[-1] == f"/bucket/new/{last}"
    found = load_dataset("memory://bucket/new")
    assert answers(found) == ["a cat", "a dog"]
    assert open_image(found.samples[1].images[0]).tobytes() == picture(1).tobytes()


def test_what_lies_in_a_store_is_not_written_over(disp, put, store, capsys):
    put("a cat")
    assert disp("convert", "memory://bucket/set", "--to", "parquet", "--out", "memory://bucket/set") == 2
    assert "memory://bucket/set exists; choose another place" in capsys.readouterr().err
    assert sorted(store.find("/bucket")) == ["/bucket/set/data.json", "/bucket/set/images/0.png"]


def test_a_store_that_takes_no_files_is_named(disp, put, store, monkeypatch, capsys):
    def refuses(self, *rest):
        raise PermissionError("read only")

    put("a cat")
    monkeypatch.setattr(type(store), "put_file", refuses)
    assert disp("convert", "memory://bucket/set", "--to", "parquet", "--out", "memory://bucket/new") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "memory://bucket/new cannot be written (PermissionError: read only)" in line


def test_nothing_is_copied_of_what_was_not_finished(store, tmp_path):
    store.pipe_file("/bucket/x", b"")
    with pytest.raises(KeyError), written_to(type(tmp_path)("memory://bucket/new")) as folder:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise KeyError
    assert not store.exists("/bucket/new") and not folder.exists()


def test_a_folder_is_written_where_it_is(tmp_path):
    with written_to(tmp_path / "new") as folder:
        assert folder == tmp_path / "new"
