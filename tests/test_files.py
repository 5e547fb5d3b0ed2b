"""Files are whole or absent, and a torn line is cut off."""

import pytest

from disp.files import append_jsonl, read_finished_jsonl, sha256, write_atomically, write_json


def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path):
    file = tmp_path / "rows.jsonl"
    append_jsonl(file, [{"a": 1}, {"a": 2}])
    with file.open("a") as handle:
        handle.write('{"a": 3')
    assert list(read_finished_jsonl(file)) == [{"a": 1}, {"a": 2}]
    append_jsonl(file, [{"a": 4}])
    assert list(read_finished_jsonl(file)) == [{"a": 1}, {"a": 2}, {"a": 4}]


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    file = tmp_path / "value.json"
    write_json(file, {"old": True})
    before = sha256(file)

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_atomically(file, fail)
    assert sha256(file) == before
    assert list(tmp_path.iterdir()) == [file]
