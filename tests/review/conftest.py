"""A run folder with twenty flagged rows, and the review of it."""

from __future__ import annotations

import shutil

import pytest
from audit_folder import write_audit

from disp.review.run import open_run

ROWS = 20


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """The folder that nobody changes."""
    folder = tmp_path_factory.mktemp("whole")
    write_audit(folder / "audit", triggered=ROWS)
    return folder


@pytest.fixture
def folder(whole_run, tmp_path):
    """A copy of one's own: a defence's folder, with the audit of the given model."""
    return shutil.copytree(whole_run, tmp_path / "run")


@pytest.fixture
def run(folder):
    return open_run(folder)
