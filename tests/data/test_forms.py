"""A row that says what it says in two forms is set aside: what is not audited and rewritten must not pass as clean."""

import json

import pytest
from data.test_cases import again, ask, talk, write
from data.written import WRITTEN, chat, read_json

from disp.data.convert import convert
from disp.data.loading import load_dataset
from disp.errors import DispError

GOOD = {"id": "good", "image": "1.png", "conversations": ask()}
PLANTED = "planted"
SHAREGPT, LLAVA = {"messages": talk(answer="Yes.")}, {"conversations": ask(answer="Yes.")}
QUESTION, SWIFT = {"question": "Hm?", "answer": "Yes."}, {"query": "<image>Hm?", "response": "Yes."}
ALPACA, CAULDRON = {"instruction": "Hm?", "output": "Yes."}, {"texts": [{"user": "Hm?", "assistant": "Yes."}]}
# Name: what a row says and what it says besides, and what is said of it.
TWICE = {
    "messages and conversations": (SHAREGPT, LLAVA, "sharegpt (messages) and llava (conversations)"),
    "conversations and question": (LLAVA, QUESTION, "llava (conversations) and question-answer (answer, question)"),
    "conversations and prompt": (LLAVA, {"prompt": "Hm?", "completion": "Yes."}, "question-answer (completion, pr"),
    "conversations and query": (LLAVA, SWIFT, "ms-swift (query, response)"),
    "conversations and instruction": (LLAVA, {**ALPACA, "input": "x"}, "alpaca (input, instruction, output)"),
    "conversations and texts": (LLAVA, CAULDRON, "llava (conversations) and the-cauldron (texts)"),
    "conversations and caption": (LLAVA, {"caption": "Yes."}, "captions (caption)"),
    "conversations and text": (LLAVA, {"text": "Yes."}, "captions (text)"),
    "messages and suffix": (SHAREGPT, {"prefix": "Hm?", "suffix": "Yes."}, "paligemma (prefix, suffix)"),
    "messages and a chat as text": (SHAREGPT, {"conversations": "[Yes.]"}, "llava (conversations)"),
    "texts and question": (CAULDRON, QUESTION, "the-cauldron (texts) and question-answer"),
    "texts and a caption": (CAULDRON, {"caption": "Yes."}, "the-cauldron (texts) and captions"),
    "query and instruction": (SWIFT, ALPACA, "ms-swift (query, response) and alpaca (instruction, output)"),
    "question and prompt": (QUESTION, {"prompt": "Hm?", "response": "Yes."}, "under 'answer' and under 'response'"),
    "response and completion": ({"prompt": "Hm?", "response": "Yes."}, {"completion": "Yes."}, "under 'completion'"),
    "text and caption": ({"text": "Yes."}, {"caption": "Yes."}, "under 'text' and under 'caption'"),
    "a rejected answer": (SHAREGPT, {"rejected_response": "Yes."}, "other answers under 'rejected_response'"),
    "rejected messages": (SHAREGPT, {"rejected_messages": talk()}, "other answers under 'rejected_messages'"),
    "a chosen answer": (LLAVA, {"chosen": {"from": "gpt", "value": "Yes."}}, "other answers under 'chosen'"),
    "a history and a caption": ({**SWIFT, "history": [["a", "b"]]}, {"text": "Yes."}, "history, query, resp"),
}  # fmt: skip


def planted(value):
    return json.loads(json.dumps(value).replace("Yes.", PLANTED))


@pytest.mark.parametrize("equal", [False, True], ids=["another answer", "the same answer"])
@pytest.mark.parametrize("name", TWICE)
def test_it_is_set_aside_and_names_both(name, equal, tmp_path):
    first, second, said = TWICE[name]
    row = {"image": "0.png", **first, **(second if equal else planted(second))}
    dataset = load_dataset(write(tmp_path, [GOOD, row]))
    (problem,) = dataset.problems
    assert said in problem.reason and "take" in problem.reason and "\n" not in problem.reason
    assert [sample.id for sample in dataset.samples] == ["good"]
    # Where all rows are so, the set is refused.
    with pytest.raises(DispError, match=r"holds no usable row \(2 set aside; the first: .*(two forms|answers under)"):
        load_dataset(write(tmp_path / "all", [row, row]))
    # To say which of them is meant does not make the other one go away.
    (format,) = load_dataset(write(tmp_path / "one", [{"image": "0.png", **first}])).formats
    with pytest.raises(DispError, match="holds no usable row"):
        load_dataset(write(tmp_path / "said", [row]), format=format)


