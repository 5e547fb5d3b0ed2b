"""Pictures of the next batch are opened in threads while one is worked on; nothing else changes."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from disp.data.ahead import MOST
from disp.data.sample import Query, open_image, pictures_ahead
from disp.errors import DispError
from disp.files import read_lines
from disp.processes import Place
from disp.scale.shared import Ranks
from disp.scale.stage import Stage, planned
from disp.scale.workers import Alone


@pytest.fixture
def opened(monkeypatch):
    """Which thread opened which file."""
    found, plain = [], Image.open

    def recorded(file, *given, **named):
        found.append((threading.current_thread().name.split("_")[0], Path(file).name))
        return plain(file, *given, **named)

    monkeypatch.setattr(Image, "open", recorded)
    return found


@dataclass(frozen=True)
class Asked:
    query: Query

    @property
    def key(self):
        return self.query.key


def look(model, batch):
    pixels = [[open_image(source).tobytes() for source in getattr(item, "query", item).images] for item in batch]
    return [{"key": item.key, "sum": sum(map(sum, each))} for item, each in zip(batch, pixels, strict=True)]


@pytest.fixture
def stage_of(tmp_path, picture):
    """A function that makes a stage over so many pictures; "2.png" of them is in two rows."""

    def stage(name, count=8, size=2, kind=lambda query: query):
        for number in range(count):
            picture(number).save(tmp_path / f"{number}.png")
        numbers = [*range(count), 2]
        queries = [Query(f"r{row}", 0, (tmp_path / f"{n}.png",), (), "?") for row, n in enumerate(numbers)]
        items = [kind(query) for query in queries]
        return Stage(items, look, planned(items, size), tmp_path / f"{name}.jsonl")

    return stage


def rows(stage, worker):
    worker.share(None, stage, lambda row: None, lambda count: None)
    return stage.file.read_bytes()


@pytest.mark.parametrize("kind", [lambda query: query, Asked], ids=["queries", "what has a query"])
def test_the_rows_are_the_same_and_only_the_first_batch_waits_for_its_pictures(stage_of, opened, kind):
    plain = rows(stage_of("plain"), Alone(ahead=False))
    assert {thread for thread, _ in opened} == {"MainThread"}
    opened.clear()
    assert rows(stage_of("ahead", kind=kind), Alone(ahead=True)) == plain
    assert sorted(opened)[:2] == [("MainThread", "0.png"), ("MainThread", "1.png")]
    assert sorted(opened)[2:] == sorted([("pictures", f"{n}.png") for n in (2, 2, 3, 4, 5, 6, 7)])
    opened.clear()
    assert rows(stage_of("rank"), Ranks(place=Place(0, 1), ahead=True)) == plain
    assert {thread for thread, _ in opened} == {"MainThread", "pictures"}


def test_where_the_model_is_on_a_cpu_nothing_is_opened_ahead(stage_of, opened):
    rows(stage_of("plain"), Alone())
    assert {thread for thread, _ in opened} == {"MainThread"}


def test_a_damaged_picture_stops_the_run_at_its_own_row(stage_of, tmp_path):
    stage = stage_of("ahead")
    (tmp_path / "5.png").write_bytes(b"no picture")
    with pytest.raises(DispError, match=r"5\.png: cannot be read as an image"):
        rows(stage, Alone(ahead=True))
    assert [row["key"] for _, _, row in read_lines(stage.file)] == [f"r{n}#0" for n in range(4)]
    stage_of("mended")
    assert len(rows(stage, Alone(ahead=True)).splitlines()) == 9


def test_no_more_than_so_many_pictures_wait(tmp_path, picture, opened):
    count = MOST + 9
    paths = [tmp_path / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    opened.clear()

    def settled():
        """How many were opened, when no more are."""
        before = -1
        while len(opened) > before:
            before = len(opened)
            time.sleep(0.2)
        return before

    with pictures_ahead() as ahead:
        ahead.announce(paths)
        assert settled() == MOST
        first = open_image(paths[0])
        assert np.array_equal(np.asarray(first), np.asarray(picture(0)))
        assert settled() == MOST + 1  # the next one has taken its place
        for path in reversed(paths):
            open_image(path)
        assert len(opened) == count + 1
        ahead.announce([])
        ahead.announce(paths[:1])  # what nobody asked for of earlier ones is gone
        assert settled() == count + 2
    assert {thread for thread, _ in opened} == {"MainThread", "pictures"}
