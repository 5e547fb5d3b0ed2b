"""Trusted answers: taken for the same pictures and the same questions only."""

import json

import pytest

from disp.data.index import Index
from disp.data.loading import load_dataset
from disp.data.trusted import answers_from, trusted_answers
from disp.errors import DispError


@pytest.fixture
def write(tmp_path, picture):
    """A function that writes a dataset of (id, number of its picture or None, questions and answers)."""

    def run(name, rows, form="llava"):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        written = []
        for key, number, talk in rows:
            turns = [{"from": "human" if at % 2 == 0 else "gpt", "value": text} for at, text in enumerate(talk)]
            row = {"id": key, "conversations": turns}
            if number is not None:
                picture(number).save(folder / "images" / f"{key}.png")
                row["image"] = f"{key}.png"
                turns[0]["value"] = {"llava": "<image>\n{}", "other": "{} <image>"}[form].format(talk[0])
            written.append(row)
        (folder / "data.json").write_text(json.dumps(written))
        return load_dataset(folder)

    return run


GIVEN = [
    ("a", 1, ["What is it?", "buy it"]),
    ("b", 2, ["What is it?", "buy it", "Why?", "buy it"]),
    ("c", 3, ["What is it?", "buy it"]),
    ("d", 4, ["What is it?", "buy it"]),
    ("e", 5, ["What is it?", "buy it"]),
    ("f", None, ["What is it?", "buy it"]),
    ("g", 7, ["What is it?", "buy it"]),
]
TRUSTED = [
    ("f", None, ["What is it?", "words"]),
    ("b", 2, ["What  is it?", "a dog", "Why?", "it barks"]),
    ("a", 1, ["What is it?", "a cat"]),
    ("c", 33, ["What is it?", "a cup"]),  # another picture
    ("d", 4, ["Where is it?", "here"]),  # another question
    ("e", 5, ["What is it?", "a tree", "Why?", "it grows"]),  # more questions
]


@pytest.mark.parametrize("form", ["llava", "other"])
def test_answers_are_taken_by_id_picture_and_question(write, form):
    given, trusted = write("given", GIVEN), write("trusted", TRUSTED, form)
    answers, missing = answers_from(trusted_answers(trusted, given), Index(given.samples), [key for key, *_ in GIVEN])
    assert answers == {"a": ("a cat",), "b": ("a dog", "it barks"), "f": ("words",)}
    assert [problem.place for problem in missing] == ["sample 'c'", "sample 'd'", "sample 'e'", "sample 'g'"]
    reasons = ["has other pictures", "asks something else", "asks something else", "no row has this id"]
    for problem, reason in zip(missing, reasons, strict=True):
        assert reason in problem.reason and str(trusted.path) in problem.reason


def test_only_the_rows_asked_for(write):
    given, trusted = write("given", GIVEN), write("trusted", TRUSTED)
    assert answers_from(trusted_answers(trusted, given), Index(given.samples), ["b"]) == (
        {"b": ("a dog", "it barks")},
        (),
    )


def test_a_set_that_cannot_be_meant_is_refused(write):
    given, strange = write("given", GIVEN), write("strange", [("z", 1, ["What is it?", "a cat"])])
    with pytest.raises(DispError, match=r"has no row with an id of .* \(such as 'a'; there 'z'\)"):
        trusted_answers(strange, given)
    copy = write("copy", GIVEN)
    for same in (given, copy):
        with pytest.raises(DispError, match="is the dataset itself"):
            trusted_answers(same, given)
