"""One row that is made to stop everything is set aside alone, and soon; the others are read."""

import gzip
import json

import pytest
from data.test_cases import again, ask, talk, write
from data.written import from_value

from disp.data.loading import load_dataset

GOOD = [{"id": name, "image": "0.png", "conversations": ask()} for name in ("first", "last")]
LONG = 200_000
# Each took minutes or more when the time grew with the square or the cube of the length.
ENDLESS = {
    "a tag and blanks": "<img>" + " " * LONG,
    "a tag and lines": "<img>" + "\n" * LONG,
    "tags": "<img>" * (LONG // 5),
    "tags and blanks": "<img> " * (LONG // 6),
    "a tag and digits": "<image" + "1" * LONG,
    "a word in brackets and blanks": "[image" + " " * LONG,
    "a tag for a video and marks": "<video" + "_pad" * (LONG // 4),
    "a label and a name": "Picture 1: " + "a/" * (LONG // 2) + ".jpg",
    "names with questions": "images/a.png?" * (LONG // 13),
    "words in brackets": "[0.jpg" * (LONG // 6),
    "tags around names": "<file>a.jpg</file" * (LONG // 17),
    "a word in brackets and dashes": "[image" + "-" * LONG,
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ENDLESS)
def test_a_text_without_end_is_looked_through_in_a_moment(name, tmp_path):
    text = ENDLESS[name]
    rows = [
        {"conversations": from_value(text, "Yes.")},
        {"conversations": from_value("Hi", text)},
        {"query": text, "response": text},
        {"conversations": from_value("Hi", "Ho"), "note": text, text: 1},
        {"image": "0.png", "conversations": from_value(text, text)},
        *GOOD,
    ]
    assert {"first", "last"} <= {sample.id for sample in load_dataset(write(tmp_path, rows)).samples}


@pytest.mark.parametrize(
    "tag", ["<img>0.png</img>", "<img> 0.png\n</img>", "<img><img>0.png</img>", "<img>\n0.png </img>"]
)
def test_names_in_tags_are_still_found(tag, tmp_path):
    (sample,) = load_dataset(write(tmp_path, [{"conversations": ask(tag)}])).samples
    assert [file.name for file in sample.images] == ["0.png"]


@pytest.mark.parametrize("tag", ["<img></img>", "<img> </img>"])
def test_a_tag_without_a_name_is_set_aside(tag, tmp_path):
    (problem,) = load_dataset(write(tmp_path, [*GOOD, {"conversations": ask(tag)}])).problems
    assert "<img" in problem.reason


def nested(depth):
    return '{"a":' * depth + "1" + "}" * depth


# Name: what a row has under the key "more", and the reason that it is set aside for.
HARD = {
    "nested 65 deep": (nested(65), "is nested more than 64 deep; take out the field that is"),
    "nested 700 deep": (nested(700), "is nested more than 64 deep"),
    "nested 950 deep": (nested(950), "is nested more than 64 deep"),
    "lists 990 deep": ("[" * 990 + "]" * 990, "is nested more than 64 deep"),
    "nested 100,000 deep": (nested(100_000), "is nested more than 64 deep"),
    "brackets in a text": (f'["}}]\\"{{", {nested(100_000)}]', "is nested more than 64 deep"),
    "a number of 5,000 digits": ("1" * 5000, "not valid JSON (Exceeds the limit"),
    "a number of 5,000 digits below": (f'{{"a": [{"1" * 5000}]}}', "not valid JSON (Exceeds the limit"),
    "a key twice": ('1, "image": null', "has the key 'image' twice, of which only one would be read; keep one of them"),
    "a key twice below": ('{"a": {"b": 1, "c": 2, "c": 3}}', "has the key 'c' twice"),
}  # fmt: skip
LAYOUTS = ["data.json", "data.jsonl", "lines in data.json", "array in data.jsonl", "data.json.gz"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ["first", "between"])
@pytest.mark.parametrize("name", HARD)
def test_a_row_that_cannot_be_held_is_set_aside_alone(name, place, layout, tmp_path):
    more, reason = HARD[name]
    hard = json.dumps({"id": "hard", "image": "0.png", "conversations": ask()})[:-1] + f', "more": {more}}}'
    rows = [json.dumps(row) for row in GOOD]
    rows.insert(place == "between", hard)
    file = write(tmp_path, []) / layout.split()[-1]
    (tmp_path / "data.json").unlink()
    lines = layout in ("data.jsonl", "lines in data.json")
    text = "".join(f"{row}\n" for row in rows) if lines else f"[{', '.join(rows)}]\n"
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    dataset = load_dataset(tmp_path)
    assert [sample.id for sample in dataset.samples] == ["first", "last"]
    (problem,) = dataset.problems
    assert reason in problem.reason and ("row" in problem.place or "line" in problem.place)


def test_rows_that_are_numbers_are_rows_that_are_no_objects(tmp_path):
    write(tmp_path, [])
    (tmp_path / "data.json").write_text(f"[{'1' * 5000}, {json.dumps(GOOD[0])}, 2]")
    dataset = load_dataset(tmp_path)
    assert len(dataset.samples) == 1 and [problem.place[-5:] for problem in dataset.problems] == ["row 1", "row 3"]


def test_a_row_may_be_as_deep_as_rows_are(tmp_path):
    rows = [{"id": "a", "image": "0.png", "conversations": ask(), "more": json.loads(nested(60))}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert again(dataset, tmp_path / "out")[0] == rows


@pytest.mark.parametrize("key", ["id", "question_id"])
def test_an_empty_id_is_none(key, tmp_path):
    rows = [{key: "", "image": "0.png", "conversations": ask()}, {"id": "", "images": ["1.png"], "messages": talk()}]
    assert [sample.id for sample in load_dataset(write(tmp_path, rows), strict=True).samples] == ["0", "1"]
    rows = [{"id": "", "question_id": 7, "image": "0.png", "conversations": ask()}]
    assert [sample.id for sample in load_dataset(write(tmp_path, rows), strict=True).samples] == ["7"]
