"""An image folder's metadata.csv: every text comes back, whatever characters it has."""

import csv

import pytest
from data.written import png

from disp.data.loading import load_dataset
from disp.data.saving import data_path, save_dataset
from disp.errors import DispError


def folder(path, *rows, names=("file_name", "question", "answer")):
    (path / "0.png").write_bytes(png(0))
    with (path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    return path / "metadata.csv"


def purified(dataset, out, answer):
    out.mkdir()
    path = data_path(dataset, out)
    samples = [sample.with_responses([answer] * len(sample.turns)) for sample in dataset.samples]
    save_dataset(samples, path, dataset.image_root, like=dataset)
    return load_dataset(path, strict=True)


TEXTS = ["one\rtwo", "one\ntwo", "one\r\ntwo", "\r", 'a "word", and more', "x " * 70_000]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("place", ["question", "answer", "new answer", "another column"])
def test_any_text_comes_back(text, place, tmp_path):
    row = {"question": "What?", "answer": "A cat.", "another column": "x", place: text}
    row.pop("new answer", None)
    names = ("file_name", *row)
    dataset = load_dataset(folder(tmp_path, ["0.png", *row.values()], names=names), strict=True)
    again = purified(dataset, tmp_path / "out", text if place == "new answer" else "new")
    (sample,) = again.samples
    assert sample.turns[0].prompt == row["question"] and sample.metadata["another column"] == row["another column"]
    assert sample.turns[0].response == (text if place == "new answer" else "new")


COLUMNS = [
    ("question", "answer"), ("prompt", "response"), ("query", "response"), ("instruction", "output"),
    ("prefix", "suffix"), ("text",), ("caption",),
]  # fmt: skip


@pytest.mark.parametrize("names", COLUMNS, ids=lambda names: names[-1])
def test_an_answer_that_became_empty_is_still_one(names, tmp_path):
    names = ("file_name", "empty", *names, "system")
    row = ["0.png", "", *["Text."] * (len(names) - 3), ""]
    dataset = load_dataset(folder(tmp_path, row, names=names), strict=True)
    again = purified(dataset, tmp_path / "out", "")
    assert [turn.response for turn in again.samples[0].turns] == [""]
    assert again.formats == dataset.formats and "empty" not in again.samples[0].metadata


def test_cells_of_other_rows_columns_are_empty(tmp_path):
    names = ("file_name", "question", "answer", "text", "question_id")
    rows = [["0.png", "What?", "A cat.", "", ""], ["0.png", "", "", "A dog.", ""], ["0.png", "", "", "Who?", "7"]]
    rows.append(["0.png", "", "A cat.", "", ""])
    dataset = load_dataset(folder(tmp_path, *rows, names=names))
    assert dataset.formats == {"question-answer": 1, "captions": 1}
    reasons = [problem.reason for problem in dataset.problems]
    assert "a question without an answer" in reasons[0] and "no conversations: found image, answer" in reasons[1]


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = folder(tmp_path, ["0.png", "q", "a", "b"], names=("file_name", "question", "answer", "answer"))
    with pytest.raises(DispError, match=r"metadata\.csv has two columns called 'answer'; rename or drop one of them"):
        load_dataset(path)
