"""Several processes share the work of a stage by plan: each item once, and the same bytes as one process."""

import json
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from scale.conftest import QUICK, Item, shared, shout, stage_in, together

from disp.data.sample import Query, Turn
from disp.errors import DispError
from disp.files import append_jsonl, read_json, read_lines, write_json
from disp.processes import Place
from disp.scale.beside import folder_beside
from disp.scale.parts import Results, part_file
from disp.scale.shared import Patience, Ranks
from disp.scale.stage import Stage, planned
from disp.scale.workers import Alone


def alone(folder):
    stage = stage_in(folder)
    shared(stage, Alone())
    return stage.file.read_bytes()


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_any_number_of_processes_leaves_the_same_bytes_and_nothing_else(tmp_path, world):
    expected = alone(tmp_path / "alone")
    done = together(lambda rank: stage_in(tmp_path / "shared"), world)
    assert (tmp_path / "shared" / "rows.jsonl").read_bytes() == expected
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["rows.jsonl"]
    worked = [tuple(batch) for rank in range(world) for batch in done[rank][0]]
    assert len(worked) == len(set(worked)) == 6
    for rank in range(world):
        assert [row["key"] for row in done[rank][1]] == [f"i{number}" for number in range(11)]


def test_parts_that_are_deleted_while_a_process_looks_are_no_rows(tmp_path, monkeypatch):
    """The first process has put them together, and deletes the folders that another one is listing."""

    def deleted(folder, pattern):
        raise FileNotFoundError(folder)

    monkeypatch.setattr(Path, "glob", deleted)
    assert Results(stage_in(tmp_path / "shared")).look() == 0


def test_what_a_dead_process_did_not_finish_is_done_when_it_is_started_again(tmp_path):
    expected = alone(tmp_path / "alone")

    def dying(model, batch):
        if len(model) == 2:
            raise KeyboardInterrupt
        return shout(model, batch)

    stage = stage_in(tmp_path / "shared", step=dying)
    # The first process has not come yet; this one dies at its third batch.
    stage.parts.mkdir(parents=True)
    (stage.parts / "plan.json").write_text(json.dumps({"plan": stage.digest}))
    before = []
    with pytest.raises(KeyboardInterrupt):
        shared(stage, Ranks("data", Place(1, 2), QUICK), before)
    done = together(lambda rank: stage_in(tmp_path / "shared"), 2)
    assert before == [["i2", "i3"], ["i6", "i7"]]
    assert done[1][0] == [["i10"]]
    assert stage.file.read_bytes() == expected


@pytest.mark.parametrize("world", [1, 2, 3])
def test_another_number_of_processes_goes_on_where_some_stopped(tmp_path, world):
    expected = alone(tmp_path / "alone")
    stage = stage_in(tmp_path / "shared")
    for rank, batch in ((0, 0), (2, 2), (3, 4)):
        rows = shout([], [stage.items[index] for index in stage.batches[batch]])
        append_jsonl(part_file(stage, f"rank-{rank:05}"), rows)
    if world == 1:
        worked = shared(stage, Alone())[0]
    else:
        worked = [
            batch for work, _ in together(lambda rank: stage_in(tmp_path / "shared"), world).values() for batch in work
        ]
    assert sorted(worked) == [["i10"], ["i2", "i3"], ["i6", "i7"]]
    assert stage.file.read_bytes() == expected
    assert not stage.parts.exists()


def test_a_batch_that_was_torn_is_done_again_as_a_whole_and_none_of_its_rows_twice(tmp_path):
    expected = alone(tmp_path / "alone")
    stage = stage_in(tmp_path / "shared")
    part = part_file(stage, "rank-00001")
    append_jsonl(part, shout([], [stage.items[index] for index in stage.batches[1]]))
    whole = part.read_bytes()
    part.write_bytes(whole[:-10])
    done = together(lambda rank: stage_in(tmp_path / "shared"), 2)
    assert done[1][0][0] == ["i2", "i3"]
    assert stage.file.read_bytes() == expected


def test_processes_with_different_plans_say_so(tmp_path):
    done = together(lambda rank: stage_in(tmp_path, size=2 + rank), 2, Patience(between=0.01, told=60, silence=0.3))
    assert isinstance(done[1][0], DispError)
    assert "the plan of this process" in str(done[1][0])


def test_a_process_that_waits_in_vain_says_for_what(tmp_path):
    with pytest.raises(DispError, match="start the same command again with all its processes"):
        shared(stage_in(tmp_path), Ranks("data", Place(0, 2), Patience(between=0.01, told=60, silence=0.1)))


