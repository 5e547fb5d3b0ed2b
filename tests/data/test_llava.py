"""Reading and writing LLaVA-style data: nothing is lost, and nothing bad gets through unnamed."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disp.data.formats.tags import picture_in
from disp.data.loading import load_dataset
from disp.data.sample import Sample, Turn
from disp.data.saving import save_dataset
from disp.errors import DispError


def talk(*texts):
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


@pytest.fixture
def folder(tmp_path, picture):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        picture(1).save(tmp_path / "images" / name)
    return tmp_path


GOOD_ROWS = [
    {"id": "one", "image": "a.png", "conversations": talk("<image>\nWhat?", "A <b>cat</b>."), "source": {"x": [1]}},
    {
        "id": 2,
        "images": ["a.png", "sub/b.png"],
        "conversations": talk("<image><image> Which?", "Both.", "Sure?", "Yes."),
    },
    {"id": "text", "conversations": talk("Hi", "Ho\u202e"), "weight": 0.5},
    {
        "id": "chat",
        "image": ["a.png"],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>?", "extra": 1},
            {"role": "assistant", "content": "Ok."},
        ],
    },
    {"id": "many", "image": None, "images": ["a.png"], "conversations": talk("<image>?", "b")},
    {"id": "single", "image": "a.png", "images": [], "conversations": talk("<image>?", "b")},
]


def write(path, rows):
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(json.dumps(row) for row in rows) + "\n"
    path.write_text(text)
    return path


def read(path):
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_what_is_read_is_written_back_as_it_was(folder, name):
    write(folder / name, GOOD_ROWS)
    dataset = load_dataset(folder)
    assert not dataset.problems
    assert [len(sample.images) for sample in dataset.samples] == [1, 2, 0, 1, 1, 1]
    assert [len(sample.turns) for sample in dataset.samples] == [1, 2, 1, 1, 1, 1]
    assert dataset.samples[3].system == "Be brief."
    assert dataset.samples[0].metadata["source"] == {"x": [1]}
    assert dataset.samples[1].id == "2"
    save_dataset(dataset.samples, folder / f"again-{name}", dataset.image_root)
    assert read(folder / f"again-{name}") == GOOD_ROWS


def test_new_answers_are_the_only_change(folder):
    dataset = load_dataset(write(folder / "data.json", GOOD_ROWS))
    changed = [sample.with_responses(["new"] * len(sample.turns)) for sample in dataset.samples]
    save_dataset(changed, folder / "new.json", dataset.image_root)
    text = json.dumps(GOOD_ROWS)
    for old in ("A <b>cat</b>.", "Both.", "Yes.", "Ho\u202e", "Ok.", "b"):
        text = text.replace(json.dumps(old), '"new"')
    assert read(folder / "new.json") == json.loads(text)


BAD_ROWS = {
    "no conversations": {"id": "x"},
    "expected 'human'": {"id": "x", "conversations": talk("a", "b")[::-1]},
    "does not end with an answer": {"id": "x", "conversations": talk("a", "b", "c")},
    "needs 'from' and text": {"id": "x", "conversations": [{"from": "human", "value": 3}]},
    "'gone.png' does not exist": {"id": "x", "image": "gone.png", "conversations": talk("a", "b")},
    "'../secret.png' leaves the image folder": {"id": "x", "image": "../secret.png", "conversations": talk("a", "b")},
    "'/etc/passwd' leaves": {"id": "x", "image": "/etc/passwd", "conversations": talk("a", "b")},
    "'link.png' leaves": {"id": "x", "image": "link.png", "conversations": talk("a", "b")},
    "'../images/a.png' leaves": {"id": "x", "image": "../images/a.png", "conversations": talk("a", "b")},
    "'circle.png' ": {"id": "x", "image": "circle.png", "conversations": talk("a", "b")},
    "'a\\x00.png' ": {"id": "x", "image": "a\0.png", "conversations": talk("a", "b")},
    "cannot be found": {"id": "x", "image": "a" * 5000, "conversations": talk("a", "b")},
    "cannot be written back": {"id": "x", "conversations": talk("a", "half \ud83d")},
    "float values are not JSON": {"id": "x", "conversations": talk("a", "b"), "weight": float("inf")},
    "both image and images": {"id": "x", "image": "a.png", "images": ["a.png"], "conversations": talk("a", "b")},
    "image must be a file name": {"id": "x", "image": 7, "conversations": talk("a", "b")},
    "2 <image> placeholders for 1 images": {"id": "x", "image": "a.png", "conversations": talk("<image><image>", "b")},
    "must be an object": ["x"],
    "id must be": {"id": [1], "conversations": talk("a", "b")},
}


@pytest.mark.parametrize("reason", BAD_ROWS)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_bad_row_is_set_aside_with_its_place_and_reason(folder, name, reason, picture):
    picture(1).save(folder / "secret.png")
    (folder / "images" / "link.png").symlink_to(folder / "secret.png")
    (folder / "images" / "circle.png").symlink_to("circle.png")
    path = write(folder / name, [GOOD_ROWS[0], BAD_ROWS[reason], GOOD_ROWS[2]])
    dataset = load_dataset(path)
    assert [sample.id for sample in dataset.samples] == ["one", "text"]
    (problem,) = dataset.problems
    assert problem.place == ("data.json:row 2" if name == "data.json" else "data.jsonl:line 2")
    assert reason in problem.reason
    with pytest.raises(DispError, match="2: "):
        load_dataset(path, strict=True)


def test_files_that_are_no_dataset(folder):
    with pytest.raises(DispError, match="no such data file"):
        load_dataset(folder / "nothing.json")
    with pytest.raises(DispError, match=r"exactly one of data\.json and data\.jsonl, found 0"):
        load_dataset(folder)
    (folder / "data.json").write_text("{")
    with pytest.raises(DispError, match="not valid JSON"):
        load_dataset(folder)
    (folder / "data.json").write_text("{}")
    with pytest.raises(DispError, match="array of rows, found dict"):
        load_dataset(folder)
    write(folder / "data.json", [{"id": 1}])
    with pytest.raises(DispError, match="no usable row"):
        load_dataset(folder)
    lines = [json.dumps(GOOD_ROWS[2]).encode(), b"{broken", b"", b'"\xff"', b"[" * 100_000]
    (folder / "lines.jsonl").write_bytes(b"\n".join(lines))
    problems = load_dataset(folder / "lines.jsonl").problems
    assert [problem.place for problem in problems] == [f"lines.jsonl:line {number}" for number in (2, 4, 5)]
    assert all("not valid JSON" in problem.reason for problem in problems[:2])
    assert "is nested more than 64 deep" in problems[2].reason


def test_names_are_tidied(folder):
    for name in ("./a.png", "sub/../a.png"):
        row = {"id": "x", "image": name, "conversations": talk("<image>?", "b")}
        dataset = load_dataset(write(folder / "data.json", [row]))
        save_dataset(dataset.samples, folder / "again.json", dataset.image_root)
        assert read(folder / "again.json") == [{**row, "image": "a.png"}]


def test_absolute_names_stay_absolute_and_follow_a_picture_that_moves(folder, picture):
    row = {"id": "x", "image": str(folder / "images" / "a.png"), "conversations": talk("<image>?", "b")}
    dataset = load_dataset(write(folder / "data.json", [row]))
    save_dataset(dataset.samples, folder / "again.json", dataset.image_root)
    assert read(folder / "again.json") == [row]
    (folder / "other").mkdir()
    picture(2).save(folder / "other" / "b.png")
    moved = [replace(dataset.samples[0], images=(folder / "other" / "b.png",))]
    save_dataset(moved, folder / "again.json", folder / "other")
    assert read(folder / "again.json") == [{**row, "image": "b.png"}]


def test_whatever_a_sample_holds_is_written(folder):
    samples = [
        *load_dataset(write(folder / "data.json", GOOD_ROWS)).samples,
        Sample("new", (folder / "images" / "a.png",), (Turn("<image>?", "b"),), "Be kind.", {"weight": 2}),
    ]
    for old in tuple(samples):
        longer = (*(replace(turn, prompt=turn.prompt.replace("<image>", "")) for turn in old.turns), Turn("more?", "!"))
        samples.append(replace(old, id=old.id + "+", images=(), turns=longer, system="Be long."))
        samples.append(replace(old, id=old.id + "-", turns=old.turns[:1], system=None))
    for name in ("again.json", "again.jsonl"):
        save_dataset(samples, folder / name, folder / "images")
        again = load_dataset(folder / name)
        assert not again.problems
        for old, new in zip(samples, again.samples, strict=True):
            assert (new.id, new.images, new.turns, new.system) == (old.id, old.images, old.turns, old.system)
    assert again.samples[len(GOOD_ROWS)].metadata["weight"] == 2


def test_rows_without_an_id_keep_theirs_when_rows_before_them_are_set_aside(folder):
    rows = [{"conversations": talk("a", "b")}, {"conversations": []}, {"conversations": talk("c", "d")}]
    dataset = load_dataset(write(folder / "data.json", rows))
    assert [sample.id for sample in dataset.samples] == ["0", "2"]
    save_dataset(dataset.samples, folder / "again.json", dataset.image_root)
    assert [sample.id for sample in load_dataset(folder / "again.json").samples] == ["0", "2"]


def test_rows_that_share_an_id_get_names_of_their_own(folder):
    rows = [
        {"id": name, "conversations": talk("a", str(n))} for n, name in enumerate(["x", "x", "x~2", "y", "x", 7, 7])
    ]
    dataset = load_dataset(write(folder / "data.json", rows), strict=True)
    assert [sample.id for sample in dataset.samples] == ["x", "x~2", "x~2~2", "y", "x~3", "7", "7~2"]
    assert dataset.renamed == 4
    # They keep them where a row in between is left out.
    kept = dataset.samples[:1] + dataset.samples[2:]
    save_dataset(kept, folder / "again.json", dataset.image_root)
    assert [sample.id for sample in load_dataset(folder / "again.json").samples] == [sample.id for sample in kept]


def test_an_image_outside_the_folder_is_not_written(folder, picture):
    for image in (picture(1), folder / "elsewhere.png"):
        sample = Sample("s", (image,), (Turn("a", "b"),))
        with pytest.raises(DispError, match="does not lie in the image folder"):
            save_dataset([sample], folder / "x.json", folder / "images")


# Names of pictures are not any text: the library draws them from the code that looks for them.
text = st.text(st.characters(codec="utf-8"), max_size=30)
text = text.filter(lambda each: "<image>" not in each and picture_in(each, lambda name: False) is None)


@given(st.lists(st.lists(st.tuples(text, text), min_size=1, max_size=3), min_size=1, max_size=4))
def test_any_text_survives(tmp_path_factory, conversations):
    folder = tmp_path_factory.mktemp("text")
    samples = [
        Sample(str(index), (), tuple(Turn(*pair) for pair in turns)) for index, turns in enumerate(conversations)
    ]
    for name in ("d.json", "d.jsonl"):
        save_dataset(samples, folder / name, folder)
        assert [sample.turns for sample in load_dataset(folder / name).samples] == [s.turns for s in samples]
