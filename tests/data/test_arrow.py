"""Tables: read to their end, with columns of every kind, and written back as they were."""

import pytest
from data.written import WRITTEN, png

from disp.data.convert import convert
from disp.data.loading import load_dataset
from disp.data.saving import data_path, save_dataset
from disp.errors import DispError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def ends(file):
    """Where the messages of an arrow stream end."""
    with pa.memory_map(str(file)) as memory:
        reader = pa.ipc.open_stream(memory)
        found = [memory.tell()]
        for _ in reader:
            found.append(memory.tell())
    return found


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_an_arrow_file_that_is_cut_off_behind_a_batch_is_refused(batch, tmp_path):
    WRITTEN["llava"][0](tmp_path)
    path = convert(load_dataset(tmp_path / "set.json"), "huggingface", tmp_path / "out").path
    file = path / "data-00000-of-00001.arrow"
    with pa.memory_map(str(file)) as memory:
        table = pa.ipc.open_stream(memory).read_all()
    with pa.OSFile(str(file) + "-", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    file.with_name(file.name + "-").replace(file)
    assert len(load_dataset(path, strict=True).samples) == 2
    file.write_bytes(file.read_bytes()[: ends(file)[batch]])
    with pytest.raises(DispError, match=r"is cut off or damaged: the end mark does not follow the last row"):
        load_dataset(path)


def test_an_arrow_file_of_older_versions_is_read(tmp_path):
    path = WRITTEN["huggingface"][0](tmp_path)
    file = path / "data-00000-of-00001.arrow"
    with pa.memory_map(str(file)) as memory:
        table = pa.ipc.open_stream(memory).read_all()
    old = pa.ipc.IpcWriteOptions(use_legacy_format=True)
    with pa.OSFile(str(file) + "-", "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=old) as writer:
        writer.write_table(table)
    file.with_name(file.name + "-").replace(file)
    assert len(load_dataset(path, strict=True).samples) == 2


NS = 1_600_000_000_123_456_789
COLUMNS = {
    "map": ([("k", "v")], pa.map_(pa.string(), pa.string())),
    "list of maps": ([[("k", "v")]], pa.list_(pa.map_(pa.string(), pa.string()))),
    "timestamp": (NS, pa.timestamp("ns")),
    "timestamp of a place": (NS, pa.timestamp("ns", "Europe/Berlin")),
    "duration": (NS, pa.duration("ns")),
    "time": (123_456_789, pa.time64("ns")),
    "list": ([NS], pa.list_(pa.timestamp("ns"))),
    "large list": ([NS], pa.large_list(pa.timestamp("ns"))),
    "list of a size": ([NS, NS], pa.list_(pa.timestamp("ns"), 2)),
    "struct": ({"a": NS, "b": "x"}, pa.struct([("a", pa.timestamp("ns")), ("b", pa.string())])),
    "map of times": ([("k", NS)], pa.map_(pa.string(), pa.timestamp("ns"))),
}


def table(answers=("A cat.", "Two."), picture=None):
    rows = [
        {"image": {"bytes": png(number), "path": f"{number}.png", **(picture or {})}, "question": "q", "answer": answer}
        for number, answer in enumerate(answers)
    ]
    return pa.Table.from_pylist(rows)


def purified(file, out):
    """The table that comes back with other answers."""
    dataset = load_dataset(file, strict=True)
    out.mkdir()
    path = data_path(dataset, out)
    samples = [sample.with_responses(["new"]) for sample in dataset.samples]
    save_dataset(samples, path, dataset.image_root, like=dataset)
    return pq.ParquetFile(path).read()


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_any_kind_is_read_and_written_back(name, tmp_path):
    value, kind = COLUMNS[name]
    given = table().append_column("more", pa.array([value, None], kind))
    pq.write_table(given, tmp_path / "set.parquet")
    found = purified(tmp_path / "set.parquet", tmp_path / "out")
    assert found.column("more").equals(given.column("more")) and found.column("answer").to_pylist() == ["new"] * 2


def test_other_fields_of_a_picture_are_written_back(tmp_path):
    given = table(picture={"width": 16, "license": "x"})
    pq.write_table(given, tmp_path / "set.parquet")
    found = purified(tmp_path / "set.parquet", tmp_path / "out")
    assert found.column("image").to_pylist() == given.column("image").to_pylist()


def test_two_columns_of_one_name_are_refused(tmp_path):
    given = table()
    given = pa.Table.from_arrays([*given.columns, pa.array(["a", "b"])], names=[*given.column_names, "answer"])
    pq.write_table(given, tmp_path / "set.parquet")
    with pytest.raises(DispError, match=r"set\.parquet has two columns called 'answer'; rename or drop one of them"):
        load_dataset(tmp_path / "set.parquet")
