"""Readers raise `DispError` or nothing, whatever a file holds; and what is read can be written and read again."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from data.written import WRITTEN, chat, from_value, json_rows, png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disp.data.loading import load_dataset
from disp.data.saving import data_path, link_images, save_dataset
from disp.errors import DispError

# More where somebody has time: DISP_FUZZ=20.
MANY = int(os.environ.get("DISP_FUZZ", "1"))
bounded = settings(
    max_examples=150 * MANY,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)

NAMES = [
    "1.png",
    "2.png",
    "gone.png",
    "../1.png",
    "/etc/passwd",
    "",
    "data:image/png;base64,QUJD",
    "http://x.org/1.png",
]
NAMES += ["file:///1.png", "images/1.png", "http://[", "data:", "\0", "a" * 300, "https://", "file://%zz", "//x/y"]
TEXTS = ["<image>", "Hi", "<image>\nWhat?", "<img>1.png</img>", "<video>", "\ud800", "", "é\u202e", "<img></img>"]
KEYS = ["id", "image", "images", "conversations", "messages", "texts", "query", "response", "history", "instruction"]
KEYS += ["input", "output", "question", "answer", "text", "question_id", "system", "video", "caption", "file_name"]
KEYS += ["prompt", "completion", "conversation", "tools"]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from([*NAMES, *TEXTS])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "value", "role", "content", "type", "bytes", "path", "url"]), inner)
    ),
    max_leaves=8,
)
part = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.sampled_from(TEXTS)}),
    st.fixed_dictionaries({"type": st.just("image"), "image": st.sampled_from(NAMES)}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.sampled_from(NAMES) | anything}),
    st.just({"type": "image"}),
    anything,
)
content = st.sampled_from(TEXTS) | st.lists(part, max_size=4) | anything
talk = st.lists(content, max_size=4).map(lambda texts: chat(*texts)) | st.lists(content, max_size=4).map(
    lambda texts: from_value(*texts)
)
whole = st.sampled_from(
    [row for name in ("llava", "sharegpt", "typed-parts", "alpaca", "ms-swift", "qwen-vl", "the-cauldron")
     for row in json_rows(name)]
)  # fmt: skip
rows = st.one_of(
    anything,
    st.dictionaries(st.sampled_from(KEYS), st.one_of(anything, talk, st.sampled_from(NAMES)), max_size=5),
    st.builds(lambda row, more: {**row, **more}, whole, st.dictionaries(st.sampled_from(KEYS), anything, max_size=2)),
    whole,
)


@pytest.fixture(scope="module")
def images():
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2, 3):
            (Path(folder) / f"{number}.png").write_bytes(png(number))
        yield Path(folder)


@given(found=st.lists(rows, min_size=1, max_size=4), lines=st.booleans(), questions=st.booleans())
@bounded
def test_whatever_json_holds_is_read_or_set_aside_and_written_back(found, lines, questions, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    text = "".join(json.dumps(row) + "\n" for row in found) if lines else json.dumps(found)
    (folder / "data.json").write_text(text)
    try:
        dataset = load_dataset(folder, images, questions=questions)
    except DispError as error:
        assert len(str(error)) < 3000
        return
    assert all(len(problem.reason) <= 500 for problem in dataset.problems)
    path = data_path(dataset, folder / "out")
    (folder / "out").mkdir()
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    link_images(dataset, folder / "out")
    again = load_dataset(path, images, questions=questions, strict=True)
    assert [(sample.id, sample.turns, sample.system) for sample in again.samples] == [
        (sample.id, sample.turns, sample.system) for sample in dataset.samples
    ]
    assert [[file.read_bytes() for file in sample.images] for sample in again.samples] == [
        [file.read_bytes() for file in sample.images] for sample in dataset.samples
    ]
    # New answers change nothing else.
    new = [sample.with_responses(["new"] * len(sample.turns)) for sample in dataset.samples]
    save_dataset(new, path, dataset.image_root, like=dataset)
    after = load_dataset(path, images, questions=questions, strict=True)
    for old, sample in zip(dataset.samples, after.samples, strict=True):
        assert [turn.prompt for turn in sample.turns] == [turn.prompt for turn in old.turns]
        answers = ["" if questions and not turn.response else "new" for turn in sample.turns]
        assert [turn.response for turn in sample.turns] == answers and len(sample.images) == len(old.images)


FILES = ["llava-gz", "llava-lines-gz", "llama-factory", "webdataset", "imagefolder", "imagefolder-csv", "parquet"]
FILES += ["huggingface", "sharegpt"]


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(parent=bounded, max_examples=25 * MANY)
def test_a_damaged_file_is_read_or_named(name, data, tmp_path_factory):
    if name in ("parquet", "huggingface"):
        pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("fuzz")
    given = WRITTEN[name][0](folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".png")
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        kind = data.draw(st.sampled_from(["cut", "flip", "insert", "swap"]))
        if kind == "cut":
            del content[place:]
        elif kind == "flip" and content:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(max_size=6))
        elif content:
            content[place : place + 4] = content[-4:]
    file.write_bytes(content)
    try:
        dataset = load_dataset(given)
    except DispError as error:
        assert "\n" not in str(error)
        return
    assert all(sample.turns for sample in dataset.samples)


def test_no_byte_of_a_table_can_crash_the_reader(tmp_path):
    pytest.importorskip("pyarrow")
    folder = WRITTEN["huggingface"][0](tmp_path)
    file = folder / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    read = 0
    for place in range(0, len(content), 41):
        file.write_bytes(content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :])
        try:
            load_dataset(folder)
            read += 1
        except DispError:
            pass
    assert 0 < read < len(content) // 41
