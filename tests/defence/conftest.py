"""The set that most tests of a defence start from."""

import pytest
from planted import honest_rows, planted_rows, write_rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Honest rows and planted ones."""
    return write_rows(tmp_path_factory.mktemp("given") / "data", [*honest_rows(), *planted_rows()])