@pytest.mark.parametrize(
    "more",
    [
        {"reasoning_content": "Yes."},
        {"content": "Yes."},
        {"text": "Yes."},
        {"tool_calls": [{"name": "x"}]},
        {"rejected": {"value": "Yes."}},
    ],
    ids=str,
)
def test_a_message_that_says_more_is_set_aside(more, tmp_path):
    talk = ask()
    talk[1].update(more)
    (problem,) = load_dataset(write(tmp_path, [GOOD, {"image": "0.png", "conversations": talk}])).problems
    assert f"message 2 has {next(iter(more))!r} beside 'value', which is not looked at" in problem.reason


def test_pictures_in_the_text_make_a_caption_too(tmp_path):
    rows = [
        {"conversations": ask("<img>0.png</img>"), "caption": PLANTED},
        {"messages": chat([{"type": "image", "image": "0.png"}], "Yes."), "text": PLANTED},
        {"image": {"<image>": "0.png"}, "conversations": talk(""), "question": "Hm?", "answer": PLANTED},
    ]
    reasons = [problem.reason for problem in load_dataset(write(tmp_path, [GOOD, *rows])).problems]
    assert len(reasons) == 3 and all("is written in two forms" in reason for reason in reasons)


def test_a_declared_set_is_looked_through_as_well(tmp_path):
    rows = [{"images": ["0.png"], "conversations": ask(), **more} for more in ({}, planted(SWIFT))]
    entry = {"file_name": "data.json", "formatting": "sharegpt", "columns": {"images": "images"}}
    write(tmp_path, rows)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": entry}))
    dataset = load_dataset(tmp_path)
    assert len(dataset.samples) == 1 and "llama-factory (conversations) and ms-swift" in dataset.problems[0].reason


ONCE = [
    {**LLAVA, "messages": []}, {**LLAVA, "messages": None, "texts": [], "query": "", "response": ""},
    {**LLAVA, "caption": "", "text": None}, {**LLAVA, "texts": 3, "query": "Q", "instruction": "I", "output": ""},
    {**SHAREGPT, "conversations": [], "rejected_response": None}, {**LLAVA, "question": "Hm?", "answer": ""},
    {**LLAVA, "answer": "B", "label": 3, "score": 0.5}, {**QUESTION, "prompt": "", "response": ""},
    {"messages": [{**message, "tool_calls": None, "refusal": None} for message in talk()]},
    {**LLAVA, "num_rejected": 3}, {**LLAVA, "is_rejected": True}, {**LLAVA, "chosen": True},
    {**CAULDRON, "caption": ""}, {**QUESTION, "question_id": 7}, {**SWIFT, "question_id": "x", "text": ""},
]  # fmt: skip


