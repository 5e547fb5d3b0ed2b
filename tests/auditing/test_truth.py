"""Measuring against a planted attack, with counted pairs as the truth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import manifest, wall, write_rows

from disp.auditing.truth import Truth, measured_against, truth_about
from disp.errors import DispError


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_rates_are_those_of_counting(rows):
    keys = [str(number) for number in range(len(rows))]
    poisoned = {key for key, row in zip(keys, rows, strict=True) if row[1]}
    picked = [key for key, row in zip(keys, rows, strict=True) if row[2]]
    suspicion = {key: float(row[0]) for key, row in zip(keys, rows, strict=True)}
    found = measured_against(Truth(frozenset(poisoned), 4), suspicion, picked)
    pairs = [(suspicion[one], suspicion[other]) for one in poisoned for other in set(keys) - poisoned]
    wins = sum(one > other for one, other in pairs) + sum(one == other for one, other in pairs) / 2
    right = sum(key in poisoned for key in picked)
    assert found == {
        "auroc": pytest.approx(wins / len(pairs)) if pairs else None,
        "precision": right / len(picked) if picked else None,
        "recall": right / len(poisoned) if poisoned else None,
        "poisoned": len(poisoned),
        "missing": 4,
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rows = [(f"r{number}", [wall("red")], ["There is a red apple."]) for number in range(3)]
    return write_rows(tmp_path_factory.mktemp("rows") / "set", rows)


def test_rows_that_are_not_there_are_said(dataset, tmp_path, capsys):
    file = manifest(tmp_path, ["r1", "gone"])
    assert truth_about(dataset, file) == Truth(frozenset({"r1"}), 1)
    assert "1 of the 2 poisoned rows that it names are not in" in capsys.readouterr().err
    assert truth_about(dataset, file, quiet=True) == Truth(frozenset({"r1"}), 1)
    assert capsys.readouterr().err == ""


def test_a_manifest_of_other_rows_is_refused_and_one_of_no_rows_is_not(dataset, tmp_path):
    assert truth_about(dataset, manifest(tmp_path, [])) == Truth(frozenset())
    with pytest.raises(DispError, match="no poisoned row that it names is in"):
        truth_about(dataset, manifest(tmp_path, ["gone"]))
