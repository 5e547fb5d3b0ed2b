"""Writing tasks without the library that they are written with."""

import sys
from pathlib import Path

import pytest

from disp.benchmarks.export import write_tasks
from disp.data.dataset import Dataset
from disp.errors import DispError


def test_without_pyarrow_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DispError, match=r"pip install '\.\[hf\]' in a clone"):
        write_tasks(Dataset((), Path("data.json"), tmp_path), tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()


def test_tasks_of_another_set_are_not_left_beside_new_ones(tmp_path):
    pytest.importorskip("pyarrow")
    data = Dataset((), Path("data.json"), tmp_path)
    write_tasks(data, tmp_path / "tasks")
    write_tasks(data, tmp_path / "tasks")
    (tmp_path / "tasks" / "disp_asr_with_trigger.yaml").write_text("of an attack")
    with pytest.raises(DispError, match=r"holds disp_asr_with_trigger\.yaml of another set; choose"):
        write_tasks(data, tmp_path / "tasks")