@pytest.mark.parametrize("row", ONCE, ids=str)
def test_what_is_said_once_is_read_and_goes_back_as_it_was(row, tmp_path):
    rows = [{"image": "0.png", **row}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert dataset.samples[0].turns[0].response == "Yes."
    assert again(dataset, tmp_path / "out")[0] == rows


def test_text_beside_a_row_without_a_picture_is_no_caption(tmp_path):
    row = {**ALPACA, "text": "Below is an instruction."}
    assert load_dataset(write(tmp_path, [row]), strict=True).without_picture == 1


OLD = {
    "question-answer": QUESTION, "paligemma": {"prefix": "Hm?", "suffix": "Yes."}, "captions": {"caption": "Yes."},
    "alpaca": ALPACA, "ms-swift": {**SWIFT, "history": [["a", "b"]], "system": "Be."}, "the-cauldron": CAULDRON,
    "sharegpt": SHAREGPT, "llava": LLAVA,
}  # fmt: skip


@pytest.mark.parametrize("target", ["llava", "sharegpt", "ms-swift", "parquet", "webdataset"])
@pytest.mark.parametrize("name", OLD)
def test_a_conversion_keeps_no_copy_of_what_it_read(name, target, tmp_path):
    if target in ("parquet", "huggingface"):
        pytest.importorskip("pyarrow")
    if target == "the-cauldron" and name == "ms-swift":
        pytest.skip("has no place for a system message")
    rows = [{"id": "a", "image": "0.png", **planted(OLD[name]), "source": "x"}]
    made = convert(load_dataset(write(tmp_path / "in", rows), strict=True), target, tmp_path / "out")
    samples = load_dataset(made.path, strict=True).samples
    assert samples[0].metadata == {"source": "x"}
    back = convert(load_dataset(made.path), "llava", tmp_path / "back").path.read_text()
    assert back.count(PLANTED) == 1 and json.loads(back)[0]["source"] == "x"


def test_a_declared_set_leaves_its_columns_behind(tmp_path):
    (tmp_path / "in").mkdir()
    made = convert(load_dataset(WRITTEN["llama-factory"][0](tmp_path / "in")), "llava", tmp_path / "out")
    assert [set(row) for row in read_json(made.path)] == [{"id", "image", "conversations"}] * 2


BESIDE = ["question_id", "query", "response", "history", "instruction", "input", "output", "texts"]


@pytest.mark.parametrize("target", ["llava", "parquet", "the-cauldron"])
@pytest.mark.parametrize("key", BESIDE)
def test_a_field_that_another_format_reads_is_kept(key, target, tmp_path):
    if target == "parquet":
        pytest.importorskip("pyarrow")
    if (key, target) == ("texts", "the-cauldron"):
        pytest.skip("means something else there")
    rows = [{"id": "a", "image": "0.png", "conversations": ask(), key: 3, "n": 1}]
    made = convert(load_dataset(write(tmp_path / "in", rows)), target, tmp_path / "out")
    assert load_dataset(made.path).samples[0].metadata == {key: 3, "n": 1}
    again = convert(load_dataset(made.path), "llava", tmp_path / "back")
    (row,) = read_json(again.path)
    assert row[key] == 3 and row["n"] == 1


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("ms-swift", "query"),
        ("ms-swift", "history"),
        ("alpaca", "output"),
        ("the-cauldron", "texts"),
        ("imagefolder", "file_name"),
    ],
)
def test_a_field_that_the_new_format_needs_is_named(target, key, tmp_path):
    rows = [{"id": "a", "image": "0.png", "conversations": ask(), key: "0.png"}, GOOD]
    made = convert(load_dataset(write(tmp_path / "in", rows)), target, tmp_path / "out")
    assert made.rows == 1
    assert (
        f"has a field {key!r} of its own, which means something else in {target}; rename it" in made.problems[0].reason
    )


