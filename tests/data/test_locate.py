"""Which file of a folder is meant, and what is said where none can be read."""

import gzip
import io
import json
import re
import socket
import tarfile
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from data.written import WRITTEN, from_value, png

from disp.data import download
from disp.data.formats import hub
from disp.data.loading import load_dataset
from disp.data.saving import data_path, save_dataset
from disp.errors import DispError

ROW = {"id": "x", "conversations": from_value("Hi", "Ho")}


def test_a_folder_with_one_json_file_is_that_file(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([ROW]))
    assert load_dataset(tmp_path).path == tmp_path / "train.json"
    (tmp_path / "test.json").write_text(json.dumps([ROW]))
    assert load_dataset(tmp_path).path == tmp_path / "train.json"
    assert load_dataset(tmp_path, split="test").path == tmp_path / "test.json"
    (tmp_path / "train.json").rename(tmp_path / "other.json")
    with pytest.raises(DispError, match=r"found 0; give the data file itself \(other\.json, test\.json\)"):
        load_dataset(tmp_path)
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


def store(folder, name, ids):
    """One file of rows with these ids, of the kind that its name says."""
    rows = [{**ROW, "id": each} for each in ids]
    folder.mkdir(exist_ok=True, parents=True)
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    elif name.endswith(".tar"):
        with tarfile.open(folder / name, "w") as tar:
            for row in rows:
                content = json.dumps(row).encode()
                member = tarfile.TarInfo(f"{row['id']}.json")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


NAMES_OF_SPLITS = {
    # Names of files, the split asked for, and the files that are read; or what is said.
    "json, of another split": (["train.jsonl"], "test", "no split 'test'; it has the splits train;"),
    "json, train": (["train.jsonl", "val.jsonl"], None, ["train.jsonl"]),
    "json, named within": (["llava_train.jsonl", "llava_val.jsonl"], None, ["llava_train.jsonl"]),
    "json, named within one": (["mix.jsonl", "mix_train_b.jsonl"], None, "give the data file itself"),
    "json, the canonical name": (["data.jsonl"], "test", "no split 'test'; it has the splits data;"),
    "parquet, of another split": (
        ["train-00000-of-00001.parquet"],
        "test",
        "no split 'test'; it has the splits train;",
    ),
    "parquet, a longer name": (["test-0.parquet", "testdev-0.parquet", "test_b-0.parquet"], "test", ["test-0.parquet"]),
    "parquet, the longer name": (["test-0.parquet", "test_sft-0.parquet"], "test_sft", ["test_sft-0.parquet"]),
    "parquet, numbers": (["0000.parquet", "0001.parquet"], None, ["0000.parquet", "0001.parquet"]),
    "parquet, numbers with a split": (["0000.parquet", "0001.parquet"], "0000", "no split '0000'; it names no splits"),
    "parquet, numbers and a split": (["0000.parquet", "train-0.parquet"], None, "the splits train and files of none;"),
    "parquet, numbers behind": (
        ["train00001.parquet", "train00002.parquet", "val2017.parquet"],
        None,
        ["train00001.parquet", "train00002.parquet"],
    ),
    "parquet, parts": (
        ["test_part1.parquet", "train_part1.parquet", "train_part2.parquet"],
        None,
        ["train_part1.parquet", "train_part2.parquet"],
    ),
    "parquet, one part": (["train_part1.parquet", "train_part2.parquet"], "train_part2", ["train_part2.parquet"]),
    "parquet, parts alone": (
        ["test_part1.parquet", "test_part2.parquet"],
        None,
        ["test_part1.parquet", "test_part2.parquet"],
    ),
    "parquet, numbers of one digit": (["train1.parquet", "train2.parquet"], None, ["train1.parquet", "train2.parquet"]),
    "parquet, years": (["val2014.parquet", "val2017.parquet"], None, "has the splits val2014, val2017; choose one"),
    "parquet, of no split": (["data1.parquet", "data2.parquet"], None, ["data1.parquet", "data2.parquet"]),
    "parquet, chunks": (["chunk0.parquet", "chunk1.parquet"], None, ["chunk0.parquet", "chunk1.parquet"]),
    "parquet, letters": (["batch_a.parquet", "batch_b.parquet"], None, ["batch_a.parquet", "batch_b.parquet"]),
    "parquet, letters of a split": (["val_a.parquet", "val_b.parquet"], None, "call the files train-0, train-1 and"),
    "tar, parts": (["train-part1.tar", "train_part2.tar", "val.tar"], None, ["train-part1.tar", "train_part2.tar"]),
    "tar, train": (["test-000.tar", "train-000.tar", "train-001.tar"], None, ["train-000.tar", "train-001.tar"]),
    "tar, the one asked for": (["test-000.tar", "train-000.tar"], "test", ["test-000.tar"]),
    "tar, none such": (
        ["test-000.tar", "train-000.tar"],
        "nonsense",
        "no split 'nonsense'; it has the splits test, train;",
    ),
    "tar, named within": (["net-train-0.tar", "net-validation-0.tar"], "validation", ["net-validation-0.tar"]),
    "tar, no train": (["test-000.tar", "val-000.tar"], None, "has the splits test, val; choose one with --split"),
    "tar, of several sources": (
        ["coco-000.tar", "laion_1.tar", "laion_2.tar"],
        None,
        ["coco-000.tar", "laion_1.tar", "laion_2.tar"],
    ),
    "tar, numbers": (["00000.tar", "00001.tar"], None, ["00000.tar", "00001.tar"]),
}


