"""What is kept of every turn, and the masks that follow from it."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from disp.data.sample import Query, Sample, Turn
from disp.suspicion.evidence import (
    Evidence,
    EvidenceStore,
    evidence_masks,
    most_suspicious,
    salient_masks,
    sample_suspicion,
    suspicious_query,
)


def evidence(key, saliency=(0.5, 0.25, 2.0), suspicion=1.5, hangs_on=(0, 2)):
    return Evidence(key, list(saliency), tuple((0, 0, 0, each) for each in range(len(saliency))), suspicion, hangs_on)


def said(each):
    return (each.key, list(each.saliency), each.locations, each.suspicion, each.hangs_on)


def test_what_is_written_is_found_again_but_for_a_torn_line(tmp_path):
    file = tmp_path / "scores.jsonl"
    given = [evidence("a#0"), evidence("a#1", suspicion=None, hangs_on=()), evidence("b#0", ())]
    store = EvidenceStore(file)
    store.add(given[:2])
    store.add(given[2:])
    with file.open("a") as written:
        written.write('{"key": "c#0", "sali')
    again = EvidenceStore(file)
    assert [said(each) for each in again.found.values()] == [said(each) for each in given]
    assert again.found == store.found
    # Tokens of all pictures of one size lie at the same places, which are held once.
    assert again.found["a#0"].locations is again.found["a#1"].locations
    again.add([evidence("c#0")])
    assert list(EvidenceStore(file).found) == ["a#0", "a#1", "b#0", "c#0"]


def test_a_line_says_what_it_always_said(tmp_path):
    store = EvidenceStore(tmp_path / "scores.jsonl")
    store.add([evidence("a#0", (0.5, 0.25))])
    line = json.loads((tmp_path / "scores.jsonl").read_text())
    assert len(line.pop("crc32")) == 8  # every appended line has its checksum
    assert line == {
        "key": "a#0",
        "saliency": [0.5, 0.25],
        "locations": [[0, 0, 0, 0], [0, 0, 0, 1]],
        "suspicion": 1.5,
        "best_candidate": [0, 2],
    }


def test_without_a_file_nothing_is_kept(tmp_path):
    store = EvidenceStore(None)
    store.add([evidence("a#0")])
    assert list(store.found) == ["a#0"] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "key"), [((1.0, 3.0, 2.0), "s#1"), ((None, None, 0.5), "s#2"), ((0.0, 0.0, 0.0), "s#1")]
)
def test_a_sample_is_as_suspicious_as_its_most_suspicious_turn(values, key):
    """Of equals it is the first that has visual tokens."""
    sample = Sample("s", (), tuple(Turn(f"{turn}?", "Yes.") for turn in range(3)))
    found = {f"s#{turn}": evidence(f"s#{turn}", (1.0,) if turn else (), value) for turn, value in enumerate(values)}
    assert most_suspicious(sample, found).key == suspicious_query(sample, found).key == key
    assert sample_suspicion(sample, found) == max(value or 0.0 for value in values)


def test_masks_lie_where_the_tokens_lie_now():
    """Rows of three and of one visual token, among other positions."""
    visual = torch.tensor([[False, True, False, True, True], [False, False, True, False, False]])
    batch = [Query("a", 0, (), (), "?"), Query("b", 0, (), (), "?")]
    found = {"a#0": evidence("a#0"), "b#0": evidence("b#0", (1.0,), hangs_on=())}
    assert evidence_masks(visual, list(found.values())).nonzero().tolist() == [[0, 1], [0, 4]]
    assert salient_masks(batch, visual, found, 0.6).nonzero().tolist() == [[0, 1], [0, 4], [1, 2]]
    assert not salient_masks(batch, visual, found, 0.0).any()


@pytest.mark.parametrize("on_disk", [False, True])
def test_scores_are_held_in_four_bytes_each_or_on_disk_and_come_back_as_they_were(tmp_path, on_disk):
    folder = tmp_path / "run" if on_disk else None
    draw = np.random.default_rng(0)
    rounded = [float(f"{value:.5g}") for value in (draw.standard_normal(200) * 10.0 ** draw.integers(-30, 30, 200))]
    places = tuple((0, 0, 0, each) for each in range(200))
    for scores in (rounded, [*rounded[:-1], 1 / 3], [], [0.0, 5e-324, 1e300]):
        store = EvidenceStore(None, folder)
        store.add([Evidence("a#0", scores, places[: len(scores)])])
        kept = store.found["a#0"]
        assert list(kept.saliency) == scores and len(kept.saliency) == len(scores)
        assert [kept.saliency[index] for index in range(len(scores))] == scores
        assert list(kept.saliency[1:3]) == scores[1:3] and bool(kept.saliency) == bool(scores)
        again = pickle.loads(pickle.dumps(kept))  # as Ray sends it
        assert again == kept and kept.to_row()["saliency"] == scores
    tracemalloc.start()
    try:
        store = EvidenceStore(None, folder)
        for number in range(200):
            store.add([Evidence(f"{number}#0", list(rounded), tuple(places), 1.5, (3, 4))])
        assert tracemalloc.get_traced_memory()[0] / 200 < 400 + (0 if on_disk else 4 * 200)
    finally:
        tracemalloc.stop()
    assert not on_disk or not list(folder.iterdir())  # the file has no name
    first, *_, last = store.found.values()
    assert list(last.saliency) == list(first.saliency) == rounded
