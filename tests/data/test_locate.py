"""Which file of a folder is meant, and what is said where none can be read."""

import gzip
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from data.written import WRITTEN, from_value, png

from disp.data import download
from disp.data.formats import hub
from disp.data.loading import load_dataset
from disp.errors import DispError

ROW = {"id": "x", "conversations": from_value("Hi", "Ho")}


def test_a_folder_with_one_json_file_is_that_file(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([ROW]))
    assert load_dataset(tmp_path).path == tmp_path / "train.json"
    (tmp_path / "test.json").write_text(json.dumps([ROW]))
    with pytest.raises(DispError, match=r"found 0; give the data file itself \(test\.json, train\.json\)"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, split="test").path == tmp_path / "test.json"
    (tmp_path / "test.json").write_text(json.dumps({"rows": [ROW], "version": 1}))
    with pytest.raises(DispError, match="found dict with 'rows', 'version'; write the list of rows alone"):
        load_dataset(tmp_path, split="test")


def test_an_array_in_a_jsonl_file_and_a_single_line_in_a_json_file(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps([ROW], indent=1))
    (tmp_path / "b.json").write_text(json.dumps(ROW))
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n")
    for name in ("a.jsonl", "b.json", "c.json"):
        assert [sample.id for sample in load_dataset(tmp_path / name).samples] == ["x"]


def test_splits(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        rows = [{**ROW, "id": name}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    assert load_dataset(tmp_path).samples[0].id == "train"
    assert load_dataset(tmp_path, split="test").samples[0].id == "test"
    with pytest.raises(DispError, match="has the splits test, train; choose one with --split"):
        load_dataset(tmp_path, split="val")
    (tmp_path / "dict").mkdir()
    (tmp_path / "in").mkdir()
    WRITTEN["huggingface"][0](tmp_path / "in").rename(tmp_path / "dict" / "train")
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert load_dataset(tmp_path / "dict").path == tmp_path / "dict" / "train"


def test_files_that_are_broken_are_named_in_one_line(tmp_path):
    pytest.importorskip("pyarrow")
    broken = {
        "a.json.gz": b"\x1f\x8b\x08\0broken",
        "b.jsonl.gz": b"no gzip",
        "bomb.json.gz": gzip.compress(b" " * 70_000_000),
        "bomb.jsonl.gz": gzip.compress(b" " * 70_000_000),
        "c.parquet": b"PAR1" + b"x" * 50,
        "d.tar": b"x" * 2000,
        "e/state.json": b"{}",
        "f/dataset_dict.json": b'{"splits": [3]}',
        "g/dataset_info.json": b"{",
        "h/dataset_info.json": b'{"a": {"file_name": "../x.json"}}',
        "i/metadata.csv": b"file_name,text\n\xff,\n",
        "j/metadata.jsonl": b"",
        "k/state.json": b'{"_data_files": [{"filename": "../../etc/passwd"}]}',
        "l/state.json": b'{"_data_files": [{"filename": "a.arrow"}]}',
        "m.txt": b"",
    }
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "a.arrow").write_bytes(b"broken")
    for name, content in broken.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        given = path if path.parent == tmp_path else path.parent
        with pytest.raises(DispError) as error:
            load_dataset(given)
        text = str(error.value)
        assert "\n" not in text and str(given) in text and len(text) < 500, name


def test_a_name_that_is_no_file_may_be_one_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "in").mkdir()
    local = datasets.load_from_disk(str(WRITTEN["huggingface"][0](tmp_path / "in")))
    asked = []

    def fetch(name, config, split):
        asked.append((name, config, split))
        return local if split else datasets.DatasetDict({"train": local, "test": local})

    monkeypatch.setattr(datasets, "load_dataset", fetch)
    dataset = load_dataset("owner/name:part")
    assert [sample.images[0].read_bytes() for sample in dataset.samples] == [png(1), png(2)]
    assert load_dataset("owner/name:part", split="test").path != dataset.path
    assert asked == [("owner/name", "part", None), ("owner/name", "part", "test")]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(DispError, match=r"owner/name: no such file, and no dataset of the hub .*division by zero"):
        load_dataset("owner/name")
    # A mistyped path is no name for the hub.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DispError, match="in/gone: no such data file"):
        load_dataset("in/gone")
    assert not any(map(hub.is_hub_id, ("data.json", "a/b.json", "/a/b", "./b", "a/b/c")))


@pytest.fixture
def server():
    """A server of pictures on this machine, and the paths that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/gone.png":
                self.send_error(404)
                return
            self.send_response(302 if self.path == "/elsewhere.png" else 200)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            self.wfile.write(png(1))

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_pictures_on_the_network_are_fetched_once_and_only_where_asked_for(server, tmp_path, monkeypatch):
    url, asked = server
    rows = [
        {"id": name, "image": f"{url}/{name}.png", "conversations": from_value("<image>?", "A.")}
        for name in ("a", "b", "gone", "elsewhere")
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    with pytest.raises(DispError, match="give --allow-download"):
        load_dataset(tmp_path)
    with pytest.raises(DispError, match="it lies in a private network"):
        load_dataset(tmp_path, allow_download=True)
    assert not asked
    monkeypatch.setattr(download, "check_address", lambda url: None)
    dataset = load_dataset(tmp_path, allow_download=True)
    assert [sample.images[0].read_bytes() for sample in dataset.samples] == [png(1), png(1)]
    assert [problem.place[-5:] for problem in dataset.problems] == ["row 3", "row 4"]
    before = len(asked)
    # What was fetched before is there without the network too.
    assert len(load_dataset(tmp_path).samples) == 2
    load_dataset(tmp_path, allow_download=True)
    assert [path for path in asked[before:] if path in ("/a.png", "/b.png")] == []
    monkeypatch.setattr(download, "MAX_BYTES", 10)
    with pytest.raises(DispError, match="has more than 10 bytes"):
        download.download(f"{url}/c.png", tmp_path / "d")


def test_nothing_reaches_for_the_network_by_itself(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("llava", "qwen-vl", "webdataset", "imagefolder", "llama-factory"):
        (tmp_path / name).mkdir()
        assert load_dataset(WRITTEN[name][0](tmp_path / name)).samples
