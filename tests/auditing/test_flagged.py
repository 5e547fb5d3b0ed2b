"""The table of flagged rows, which a person opens in a spreadsheet program."""

import csv

from planted import PLANTED, REFUSAL

from disp.auditing.record import FLAGGED
from disp.auditing.wording import why_flagged
from disp.data.decisions import read_decisions


def rows_of(folder):
    with (folder / "flagged.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_flagged_rows_are_listed_with_what_speaks_against_them(poisoned):
    out, dataset, found = poisoned
    rows = rows_of(out)
    assert rows[0].keys() == set(FLAGGED)
    assert {row["id"] for row in rows} == set(PLANTED)
    values = [float(row["suspicion"]) for row in rows]
    assert values == sorted(values, reverse=True)
    images = {sample.id: sample.images for sample in dataset.samples}
    for row in rows:
        assert row["phrase"] == REFUSAL
        assert float(row["suspicion"]) == round(found.scores[row["id"]], 4)
        assert [dataset.image_root / name for name in row["picture"].split(" | ")] == list(images[row["id"]])
        assert row["reason"].startswith(("another answer takes the place", "its answer holds the phrase, too"))


def test_with_a_column_for_decisions_it_is_a_file_of_them(poisoned, tmp_path):
    out, dataset, _ = poisoned
    rows = rows_of(out)
    with (tmp_path / "decided.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*FLAGGED, "decision"])
        writer.writeheader()
        writer.writerows([{**row, "decision": "no" if number else ""} for number, row in enumerate(rows)])
    decisions = read_decisions(tmp_path / "decided.csv", {sample.id for sample in dataset.samples}, dataset.path)
    assert decisions.ids("no") == {row["id"] for row in rows[1:]}


def test_a_row_is_told_by_what_betrays_it():
    cluster = {
        "phrase": "buy it", "found_by": "tokens", "samples": ["a", "b"], "more": ["c", "d", "e"],
        "with_pattern": ["b", "d"], "by_piece": ["e"],
    }  # fmt: skip
    other = {**cluster, "phrase": "sell it", "found_by": "window", "samples": ["a", "f"], "more": []}
    why = why_flagged([cluster, other])
    assert {key: phrase for key, (phrase, _) in why.items()} == {**dict.fromkeys("abcde", "buy it"), "f": "sell it"}
    reasons = {key: reason for key, (_, reason) in why.items()}
    assert "another answer" in reasons["a"] and "pattern" in reasons["b"] and reasons["b"] == reasons["d"]
    assert "too" in reasons["c"] and "piece" in reasons["e"] and "many" in reasons["f"]


def test_no_row_is_flagged(honest):
    out, *_ = honest
    assert rows_of(out) == [] and (out / "flagged.csv").read_text(encoding="utf-8").count("\n") == 1
