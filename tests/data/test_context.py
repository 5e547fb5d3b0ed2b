"""What a row tells the model beside its questions is read, or sets the row aside: system messages, tools, objects."""

import pytest
from data.test_cases import again, ask, talk, write
from data.test_forms import ALPACA, CAULDRON, GOOD, LLAVA, QUESTION, SHAREGPT, SWIFT

from disp.data.loading import load_dataset

FORMS = [LLAVA, SHAREGPT, SWIFT, ALPACA, QUESTION, CAULDRON, {"caption": "Yes."}]
NAMED = ("conversations", "messages", "query", "instruction")


@pytest.mark.parametrize("key", ["system", "system_prompt"])
@pytest.mark.parametrize("row", FORMS, ids=lambda row: next(iter(row)))
def test_a_system_message_is_read_or_sets_the_row_aside(row, key, tmp_path):
    rows = [{"image": "0.png", **row, key: "Be planted."}]
    dataset = load_dataset(write(tmp_path, [GOOD, *rows]))
    read = next(iter(row)) in NAMED
    if key == "system" and read:
        assert dataset.samples[1].system == "Be planted."
        return
    (problem,) = dataset.problems
    assert f"has a system message under {key!r}" in problem.reason and f"as --leave-out {key} does" in problem.reason
    assert ("call it 'system'" in problem.reason) == read
    assert len(load_dataset(tmp_path, leave_out=[key], strict=True).samples) == 2


def test_a_system_message_that_is_said_again_is_none(tmp_path):
    rows = [
        {"image": "0.png", "messages": [{"role": "system", "content": "Be."}, *talk()], "system_prompt": "Be."},
        {"image": "0.png", "messages": talk(), "system_prompt": ""},
        {"image": "0.png", **QUESTION, "system": None},
    ]
    assert again(load_dataset(write(tmp_path / "in", rows), strict=True), tmp_path / "out")[0] == rows


@pytest.mark.parametrize("tools", [[{"name": "planted"}], '[{"name": "planted"}]'], ids=str)
def test_tools_set_a_row_aside(tools, tmp_path):
    rows = [{"image": "0.png", **row, "tools": tools} for row in FORMS]
    dataset = load_dataset(write(tmp_path, [GOOD, *rows]))
    assert [sample.id for sample in dataset.samples] == ["good"]
    assert all("has tools under 'tools'" in problem.reason for problem in dataset.problems)
    empty = [{"image": "0.png", **LLAVA, "tools": nothing} for nothing in (None, [], "", "[]", "null")]
    assert len(load_dataset(write(tmp_path / "empty", empty), strict=True).samples) == len(empty)


OBJECTS = {"ref": ["cat", "planted"], "bbox": [[1, 2, 3, 4]]}


@pytest.mark.parametrize("place", ["<ref-object>", "<bbox>"])
def test_objects_that_a_text_has_places_for_set_a_row_aside(place, tmp_path):
    rows = [
        {"images": ["0.png"], "messages": talk(answer=f"It is {place}."), "objects": OBJECTS},
        {"images": ["0.png"], "messages": talk(f"<image>{place} "), "objects": OBJECTS},
    ]
    dataset = load_dataset(write(tmp_path, [GOOD, *rows]))
    assert [sample.id for sample in dataset.samples] == ["good"]
    assert all(f"has {place} in a text, for which ms-swift puts" in problem.reason for problem in dataset.problems)
    honest = [
        {"image": "0.png", "conversations": ask(), "objects": OBJECTS},
        {"image": "0.png", "conversations": ask(answer=f"It is {place}.")},
        {"image": "0.png", "conversations": ask(answer=f"It is {place}."), "objects": []},
    ]
    assert len(load_dataset(write(tmp_path / "honest", honest), strict=True).samples) == 3