@pytest.mark.parametrize("case", NAMES_OF_SPLITS)
@pytest.mark.parametrize("below", ["", "data"])
def test_the_names_of_files_tell_the_split(case, below, tmp_path):
    names, split, wanted = NAMES_OF_SPLITS[case]
    for name in names:
        store(tmp_path / below, name, [f"{name.replace('.', '+')}{number}" for number in range(2)])
    if isinstance(wanted, str):
        with pytest.raises(DispError, match=re.escape(wanted)):
            load_dataset(tmp_path, split=split)
        return
    read = [f"{name.replace('.', '+')}{number}" for name in wanted for number in range(2)]
    dataset = load_dataset(tmp_path, split=split)
    assert [sample.id for sample in dataset.samples] == read
    # What is written of them is read again as it is.
    (tmp_path / "out").mkdir()
    path = data_path(dataset, tmp_path / "out")
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    assert [sample.id for sample in load_dataset(path).samples] == read


@pytest.mark.parametrize("name", ["train.jsonl", "train-000.tar", "train-0.parquet"])
def test_a_single_file_is_of_its_own_split(name, tmp_path):
    store(tmp_path, name, ["x"])
    assert load_dataset(tmp_path / name, split="train").samples
    with pytest.raises(DispError, match="no split 'test'; it has the splits train;"):
        load_dataset(tmp_path / name, split="test")


def test_folders_of_one_split_are_of_that(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    saved = WRITTEN["huggingface"][0](tmp_path / "in")
    saved.rename(tmp_path / "saved")
    state = json.loads((tmp_path / "saved" / "state.json").read_bytes())
    (tmp_path / "saved" / "state.json").write_text(json.dumps({**state, "_split": "train"}))
    assert load_dataset(tmp_path / "saved", split="train").samples
    with pytest.raises(DispError, match="no split 'test'; it has the splits train;"):
        load_dataset(tmp_path / "saved", split="test")
    (tmp_path / "pictures").mkdir()
    folder = WRITTEN["imagefolder"][0](tmp_path / "pictures")
    assert len(load_dataset(folder, split="train").samples) == 2
    for given in (folder, folder / "train", folder / "train" / "metadata.jsonl"):
        with pytest.raises(DispError, match="no split 'test'"):
            load_dataset(given, split="test")


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
            if self.path in ("/slow-headers.png", "/slow-body.png"):
                slow = b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 10 + b"\r\n" if "headers" in self.path else png(1)
                with suppress(OSError):  # nobody waits for the end
                    if "body" in self.path:
                        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
                    for byte in slow[:60]:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.05)
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
    monkeypatch.setattr(download, "check_public", lambda address: None)
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


