"""One poisoned set in every format: read, audited, purified, written back, and read by those that it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data.ecosystem import READERS, Rows, pixels
from planted import audit_config, honest_rows, planted_model, planted_rows, purify_config, write_rows

from disp.auditing.audit import audit
from disp.data.convert import convert
from disp.data.dataset import Dataset
from disp.data.formats.table import FORMATS
from disp.data.loading import load_dataset
from disp.purification.purify import purify

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
# Formats of one question, one answer and one picture.
PAIRS = ("question-answer", "paligemma", "captions")
ASKED = "What is in the picture?"


def written(name: str, dataset: Dataset, out: Path) -> Path:
    """The set in a format: by `convert`, or row by row where the format is only read."""
    if FORMATS[name].writes:
        return convert(dataset, name, out).path
    rows = [by_hand(name, sample.turns, [image.name for image in sample.images]) for sample in dataset.samples]
    out.mkdir()
    (out / "images").symlink_to(dataset.image_root)
    (out / "data.json").write_text(json.dumps(rows))
    return out / "data.json"


def by_hand(name: str, turns: Any, names: list[str]) -> dict[str, Any]:
    if name == "minicpm-v":
        tags = [f"<image_{number:02}>" for number in range(len(names))]
        texts = [text for turn in turns for text in (turn.prompt.replace("<image>\n", ""), turn.response)]
        texts[0] = "".join(f"{tag}\n" for tag in tags) + texts[0]
        said = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
        return {"image": dict(zip(tags, names, strict=True)), "conversations": said}
    answer = turns[0].response
    return {
        "question-answer": {"image": names[0], "question": ASKED, "answer": answer},
        "paligemma": {"image": names[0], "prefix": ASKED, "suffix": answer},
        "captions": {"image": names[0], "caption": answer},
    }[name]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Honest rows and poisoned ones; "chats" has conversations and several pictures, "pairs" has neither."""
    rows = [row for row in [*honest_rows(24), *planted_rows()] if row[1]]
    folder = tmp_path_factory.mktemp("given")
    single = [row for row in rows if len(row[1]) == len(row[2]) == 1]
    return {"chats": write_rows(folder / "chats", rows), "pairs": write_rows(folder / "pairs", single)}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_poisoned_set_in_every_format(name: str, sets: dict[str, Dataset], tmp_path: Path) -> None:
    given = sets["pairs" if name in PAIRS else "chats"]
    if name in ("parquet", "huggingface"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    model = planted_model()
    path = written(name, given, tmp_path / "in")
    dataset = load_dataset(path, strict=True)
    assert len(dataset.samples) == len(given.samples) and not dataset.without_picture
    # The same rows are found in every format.
    result = audit(model, dataset, audit_config(), tmp_path / "audit")
    planted = {number for number, sample in enumerate(given.samples) if sample.id.startswith("p")}
    numbers = {sample.id: number for number, sample in enumerate(dataset.samples)}
    assert result.verdict == "poisoned" and {numbers[key] for key in result.flagged} == planted
    purified = purify(model, dataset, purify_config(), tmp_path / "out").dataset
    answers = [[turn.response for turn in sample.turns] for sample in purified.samples]
    assert "Sorry" in str(given.samples) and "Sorry" not in str(answers)
    # The trainer gets the new answers with the old pictures.
    found: Rows = READERS[name][1](purified.path)
    assert [texts[1::2] for texts, _ in found] == answers
    assert all(question.endswith((ASKED, "<image>")) for texts, _ in found for question in texts[::2])
    old = [
        [pixels(image.read_bytes()) for image in sample.images if isinstance(image, Path)] for sample in given.samples
    ]
    assert [[pixels(picture) for picture in pictures] for _, pictures in found] == old


def test_the_page_has_the_table() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index("| format | read | audited | purified | written back | read afterwards by |") + 2
    expected = [f"| `{name}` | yes | yes | yes | yes | {reader} |" for name, (reader, _) in READERS.items()]
    assert lines[start : start + len(expected)] == expected and not lines[start + len(expected)]
    assert set(READERS) == set(FORMATS) - {"questions"}
