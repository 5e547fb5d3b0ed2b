"""Tables: read to their end, with columns of every kind, and written back as they were."""

import pytest
from data.written import WRITTEN

from disp.data.convert import convert
from disp.data.loading import load_dataset
from disp.errors import DispError

pa = pytest.importorskip("pyarrow")


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
