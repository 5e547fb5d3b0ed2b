"""Tables for spreadsheet programs: what is a formula to them is text, and is read back as what it was."""

import csv

import pytest

from disp.data.cells import inert, without_guard, write_csv
from disp.data.decisions import read_decisions

ACTIVE = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1", '=HYPERLINK("http://127.0.0.1","x")']


@pytest.mark.parametrize("text", ACTIVE)
def test_formulas_become_text(text):
    assert inert(text) == "'" + text
    assert without_guard(inert(text)) == text


@pytest.mark.parametrize("text", ["", "row-1", "a=b", "'tis", "1", " =1", "'"])
def test_other_text_stays(text):
    assert inert(text) == text == without_guard(text)


def test_no_cell_of_a_table_is_a_formula_and_numbers_stay_numbers(tmp_path):
    rows = [[text, f"{text}, and more", -1.5] for text in ACTIVE]
    write_csv(tmp_path / "table.csv", ("id", "note", "number"), rows)
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        header, *read = list(csv.reader(file))
    assert header == ["id", "note", "number"]
    for cells, row in zip(read, rows, strict=True):
        assert not any(cell.startswith(tuple("=+-@\t\r\n")) for cell in cells[:2])
        assert [without_guard(cells[0]), without_guard(cells[1]), float(cells[2])] == row


def test_a_table_with_decisions_added_names_the_same_rows(tmp_path):
    ids = {text.replace("\r", "") for text in ACTIVE} | {"plain", "with, comma", 'with "quotes"', "two\nlines"}
    write_csv(tmp_path / "flagged.csv", ("id", "reason", "decision"), [[key, "=x", "yes"] for key in sorted(ids)])
    assert read_decisions(tmp_path / "flagged.csv", ids, tmp_path / "data.json").ids("yes") == ids
