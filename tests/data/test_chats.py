"""Chats as trainers document them: in two lists, in the singular, beside empty columns of another set."""

import json

import pytest
from data.test_cases import again, ask, talk, write
from data.test_forms import ALPACA, CAULDRON, GOOD, QUESTION
from data.written import from_value, png, read_json

from disp.data.convert import convert
from disp.data.loading import load_dataset
from disp.data.saving import data_path, save_dataset

USER, MODEL = talk()
PARTS = [{"type": "image"}, {"type": "text", "text": "Is there a lock?"}]
PARTED = {
    "texts": {"prompt": [USER], "completion": [MODEL]},
    "parts": {"prompt": [{"role": "user", "content": PARTS}], "completion": [MODEL]},
    "a system message": {"prompt": [{"role": "system", "content": "Be."}, USER], "completion": [MODEL]},
    "two questions": {"prompt": [USER, {"role": "assistant", "content": "No."}, talk("")[0]], "completion": [MODEL]},
    "two answers": {"prompt": [USER], "completion": [MODEL, *talk("")]},
    "empty columns": {"prompt": [USER], "completion": [MODEL], "messages": None, "conversation": "c7"},
}


@pytest.mark.parametrize("name", PARTED)
def test_prompt_and_completion_are_one_chat_in_two_lists(name, tmp_path):
    rows = [{"images": ["0.png"], **PARTED[name], "n": 1}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    (sample,) = dataset.samples
    assert sample.turns[-1].response == "Yes." and len(sample.images) == 1
    assert dataset.formats == {"sharegpt": 1} and sample.system == ("Be." if name == "a system message" else None)
    assert sample.metadata["n"] == 1 and not {"prompt", "completion"} & sample.metadata.keys()
    written, path = again(dataset, tmp_path / "out")
    assert written == rows
    new = sample.with_responses(["New."] * len(sample.turns))
    save_dataset([new], path, dataset.image_root, like=dataset)
    (row,) = json.loads(path.read_text())
    assert [len(row[key]) for key in ("prompt", "completion")] == [
        len(rows[0][key]) for key in ("prompt", "completion")
    ]
    assert (
        row["completion"][-1] == {"role": "assistant", "content": "New."} and row["prompt"][0] == rows[0]["prompt"][0]
    )
    made = read_json(convert(dataset, "llava", tmp_path / "made").path)[0]
    assert not {"prompt", "completion"} & made.keys()


def test_a_table_of_prompt_and_completion(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    row = {**PARTED["texts"], "images": [{"bytes": png(0), "path": None}]}
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "data.parquet")
    dataset = load_dataset(tmp_path / "data.parquet", strict=True)
    path = data_path(dataset, tmp_path / "out")
    path.parent.mkdir()
    save_dataset([dataset.samples[0].with_responses(["New."])], path, dataset.image_root, like=dataset)
    (written,) = pyarrow.parquet.read_table(path).to_pylist()
    assert written == {**row, "completion": [{**MODEL, "content": "New."}]}


@pytest.mark.parametrize("messages", [talk(), ask()], ids=["role", "from"])
def test_a_list_in_the_singular_is_a_chat(messages, tmp_path):
    rows = [{"images": ["0.png"], "conversation": messages, "system": "Be."}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert dataset.samples[0].turns[0].response == "Yes." and dataset.samples[0].system == "Be."
    assert again(dataset, tmp_path / "out")[0] == rows


def test_the_word_may_mean_something_else(tmp_path):
    rows = [{"image": "0.png", **QUESTION, "conversation": value} for value in ("c7", 7, [], ["c7"])]
    assert again(load_dataset(write(tmp_path / "in", rows), strict=True), tmp_path / "out")[0] == rows


PAIRED = [("user", "assistant"), ("human", "assistant"), ("human", "gpt")]


@pytest.mark.parametrize("key", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize("names", PAIRED, ids=str)
def test_a_question_and_an_answer_in_one_entry_are_read(names, key, tmp_path):
    said = [("<image>Hm?", "No."), ("And now?", "Yes.")]
    rows = [{"image": "0.png", key: [dict(zip(names, pair, strict=True)) for pair in said], "system": "Be.", "n": 1}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    (sample,) = dataset.samples
    assert [(turn.prompt, turn.response) for turn in sample.turns] == said and sample.system == "Be."
    assert sample.metadata == {"n": 1} and len(sample.images) == 1
    written, path = again(dataset, tmp_path / "out")
    assert written == rows
    save_dataset([sample.with_responses(["A.", "B."])], path, dataset.image_root, like=dataset)
    (row,) = json.loads(path.read_text())
    assert [entry[names[1]] for entry in row[key]] == ["A.", "B."] and row["system"] == "Be."
    made = convert(dataset, "sharegpt", tmp_path / "made").path
    assert load_dataset(made, strict=True).samples[0].system == "Be."


def test_pairs_and_messages_in_one_list_are_set_aside(tmp_path):
    pair = {"human": "<image>Hm?", "assistant": "Yes."}
    rows = [
        {"image": "0.png", "conversations": [*ask(), pair]},
        {"image": "0.png", "conversations": [pair, *ask()]},
        {"image": "0.png", "conversations": [{**pair, "from": "gpt", "value": "No."}, pair]},
        {"image": "0.png", "conversations": ask(), "messages": [pair]},
        {"image": "0.png", "messages": talk(), "conversation": [pair]},
    ]
    dataset = load_dataset(write(tmp_path, [GOOD, *rows]))
    assert [sample.id for sample in dataset.samples] == ["good"]
    found = [problem.reason for problem in dataset.problems]
    assert "an entry of conversations holds what is said under 'human' and under 'assistant'" in found[0]
    assert "every entry of conversations needs text in 'human' and in 'assistant'" in found[1]
    assert "an entry of conversations" in found[2] and all("two forms" in reason for reason in found[3:])


@pytest.mark.parametrize("more", ["gpt", "value", "rejected", "reasoning_content"])
@pytest.mark.parametrize("key", ["texts", "conversations"])
def test_a_pair_that_says_more_is_set_aside(key, more, tmp_path):
    rows = [
        {"image": "0.png", key: [{"user": "Hm?", "assistant": "Yes.", "source": "x", more: text}]}
        for text in ("", "planted")
    ]
    dataset = load_dataset(write(tmp_path, rows))
    assert [sample.id for sample in dataset.samples] == ["0"]
    assert f"entry 1 of {key} has {more!r} beside 'assistant'" in dataset.problems[0].reason


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_chat_as_text_is_told_what_to_be(key, tmp_path):
    rows = [{"image": "0.png", key: json.dumps(talk())}]
    (problem,) = load_dataset(write(tmp_path, [GOOD, *rows])).problems
    assert f"{key} holds text, and must be a list of messages; it looks like JSON" in problem.reason


FORMS = [QUESTION, ALPACA, CAULDRON, {"caption": "Yes."}, {"conversation": talk()}, {"messages": talk()},
         {"conversations": from_value("<image>Hm?", "Yes.")}]  # fmt: skip


@pytest.mark.parametrize("nothing", [None, []], ids=str)
@pytest.mark.parametrize("row", FORMS, ids=lambda row: next(iter(row)))
def test_empty_columns_of_sets_that_were_joined_are_nothing(row, nothing, tmp_path):
    empty = {key: nothing for key in ("messages", "conversations", "conversation", "texts") if key not in row}
    rows = [{"image": "0.png", **empty, **row, "question_id": None}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert dataset.samples[0].turns[0].response == "Yes."
    assert again(dataset, tmp_path / "out")[0] == rows


@pytest.mark.parametrize("target", ["llava", "sharegpt", "alpaca", "ms-swift", "the-cauldron", "qwen-vl"])
def test_a_conversion_leaves_empty_lists_of_other_forms_behind(target, tmp_path):
    rows = [{"image": "0.png", "conversations": ask(), "messages": None, "texts": [], "n": None}]
    made = convert(load_dataset(write(tmp_path / "in", rows)), target, tmp_path / "out").path
    (sample,) = load_dataset(made, strict=True).samples
    assert sample.turns[0].response == "Yes." and sample.metadata == {"n": None}


def test_empty_columns_of_a_table_are_nothing(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    picture = {"bytes": png(0), "path": None}
    rows = [
        {"image": picture, "messages": talk(), "question": None, "answer": None},
        {"image": picture, "messages": None, "question": "Hm?", "answer": "Yes."},
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    dataset = load_dataset(tmp_path / "data.parquet", strict=True)
    assert dataset.formats == {"sharegpt": 1, "question-answer": 1}
