"""Writing tasks without the library that they are written with."""

import sys
from pathlib import Path

import pytest

from disp.benchmarks.export import write_tasks
from disp.data.dataset import Dataset
from disp.errors import DispError


def test_without_pyarrow_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DispError, match="pip install pyarrow"):
        write_tasks(Dataset((), Path("data.json"), tmp_path), tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()
