"""Items, a step and runs of several processes for the tests of shared work."""

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from disp.processes import Place
from disp.scale.shared import Patience, Ranks
from disp.scale.stage import Stage, planned


@dataclass(frozen=True)
class Item:
    key: str


def shout(model, batch):
    """The step: what it says of an item depends on whom it was together with."""
    together = " ".join(item.key for item in batch)
    model.append([item.key for item in batch])
    return [{"key": item.key, "said": item.key.upper(), "with": together} for item in batch]


QUICK = Patience(between=0.01, told=60, silence=20)


def stage_in(folder: Path, count: int = 11, size: int = 2, step=shout) -> Stage:
    items = [Item(f"i{number}") for number in range(count)]
    return Stage(items, step, planned(items, size), folder / "rows.jsonl")


def shared(stage, worker, model=None, kept=None):
    """What a worker did: the batches that it worked on, and the rows that it was given."""
    model, kept = [] if model is None else model, [] if kept is None else kept
    worker.share(model, stage, kept.append, lambda count: None)
    return model, kept


def together(stage_of, world, patience=QUICK):
    """The same of several processes at once, in threads; by rank."""
    done: dict[int, tuple] = {}

    def run(rank):
        try:
            done[rank] = shared(stage_of(rank), Ranks("data", Place(rank, world, rank), patience))
        except Exception as error:
            done[rank] = (error, [])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


@pytest.fixture
def environment():
    """What processes under a launcher are started with; without what this process was itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        kept.pop(name, None)
    source = str(Path(sys.modules["disp"].__file__).parents[1])
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
