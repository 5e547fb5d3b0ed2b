"""The table of what was tried."""

from __future__ import annotations

import pytest
from abuse.campaign import COUNTS, table


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Pictures that rows hold themselves are kept in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        terminalreporter.write_line("")
        terminalreporter.write_line(table())
