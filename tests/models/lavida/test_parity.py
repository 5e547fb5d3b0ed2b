"""LaViDa against its recorded outputs."""

from __future__ import annotations

import parity
import pytest
from models.lavida.recorded import compare
from parity_folder import PARITY
from references.lavida import (
    VARIANTS,
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity_with_the_published_code(variant):
    folder = PARITY / f"lavida_{variant}"
    if not folder.is_dir():
        pytest.skip(f"no recorded outputs at {folder}; set DISP_PARITY_DIR")
    assert parity.comparison(folder).compare is compare
    differences = list(compare(folder))
    assert len(differences) >= 40
    assert [each for each in differences if not each.ok] == []
