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


# Which messages are meant is a matter of the declaration alone.
TWO = {"image": "0.png", "conversations": ask("<image>", "Clean."), "dialogue": ask("<image>", "Declared.")}
DIALOGUE = {"formatting": "sharegpt", "columns": {"messages": "dialogue", "images": "image"}}
READ = {"formatting": "sharegpt", "columns": {"messages": "conversations", "images": "image"}}
# How the file is named in dataset_info.json, where the file lies, and what is given.
NAMES = {
    "a point before": ("./data.json", "data.json", ["", "data.json", "dataset_info.json"]),
    "a folder below": ("sub/data.json", "sub/data.json", ["", "sub/data.json", "sub", "dataset_info.json"]),
    "two below": ("a/b/data.json", "a/b/data.json", ["", "a/b/data.json", "a/b"]),
    "up and down": ("sub/../data.json", "data.json", ["", "data.json"]),
    "two slashes": ("sub//data.json", "sub/data.json", ["", "sub/data.json"]),
    "a folder": ("sub", "sub/data.json", ["", "sub", "sub/data.json"]),
    "a folder of parts": ("sub", "sub/x-00000-of-00001.json", ["", "sub", "sub/x-00000-of-00001.json"]),
}


def laid(folder, where, *entries):
    """A set whose file lies at a place, with its pictures beside it, and entries of dataset_info.json."""
    write((folder / where).parent, [TWO])
    ((folder / where).parent / "data.json").rename(folder / where)
    (folder / "sub").mkdir(exist_ok=True)
    info = {f"entry {number}": entry for number, entry in enumerate(entries)}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("case", NAMES)
def test_a_declaration_holds_however_its_file_is_named_and_given(case, tmp_path):
    name, where, given = NAMES[case]
    laid(tmp_path, where, {"file_name": name, **DIALOGUE})
    for each in given:
        dataset = load_dataset(tmp_path / each, leave_out=["conversations"], strict=True)
        assert [turn.response for turn in dataset.samples[0].turns] == ["Declared."], each


def test_a_declared_folder_with_a_declaration_of_its_own_is_read_as_it_is_declared_outside(tmp_path):
    laid(tmp_path, "sub/data.json", {"file_name": "sub", **DIALOGUE})
    other = {"file_name": "gone.json", **READ}
    (tmp_path / "sub" / "dataset_info.json").write_text(json.dumps({"other": other}))
    dataset = load_dataset(tmp_path, leave_out=["conversations"], strict=True)
    assert dataset.samples[0].turns[0].response == "Declared."


def test_two_declarations_of_one_file_are_refused_where_they_differ(tmp_path):
    laid(tmp_path, "data.json", {"file_name": "data.json", **READ}, {"file_name": "./data.json", **DIALOGUE})
    for given in ("", "data.json"):
        with pytest.raises(
            DispError, match=r"is declared twice, as 'entry 0' in \S+ and as 'entry 1' in .*take one of"
        ):
            load_dataset(tmp_path / given)
    # A copy under another name is none, whatever else it says.
    again_ = {"file_name": "data.json", **DIALOGUE, "num_samples": 5}
    laid(tmp_path / "same", "data.json", {"file_name": "data.json", **DIALOGUE}, again_)
    for given in ("", "data.json"):
        assert load_dataset(tmp_path / "same" / given, leave_out=["conversations"], strict=True).samples


def test_a_declaration_of_an_inner_and_an_outer_folder_must_agree(tmp_path):
    laid(tmp_path, "sub/data.json", {"file_name": "sub/data.json", **DIALOGUE})
    (tmp_path / "sub" / "dataset_info.json").write_text(json.dumps({"inner": {"file_name": "data.json", **READ}}))
    with pytest.raises(DispError, match="is declared twice, as 'inner'"):
        load_dataset(tmp_path / "sub")
    # That of somebody else, above, is no matter.
    (tmp_path / "dataset_info.json").write_text("{bad")
    assert load_dataset(tmp_path / "sub", leave_out=["dialogue"], strict=True).samples[0].turns[0].response == "Clean."


@pytest.mark.parametrize("name", ["dataset_info.json", "./dataset_info.json", ".", "", "sub/..", "loop"])
def test_a_declaration_of_itself_is_refused(name, tmp_path):
    laid(tmp_path, "data.jsonl", {"file_name": name})
    (tmp_path / "data.jsonl").unlink()
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(DispError, match="as its data file, which holds no rows"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["../data.json", "sub/link/../data.json", "x" * 300, "a\0b", "/etc/passwd"])
def test_a_declared_file_that_is_not_in_the_folder_is_named(name, tmp_path):
    laid(tmp_path / "set", "sub/data.json", {"file_name": name})
    write(tmp_path, [TWO])
    (tmp_path / "other" / "x").mkdir(parents=True)
    (tmp_path / "set" / "sub" / "link").symlink_to(tmp_path / "other" / "x")
    with pytest.raises(DispError, match=r"which is not in its folder; put it there, or put dataset_info\.json where"):
        load_dataset(tmp_path / "set")
