"""Questions and answers in fields of their own: numbers are answers, and what is neither text nor a number is named."""

import json

import pytest
from data.test_cases import again, write
from data.written import png

from disp.data.convert import convert
from disp.data.loading import load_dataset
from disp.errors import DispError

NAMES = [("question", "answer"), ("prompt", "response"), ("prompt", "completion"), ("query", "response"),
         ("instruction", "output"), ("prefix", "suffix")]  # fmt: skip


def rows_of(question, answer, value, **more):
    return [{"image": "0.png", question: "How many?", answer: value, **more}]


@pytest.mark.parametrize(("question", "answer"), NAMES)
@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (0, "0"), (-2, "-2"), (2.5, "2.5"), (3.0, "3"), (2**60, str(2**60))]
)
def test_a_number_is_an_answer_and_stays_one(question, answer, value, text, tmp_path):
    rows = rows_of(question, answer, value)
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert [turn.response for turn in dataset.samples[0].turns] == [text]
    written, _ = again(dataset, tmp_path / "out")
    assert written == rows and type(written[0][answer]) is type(value)
    made = convert(dataset, "llava", tmp_path / "made").path
    assert json.loads(made.read_text())[0]["conversations"][-1]["value"] == text


def test_a_number_that_is_rewritten_becomes_text(tmp_path):
    from dataclasses import replace

    from disp.data.sample import Turn

    dataset = load_dataset(write(tmp_path / "in", rows_of("question", "answer", 3)))
    (sample,) = dataset.samples
    changed = replace(sample, turns=(Turn(sample.turns[0].prompt, "Four."),))
    assert again(replace(dataset, samples=(changed,)), tmp_path / "out")[0][0]["answer"] == "Four."


@pytest.mark.parametrize("more", [{}, {"question_id": 7}], ids=str)
@pytest.mark.parametrize(("question", "answer"), NAMES[:3])
@pytest.mark.parametrize(
    ("value", "kind"), [(True, "true or false"), (["A"], "a list"), ({"a": "b"}, "an object"), (None, "nothing")]
)
def test_what_is_no_answer_is_named(question, answer, value, kind, more, tmp_path):
    if more and question == "question" and value is None:
        return
    with pytest.raises(DispError, match=f"'{answer}' holds {kind}, and must be text or a number"):
        load_dataset(write(tmp_path, rows_of(question, answer, value, **more)))


def test_a_question_that_is_no_text_is_named(tmp_path):
    with pytest.raises(DispError, match="'question' holds a list, and must be text"):
        load_dataset(write(tmp_path, [{"image": "0.png", "question": ["Hm?"], "answer": "Yes."}]))


def test_a_declared_column_that_is_no_text_is_named(tmp_path):
    entry = {"file_name": "data.json", "columns": {"prompt": "q", "response": "a", "images": "images"}}
    write(tmp_path, [{"images": ["0.png"], "q": "Hm?", "a": ["Yes."]}])
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": entry}))
    with pytest.raises(DispError, match="'a' holds a list, and must be text or a number"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("answer", [None, ["A"]], ids=str)
def test_questions_are_asked_whatever_their_answers_hold(answer, tmp_path):
    rows = [{"question_id": 7, "image": "0.png", "question": "Hm?", "answer": answer}]
    (sample,) = load_dataset(write(tmp_path, rows), questions=True, strict=True).samples
    assert sample.turns[0].prompt.endswith("Hm?") and sample.turns[0].response == ""


@pytest.mark.parametrize("value", [3, 0])
def test_a_number_is_a_second_answer_too(value, tmp_path):
    chat = [{"from": "human", "value": "<image>Hm?"}, {"from": "gpt", "value": "Yes."}]
    rows = [{"image": "0.png", "conversations": chat, "question": "Hm?", "answer": value}]
    with pytest.raises(DispError, match="is written in two forms"):
        load_dataset(write(tmp_path / "chat", rows))
    rows = [{"image": "0.png", "prompt": "Hm?", "response": value, "completion": "Yes."}]
    with pytest.raises(DispError, match="has answers under 'response' and under 'completion'"):
        load_dataset(write(tmp_path / "pair", rows))


def test_a_column_of_numbers_is_refused_before_anything_is_rewritten(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    row = {"image": {"bytes": png(0), "path": None}, "question": "How many?", "answer": 3}
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "data.parquet")
    with pytest.raises(DispError, match=r"'answer' holds a number, in a column .* make it a column of text"):
        load_dataset(tmp_path / "data.parquet")
