"""An image folder's metadata.csv: every text comes back, whatever characters it has."""

import csv
import json

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


@pytest.mark.parametrize("name", ["image_file_name", "photo_file_name", "file_names", "image_file_names"])
@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv"])
def test_the_field_of_the_picture_may_have_a_word_before_it(kind, name, tmp_path):
    if kind.endswith("csv") and name.endswith("s"):
        pytest.skip("a table has no lists")
    pictures = ["0.png", "1.png"] if name.endswith("s") else "0.png"
    rows = [{"id": str(number), name: pictures, "text": "A cat."} for number in range(2)]
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    if kind.endswith("csv"):
        folder(tmp_path, *(row.values() for row in rows), names=tuple(rows[0]))
    else:
        (tmp_path / kind).write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load_dataset(tmp_path, strict=True)
    assert len(dataset.samples[0].images) == (2 if name.endswith("s") else 1)
    again = purified(dataset, tmp_path / "out", "new")
    assert [sample.images[0].read_bytes() for sample in again.samples] == [png(0)] * 2
    assert name in again.path.read_text().partition("\n")[0] and '"image"' not in again.path.read_text()
    # Rows that are left out before it do not change its name.
    path = data_path(dataset, tmp_path / "rest")
    save_dataset(dataset.samples[1:], path, dataset.image_root, like=dataset)
    assert name in path.read_text()


def test_no_further_picture_stays_unseen(tmp_path):
    rows = [
        {"file_name": "0.png", "text": "A."},
        {"file_name": "0.png", "before_file_name": "1.png", "text": "A."},
        {"file_name": "0.png", "file_names": ["1.png"], "text": "A."},
        {"file_name": "0.png", "original_file_name": "IMG_7.jpg", "text": "A."},
        {"image_file_name": "0.png", "text": "A."},
        {"a_file_name": "0.png", "b_file_name": "1.png", "text": "A."},
    ]
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load_dataset(tmp_path)
    assert [sample.metadata for sample in dataset.samples] == [{}, {"original_file_name": "IMG_7.jpg"}]
    assert [problem.reason.partition(";")[0] for problem in dataset.problems] == [
        "names a further picture under 'before_file_name', which is not looked at",
        "names a further picture under 'file_names', which is not looked at",
        "names its picture under 'image_file_name', and earlier rows do under 'file_name'",
        "needs file_name, and image under no other key",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('file_name,text\n0.png,"a\n0.png,b\n0.png,c\n', 2),
        ('file_name,text\n0.png,a\n0.png,"b\n0.png,"c"\n', 3),
        ('file_name,text\n0.png,a\n0.png,"b\nb"\n0.png,"c"d\n', 5),
        ('file_name,"text\n0.png,a\n', 1),
    ],
)
def test_a_quote_that_is_not_closed_does_not_make_an_answer_of_all_that_follows(text, line, tmp_path):
    folder(tmp_path).write_text(text)
    with pytest.raises(DispError, match=rf"is no CSV .*in the row from line {line} on\); close its quotes"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_marks_between_columns_are_named(mark, tmp_path):
    folder(tmp_path).write_text(f"file_name{mark}text\n0.png{mark}A.\n")
    with pytest.raises(DispError) as error:
        load_dataset(tmp_path)
    assert f"has {mark!r} between its columns; save it with commas" in str(error.value)


@pytest.mark.parametrize("given", ["", "train", "train/metadata.parquet"])
def test_metadata_in_parquet_is_named(given, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (tmp_path / "train").mkdir()
    row = {"file_name": "0.png", "text": "A."}
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "train" / "metadata.parquet")
    with pytest.raises(
        DispError, match=r"is read from metadata\.jsonl or metadata\.csv; write its rows as one of them"
    ):
        load_dataset(tmp_path / given)
    # A table that holds its pictures may be called so.
    row = {"image": {"bytes": png(0), "path": None}, "text": "A.", "file_name": "0.png"}
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "train" / "metadata.parquet")
    assert load_dataset(tmp_path / given, strict=True).source.files == "parquet"
