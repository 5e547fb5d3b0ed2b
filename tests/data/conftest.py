"""Pictures that rows hold themselves are kept in a folder of the test's own."""

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
