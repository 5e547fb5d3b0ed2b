"""Files are whole or absent, and a torn line is cut off."""

import errno
import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from disp.errors import DispError
from disp.files import append_jsonl, begin, claim, read_finished_jsonl, sha256, write_atomically, write_json, write_text
from disp.models.saving import readable


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


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_every_file_has_the_permissions_that_the_umask_gives_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "plain.txt").write_text("")
        write_text(tmp_path / "text.txt", "")
        append_jsonl(tmp_path / "rows.jsonl", [{"a": 1}])
        # The library renames a file of its own into the temporary one's place, which one user alone may read.
        write_atomically(tmp_path / "a.safetensors", lambda temporary: save_file({"a": torch.zeros(2)}, temporary))
        save_file({"a": torch.zeros(2)}, tmp_path / "b.safetensors")
        readable(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 5 and set(modes.values()) == {0o666 & ~umask}, modes


def test_a_folder_belongs_to_one_run_and_what_differs_is_named(tmp_path):
    file = tmp_path / "run.json"
    run = {"model": "a", "config": {"scoring": {"steps": 4, "batch_size": 8}, "note": None}}
    claim(file, run, "a run", ignore=("batch_size",))
    run["config"]["scoring"]["batch_size"] = 16
    claim(file, run, "a run", ignore=("batch_size",))
    run["config"]["scoring"]["steps"] = 5
    with pytest.raises(DispError) as error:
        claim(file, {**run, "more": "x" * 100}, "a run", ignore=("batch_size",))
    assert str(error.value) == (
        f"{tmp_path} holds a run that differs in config.scoring.steps (4 there, 5 now), more; "
        "choose another folder or delete it"
    )


def test_rows_that_are_taken_over_are_on_the_disk_before_the_old_file_goes(tmp_path, synced):
    file = tmp_path / "rows.jsonl"
    append_jsonl(file, [{"a": 1}, {"a": 2}])
    file.write_bytes(file.read_bytes().replace(b'"a": 1', b'"a": 7'))
    assert list(read_finished_jsonl(file)) == [{"a": 2}]
    assert synced == [file]
    write_json(tmp_path / "value.json", 1)  # which is no result, and can be written again
    assert synced == [file]


@pytest.mark.parametrize("name", ["config.json", "data.jsonl"])
def test_a_models_or_a_datasets_folder_is_not_taken(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(DispError, match=f"holds {name}, which is not of this run"):
        claim(tmp_path / "run.json", {}, "a run")
    assert not (tmp_path / "run.json").exists()


def test_a_run_file_that_is_none_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DispError, match=r"run\.json does not say what run this is"):
        claim(tmp_path / "run.json", {}, "a run")


def test_a_list_in_place_of_a_run_file_is_named(tmp_path):
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(DispError, match=r"run\.json does not say what run this is"):
        claim(tmp_path / "run.json", {}, "a run")


@pytest.mark.parametrize("damage", ["changed digit", "no checksum", "not UTF-8", "no JSON", "cut in the middle"])
def test_a_damaged_line_is_never_believed_and_taken_out(tmp_path, damage, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [{"key": "a", "value": 1.25}, {"key": "é", "value": 2.5}, {"key": "c", "value": [3.75, None]}]
    append_jsonl(file, rows)
    lines = file.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["value"] for line in lines] == [1.25, 2.5, [3.75, None]]
    lines[1] = {
        "changed digit": lines[1].replace(b"2.5", b"9.5"),
        "no checksum": b'{"key": "b", "value": 2.5}\n',
        "not UTF-8": b"\xff" + lines[1],
        "no JSON": b"\0" * 40 + b"\n",
        "cut in the middle": lines[1][:9] + b"\n",
    }[damage]
    file.write_bytes(b"".join(lines))
    assert list(read_finished_jsonl(file)) == [rows[0], rows[2]]
    assert capsys.readouterr().err == f"{file}: 1 line is damaged and computed again\n"
    append_jsonl(file, rows[1:2])
    assert list(read_finished_jsonl(file)) == [rows[0], rows[2], rows[1]]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:662] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk_is_one_line_with_the_file_and_the_remedy(tmp_path, error):
    def fail(temporary):
        raise error

    with pytest.raises(DispError) as raised:
        write_atomically(tmp_path / "a.json", fail)
    assert str(raised.value) == (
        f"{tmp_path / 'a.json'} cannot be written (No space left on device); "
        "free some space there and start the same command again"
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_with_a_run_of_another_kind_says_what_it_holds(tmp_path):
    claim(tmp_path / "run.json", {"seed": 1}, "a purification")
    claim(tmp_path / "run.json", {"seed": 1}, "a purification")
    with pytest.raises(DispError, match="holds a purification, which is something else than a fine-tuning run; choose"):
        claim(tmp_path / "run.json", {"steps": 4}, "a fine-tuning run")


@pytest.mark.parametrize("name", ["run.json", "audit-run.json"])
def test_a_run_takes_no_folder_of_another_one(tmp_path, name):
    other = next(each for each in ("run.json", "audit-run.json") if each != name)
    claim(tmp_path / name, {"seed": 1}, "a run")
    claim(tmp_path / name, {"seed": 1}, "a run")
    with pytest.raises(DispError, match=f"holds {name} of another run; choose another folder"):
        claim(tmp_path / other, {"seed": 1}, "another")
    with pytest.raises(DispError, match=f"holds {name} of another run; choose another folder"):
        begin(tmp_path, "scenes")