def test_a_folder_stays_until_all_are_done_also_when_the_first_process_was_started_again(tmp_path):
    out, seen = tmp_path / "answers.jsonl", []

    def process(rank, dies=False):
        workers = Ranks("data", Place(rank, 2), QUICK)
        with suppress(KeyboardInterrupt), folder_beside(out, workers, {"this": "run"}, []) as folder:
            if dies:
                raise KeyboardInterrupt
            seen.append((rank, folder.exists()))

    other = threading.Thread(target=process, args=(1,))
    process(0, dies=True)
    other.start()
    while not (tmp_path / "answers.jsonl.parts" / "done-00001.json").exists():
        time.sleep(0.01)
    # The second one has said that it is done, to the first one that died. It says so again.
    process(0)
    other.join(10)
    assert not other.is_alive() and sorted(seen) == [(0, True), (1, True)]
    assert list(tmp_path.iterdir()) == []


def test_what_was_said_to_a_process_that_died_counts_for_nothing(tmp_path):
    out = tmp_path / "answers.jsonl"
    workers = Ranks("data", Place(0, 2), Patience(between=0.01, told=60, silence=0.2))
    with suppress(KeyboardInterrupt), folder_beside(out, workers, {"this": "run"}, []) as folder:
        write_json(folder / "done-00001.json", read_json(folder / "launch.json"))
        raise KeyboardInterrupt
    with (
        pytest.raises(DispError, match="the other processes to be done"),
        folder_beside(out, workers, {"this": "run"}, []) as folder,
    ):
        pass
    assert folder.exists()


def test_rows_are_on_the_disk_in_their_order_before_the_parts_are_deleted(tmp_path, synced):
    together(lambda rank: stage_in(tmp_path), 2)
    assert synced == [tmp_path / "rows.jsonl"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_about_other_pictures_of_the_same_names_is_not_gone_on_with(tmp_path, picture, rank):
    shown, out = tmp_path / "0.png", tmp_path / "answers.jsonl"
    queries = [Query("a", 0, (shown,), (), "<image>\nWhat?")]

    def stopped(rank):
        workers = Ranks("data", Place(rank, 2), QUICK)
        with suppress(KeyboardInterrupt), folder_beside(out, workers, {"this": "run"}, queries):
            raise KeyboardInterrupt

    picture(0).save(shown)
    stopped(0)
    stopped(rank)
    picture(1).save(shown)
    with pytest.raises(DispError, match="holds results that differs in pictures_sha256; choose another folder"):
        stopped(rank)


def test_batches_hold_every_item_once_and_by_length_alike_ones(picture):
    items = [
        Query(f"q{number}", 0, (picture(number, size),), (), "x" * text)
        for number, (size, text) in enumerate([(24, 5), (48, 5), (24, 90), (48, 1), (24, 5), (32, 5)])
    ]
    assert [list(batch) for batch in planned(items, 4)] == [[0, 1, 2, 3], [4, 5]]
    assert planned(items, 4, "length") == [[0, 4, 2, 5], [3, 1]]
    talk = [Query("long", 1, (), (Turn("a", "b"),), "c"), Query("short", 0, (), (), "c")]
    assert planned(talk, 2, "length") == [[1, 0]]
    with pytest.raises(DispError, match="batch_size must be at least 1"):
        planned(items, 0)


def test_in_another_order_one_process_leaves_the_rows_in_the_items_order_too(tmp_path, picture):
    items = [Query(f"q{number}", 0, (picture(number, size),), (), "") for number, size in enumerate((32, 24, 32, 24))]
    for worker, folder in ((Alone("length"), "one"), (Alone("data"), "other")):
        worker.work([], items, shout, size=2, file=tmp_path / folder, keep=lambda row: None)
    rows = [[row for _, _, row in read_lines(tmp_path / folder)] for folder in ("one", "other")]
    assert [row["key"] for row in rows[0]] == [row["key"] for row in rows[1]] == [item.key for item in items]
    assert [row["with"] for row in rows[0]] == ["q0#0 q2#0", "q1#0 q3#0"] * 2


def test_rows_of_another_stage_stay_in_the_file(tmp_path):
    first = stage_in(tmp_path, count=3)
    shared(first, Alone())
    items = [Item(f"j{number}") for number in range(3)]
    together(lambda rank: Stage(items, shout, planned(items, 2), first.file), 2)
    assert [row["key"] for _, _, row in read_lines(first.file)] == ["i0", "i1", "i2", "j0", "j1", "j2"]


def test_the_first_process_may_be_at_the_next_stage_while_another_waits_for_the_last(tmp_path):
    """Both write into one file, as the turns of answers do."""

    class Both:
        def __init__(self, rank):
            self.rank = rank

        def share(self, model, stage, keep, progress):
            worker = Ranks("data", Place(self.rank, 2, self.rank), QUICK)
            worker.share(model, stage, keep, progress)
            items = [Item(f"j{number}") for number in range(3)]
            worker.share(model, Stage(items, shout, planned(items, 2), stage.file), keep, progress)

    threads = [threading.Thread(target=shared, args=(stage_in(tmp_path, 2), Both(rank))) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [row["key"] for _, _, row in read_lines(tmp_path / "rows.jsonl")] == ["i0", "i1", "j0", "j1", "j2"]
    assert not any(thread.is_alive() for thread in threads)