def test_a_name_that_leads_elsewhere_when_it_is_connected_to_is_asked_for_nothing(server, tmp_path, monkeypatch):
    url, asked = server
    port = int(url.rpartition(":")[2])
    answers = ["93.184.216.34", "127.0.0.1"]

    def look_up(host, *_, **__):
        assert host == "pictures.example.org"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(DispError, match="it lies in a private network"):
        download.download(f"http://pictures.example.org:{port}/a.png", tmp_path)
    assert not asked and not answers


def test_a_proxy_may_lie_in_the_users_own_network(server, tmp_path, monkeypatch):
    url, asked = server
    look_up = socket.getaddrinfo

    def elsewhere(host, *arguments, **given):
        if host == "pictures.example.org":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]
        return look_up(host, *arguments, **given)

    monkeypatch.setattr(socket, "getaddrinfo", elsewhere)
    monkeypatch.setenv("http_proxy", url)
    monkeypatch.delenv("no_proxy", raising=False)
    file = download.download("http://pictures.example.org/a.png", tmp_path)
    assert file.read_bytes() == png(1) and asked == ["http://pictures.example.org/a.png"]


@pytest.mark.parametrize("slow", ["headers", "body"])
def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(server, tmp_path, monkeypatch, slow):
    monkeypatch.setattr(download, "check_public", lambda address: None)
    monkeypatch.setattr(download, "SECONDS_IN_ALL", 0.3)
    with pytest.raises(DispError, match=r"cannot be fetched \(it takes longer than 0.3 seconds\)"):
        download.download(f"{server[0]}/slow-{slow}.png", tmp_path)
    assert not list(tmp_path.rglob("*.png"))


def test_nothing_reaches_for_the_network_by_itself(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("llava", "qwen-vl", "webdataset", "imagefolder", "llama-factory"):
        (tmp_path / name).mkdir()
        assert load_dataset(WRITTEN[name][0](tmp_path / name)).samples


@pytest.mark.parametrize("name", ["x.ndjson", "x.ndjson.gz"])
def test_lines_may_be_called_ndjson(name, tmp_path):
    text = "".join(json.dumps({**ROW, "id": each}) + "\n" for each in "ab").encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    for given in (tmp_path, tmp_path / name):
        dataset = load_dataset(given, split=None, strict=True)
        assert [sample.id for sample in dataset.samples] == ["a", "b"] and dataset.source.files == "lines"
    (tmp_path / "out").mkdir()
    path = data_path(dataset, tmp_path / "out")
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    assert [sample.id for sample in load_dataset(tmp_path / "out", strict=True).samples] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.csv", "a table of text is read as metadata.csv beside its pictures, with commas and a column file_name"),
        ("a.TSV", "a table of text is read as metadata.csv"),
        ("a.csv.gz", "unpack it first"),
        ("a.jsonl.zst", "unpack it first"),
        ("a.zip", "unpack it first"),
        ("mixture.yaml", "it lists data files; give these one by one, as its json_path entries name them"),
        ("a.arrow", "give the folder that save_to_disk has written"),
        ("A.JSONL", "call it a.jsonl"),
    ],
)
def test_what_to_do_with_a_file_of_another_kind_is_said(name, remedy, tmp_path):
    (tmp_path / name).write_text("x")
    for given in (tmp_path / name, tmp_path):
        with pytest.raises(DispError) as error:
            load_dataset(given)
        assert remedy in str(error.value)
