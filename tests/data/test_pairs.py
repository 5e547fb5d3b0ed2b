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
    ("value", "text"),
    [(3, "3"), (0, "0"), (-2, "-2"), (2.5, "2.5"), (3.0, "3"), (2**60, str(2**60)), (10**400, str(10**400))],
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


TEXT = {"image": "0.png", "text": "What is it?"}
# Fields whose text, or number, is an answer to what would be read as a caption or as a question without one.
SWALLOWED = [
    {**TEXT, "answer": "planted"}, {**TEXT, "answers": ["planted"]}, {**TEXT, "Response": "planted"},
    {**TEXT, "question": "Hm?", "answers": ["planted"]}, {**TEXT, "answer": 3}, {**TEXT, "label": "planted"},
    {**TEXT, "target": "planted"}, {**TEXT, "output": "planted"}, {**TEXT, "completion": "planted"},
    {**TEXT, "text_output": "planted"}, {"image": "0.png", "caption": "What is it?", "answer": "planted"},
    {**TEXT, "question_id": 7, "answer": "planted"}, {**TEXT, "question_id": 7, "label": "yes"},
]  # fmt: skip


@pytest.mark.parametrize("row", SWALLOWED, ids=str)
def test_a_question_is_not_read_as_a_caption_beside_its_answer(row, tmp_path):
    good = {"id": "good", "image": "1.png", "question": "Hm?", "answer": "Yes."}
    (problem,) = load_dataset(write(tmp_path, [good, row])).problems
    key = list(row)[-1]
    assert f"but {key!r} looks like the answer to it" in problem.reason and "without an answer;" not in problem.reason
    # Both remedies work: to call them what they are, and to leave the answer out of a caption.
    text = "caption" if "caption" in row else "text"
    if isinstance(row[key], str | int) and "question_id" not in row:
        named = {"image": "0.png", "question": row[text], "answer": row[key]}
        assert load_dataset(write(tmp_path / "named", [named]), strict=True).samples[0].turns[0].response == str(
            row[key]
        )
    if "question_id" not in row:
        (sample,) = load_dataset(write(tmp_path / "out", [row]), leave_out=[key], strict=True).samples
        assert sample.turns[0].response == "What is it?"


@pytest.mark.parametrize(
    "more",
    [{"label": 3}, {"label": "3"}, {"labels": ["cat"]}, {"answer": ""}, {"answer": None}, {"similarity": 0.3}],
    ids=str,
)
def test_a_class_beside_a_caption_is_no_answer(more, tmp_path):
    rows = [{**TEXT, **more}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert dataset.formats == {"captions": 1} and again(dataset, tmp_path / "out")[0] == rows
    rows = [{"image": "0.png", "caption": "A cat.", "label": "cat"}]
    assert load_dataset(write(tmp_path / "class", rows), strict=True).formats == {"captions": 1}


def test_a_table_of_texts_and_labels(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "metadata.csv").write_text("file_name,text,label\n0.png,What is it?,planted\n")
    with pytest.raises(DispError, match="'text' would be read as the answer, but 'label' looks like the answer to it"):
        load_dataset(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text,label\n0.png,A cat.,3\n")
    assert load_dataset(tmp_path, strict=True).samples[0].turns[0].response == "A cat."


def test_question_files_are_asked_whatever_is_beside_them(tmp_path):
    rows = [{**TEXT, "question_id": 7, "label": "yes"}]
    (sample,) = load_dataset(write(tmp_path, rows), questions=True, strict=True).samples
    assert sample.turns[0].prompt.endswith("What is it?")


MISNAMED = {
    "a list of captions": ({"caption": ["A cat."]}, "'caption' holds a list, and must be text"),
    "a text that is an object": ({"text": {"en": "A cat."}}, "'text' holds an object, and must be text"),
    "answers": (
        {"question": "Hm?", "answers": ["Yes."]},
        "under 'answers', which holds a list; the answer must be under 'an",
    ),
    "another name": (
        {"query": "Hm?", "answer": "Yes."},
        "under 'answer', which holds text; the answer must be under 'resp",
    ),
}


@pytest.mark.parametrize("name", MISNAMED)
def test_what_is_nearly_a_form_is_told_what_to_be(name, tmp_path):
    row, said = MISNAMED[name]
    with pytest.raises(DispError) as error:
        load_dataset(write(tmp_path, [{"image": "0.png", **row}]))
    assert said in str(error.value) and len(str(error.value)) < 400


def test_a_part_of_text_without_its_text_is_named(tmp_path):
    parts = [{"type": "image"}, {"type": "text", "value": "Hm?"}]
    row = {
        "images": ["0.png"],
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes."}],
    }
    with pytest.raises(DispError, match="a part of a message is of type 'text', and has no text under 'text'"):
        load_dataset(write(tmp_path, [row]))
