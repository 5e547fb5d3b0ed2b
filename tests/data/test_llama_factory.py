"""LLaMA-Factory's dataset_info.json: what it leaves out is absent as soon as it names columns."""

import json

import pytest
from data.test_cases import again, ask, write

from disp.data.loading import load_dataset
from disp.data.stored import identity
from disp.errors import DispError

ROW = {"instruction": "<image>Hm?", "input": "More.", "output": "Yes.", "images": ["0.png"]}


def declared(folder, rows, **entry):
    write(folder, rows)
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "data.json", **entry}}))
    return folder


# Columns of the entry, and the question and the answer that LLaMA-Factory makes of them.
ALPACA = {
    "none": (None, "<image>Hm?\nMore.", "Yes."),
    "all": ({"prompt": "instruction", "query": "input", "response": "output"}, "<image>Hm?\nMore.", "Yes."),
    "no query": ({"prompt": "instruction", "response": "output"}, "<image>Hm?", "Yes."),
    "no prompt": ({"query": "instruction", "response": "input"}, "<image>Hm?", "More."),
}


@pytest.mark.parametrize("case", ALPACA)
def test_columns_that_are_left_out_are_absent(case, tmp_path):
    columns, question, answer = ALPACA[case]
    entry = {} if columns is None else {"columns": {**columns, "images": "images"}}
    dataset = load_dataset(declared(tmp_path / "in", [ROW], **entry), strict=True)
    (turn,) = dataset.samples[0].turns
    assert (turn.prompt, turn.response) == (question, answer) and dataset.formats == {"llama-factory": 1}
    assert again(dataset, tmp_path / "out")[0] == [ROW]


def test_an_answer_that_is_not_declared_is_none(tmp_path):
    folder = declared(tmp_path, [ROW], columns={"prompt": "instruction", "images": "images"})
    with pytest.raises(DispError, match="a question without an answer"):
        load_dataset(folder)


@pytest.mark.parametrize("formatting", ["alpaca", "sharegpt"])
@pytest.mark.parametrize("key", ["image", "images"])
def test_a_picture_that_is_not_declared_is_not_shown(key, formatting, tmp_path):
    said = {"instruction": "Hm?", "output": "Yes."} if formatting == "alpaca" else {"conversations": ask("")}
    rows = [{**said, key: "0.png"}, {**said, key: None}, {**said, key: {"bytes": None, "path": None}}, said]
    columns = {"prompt": "instruction", "response": "output"} if formatting == "alpaca" else {}
    dataset = load_dataset(declared(tmp_path, rows, formatting=formatting, columns=columns))
    (problem,) = dataset.problems
    assert f"has a picture under {key!r}, which dataset_info.json does not declare" in problem.reason
    assert len(dataset.samples) == 3 and dataset.without_picture == 3
    # An entry without columns leaves it open.
    assert load_dataset(declared(tmp_path / "open", rows[:1], formatting=formatting), strict=True).without_picture == 0


@pytest.mark.parametrize("kind", ["chosen", "rejected"])
def test_declared_answers_of_a_preference_are_known(kind, tmp_path):
    rows = [{**ROW, "better": better} for better in ("", "No.")]
    columns = {"prompt": "instruction", "response": "output", "images": "images", kind: "better"}
    dataset = load_dataset(declared(tmp_path, rows, columns=columns))
    assert len(dataset.samples) == 1 and "has other answers under 'better'" in dataset.problems[0].reason


def test_a_file_that_is_read_by_another_column_is_another_dataset(tmp_path):
    row = {"q1": "<image>What is it?", "q2": "<image>Where is it?", "output": "A boat.", "images": ["0.png"]}
    found = []
    for prompt in ("q1", "q2", "q1"):
        columns = {"prompt": prompt, "response": "output", "images": "images"}
        found.append(identity(load_dataset(declared(tmp_path, [row], columns=columns))))
    assert found[0] == found[2] != found[1]
    assert found[0]["data_sha256"] == found[1]["data_sha256"]


TALK = [{"role": "user", "content": "<image>Hm?"}, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize("tags", [None, {"user_tag": "user"}], ids=str)
def test_openai_is_a_chat_of_role_and_content(tags, tmp_path):
    rows = [{"messages": TALK, "images": ["0.png"]}]
    entry = {"formatting": "openai", "columns": {"messages": "messages", "images": "images"}}
    dataset = load_dataset(declared(tmp_path / "in", rows, **entry, **({"tags": tags} if tags else {})), strict=True)
    assert dataset.samples[0].turns[0].response == "Yes." and len(dataset.samples[0].images) == 1
    assert again(dataset, tmp_path / "out")[0] == rows


@pytest.mark.parametrize("formatting", ["alpaca", "sharegpt", "openai"])
def test_declared_tools_are_not_passed_over(formatting, tmp_path):
    talk = {"alpaca": ROW, "sharegpt": {"conversations": ask()}, "openai": {"conversations": TALK}}[formatting]
    rows = [{**talk, "images": ["0.png"], "t": tools} for tools in ("", "[]", None, '[{"name": "planted"}]')]
    columns = {"images": "images", "tools": "t"}
    if formatting == "alpaca":
        columns |= {"prompt": "instruction", "response": "output"}
    dataset = load_dataset(declared(tmp_path, rows, formatting=formatting, columns=columns))
    assert len(dataset.samples) == 3 and "has tools under 't'" in dataset.problems[0].reason
    # LLaMA-Factory shows none that are not declared.
    del columns["tools"]
    rows = [{**row, "tools": row.pop("t")} for row in rows]
    kept = load_dataset(declared(tmp_path / "none", rows, formatting=formatting, columns=columns), strict=True)
    assert len(kept.samples) == 4
