"""The table of what was tried."""

from __future__ import annotations

from abuse.campaign import COUNTS, table


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        terminalreporter.write_line("")
        terminalreporter.write_line(table())