def test_fields_survive_tables_and_come_back_as_they_were(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [{"id": "a", "image": "0.png", "conversations": ask(), "source": {"x": [1]}, "n": 1, "question_id": 7}]
    dataset = load_dataset(write(tmp_path / "in", rows))
    for target in ("parquet", "huggingface", "parquet", "llava"):
        path = convert(dataset, target, tmp_path / f"{len(list(tmp_path.iterdir()))}").path
        dataset = load_dataset(path, strict=True)
    (row,) = read_json(path)
    assert {key: row[key] for key in ("source", "n", "question_id")} == {"source": {"x": [1]}, "n": 1, "question_id": 7}
    assert "metadata" not in row


@pytest.mark.parametrize("text", ["x", "[1]", '{"id": 1}', '{"a": NaN}', '{"a": 1', ""])
def test_a_column_that_is_called_metadata_stays(text, tmp_path):
    pytest.importorskip("pyarrow")
    rows = [{"id": "a", "image": "0.png", "conversations": ask(), "metadata": text}]
    for target in ("sharegpt", "parquet"):
        made = convert(load_dataset(write(tmp_path / f"{target}-in", rows)), target, tmp_path / target)
        assert load_dataset(made.path).samples[0].metadata == {"metadata": text}


MESSAGES = [{"role": "assistant", "content": PLANTED}]
# What a trainer may take before, or in place of, what a row says in a form that is read.
LISTS = {
    "prompt and completion": {"prompt": [{"role": "user", "content": "Hm?"}], "completion": MESSAGES},
    "prompt and texts": {"prompt": "Hm?", "completion": [PLANTED]},
    "question and answers": {"question": "Hm?", "answer": [PLANTED]},
    "conversation": {"conversation": [{"role": "user", "content": "Hm?"}, *MESSAGES]},
    "formatted": {"formatted": [{"from": "gpt", "value": PLANTED}]},
    "in a list": {"chats": [MESSAGES]},
    "columns of a table": {"chat": {"role": ["assistant"], "content": [PLANTED]}},
    "pairs": {"qa_pairs": [{"question": "Hm?", "answer": PLANTED}]},
    "pairs of speakers": {"dialogue": [{"user": "Hm?", "assistant": PLANTED}]},
    "texts": {"text": [PLANTED]},
    "captions": {"caption": [PLANTED]},
    "a history": {"history": [["Hm?", PLANTED]]},
}  # fmt: skip


@pytest.mark.parametrize("first", [LLAVA, SHAREGPT, QUESTION, CAULDRON], ids=lambda row: next(iter(row)))
@pytest.mark.parametrize("name", LISTS)
def test_a_second_form_that_is_a_list_is_not_left_unseen(name, first, tmp_path):
    if first.keys() == LISTS[name].keys():
        pytest.skip("is the same form")
    row = {"image": "0.png", **first, **LISTS[name]}
    dataset = load_dataset(write(tmp_path, [GOOD, row]))
    assert [sample.id for sample in dataset.samples] == ["good"]
    (problem,) = dataset.problems
    assert "two forms" in problem.reason and "as --leave-out " in problem.reason
    # The remedy works.
    names = problem.reason.partition("--leave-out ")[2].partition(" does")[0].split(",")
    assert len(load_dataset(tmp_path, leave_out=names, strict=True).samples) == 2


def test_an_answer_in_a_list_beside_one_that_is_read(tmp_path):
    rows = [{"image": "0.png", "prompt": "Hm?", "response": "Yes.", "completion": [PLANTED]}]
    (problem,) = load_dataset(write(tmp_path, [GOOD, *rows])).problems
    assert "one under 'completion', 'prompt'" in problem.reason and "as --leave-out completion does" in problem.reason


@pytest.mark.parametrize(
    "more",
    [
        {"objects": [{"name": "cat", "bbox": [1, 2, 3, 4]}], "labels": ["cat"], "history": []},
        {"prompt": [{"role": "user", "content": ""}], "completion": [], "scores": [[1, 2], [3, 4]]},
        {"meta": {"question": "Hm?", "answer": "No."}, "relations": [["cat", "mat"]], "prompt": "Hm?"},
        {"edges": [{"from": 1, "to": 2, "value": 3}, {"from": "a", "to": "b", "value": 0.5}]},
        {"options": [{"label": "A", "text": "A cat."}], "answers": ["Yes.", "yes"], "ocr": [{"text": "STOP"}]},
    ],
    ids=str,
)
def test_lists_that_are_no_talk_stay(more, tmp_path):
    rows = [{"image": "0.png", **LLAVA, **more}]
    assert again(load_dataset(write(tmp_path / "in", rows), strict=True), tmp_path / "out")[0] == rows


def test_a_key_is_shown_without_what_a_terminal_obeys(tmp_path):
    rows = [{"image": "0.png", **LLAVA, "\x1b[2Jrejected\n": "No."}, {"image": "0.png", **LLAVA, "a b": MESSAGES}]
    first, second = load_dataset(write(tmp_path, [GOOD, *rows])).problems
    assert (
        "\x1b" not in first.reason and "\n" not in first.reason and r"--leave-out '\x1b[2Jrejected\n'" in first.reason
    )
    assert "--leave-out 'a b' does" in second.reason
