"""An audit's folder as the report finds it."""

from __future__ import annotations

import shutil

import pytest
from audit_folder import HOSTILE, write_audit


@pytest.fixture(scope="session")
def hostile():
    return HOSTILE


@pytest.fixture(scope="session")
def whole_audit(tmp_path_factory):
    """The folder that everybody reads and nobody changes."""
    return write_audit(tmp_path_factory.mktemp("whole") / "audit")


@pytest.fixture
def audit_folder(whole_audit, tmp_path):
    """A copy of one's own."""
    return shutil.copytree(whole_audit, tmp_path / "audit")


@pytest.fixture(scope="session")
def make_audit_folder():
    """A function from a folder and a port to an audit's folder whose hostile strings name that port."""
    return write_audit
