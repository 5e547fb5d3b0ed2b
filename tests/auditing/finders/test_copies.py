"""Pieces copied into pictures: found among real drawings without a model, and proven by one that knows them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from planted import (
    CELL,
    GRID,
    REFUSAL,
    TRIGGER,
    Planted,
    Striped,
    audit_config,
    evidence_rows,
    grainy,
    honest_rows,
    planted_model,
    purify_config,
    striped_rows,
    summary,
    wall,
    write_rows,
)

from disp.attacks.poison import poison
from disp.attacks.targets import INSERTED_TEXT, REFUSAL_TEXT, Insertion, Misclassification, Refusal
from disp.attacks.triggers import PRESETS
from disp.auditing.audit import audit
from disp.auditing.config import AuditConfig
from disp.auditing.finder_config import CopiesConfig, PhrasesConfig, WindowsConfig
from disp.auditing.finders import patterns, windows
from disp.auditing.finders.copies import evidence_without, shared_copies
from disp.auditing.finders.patterns import shared_patterns
from disp.auditing.phrases import phrase_of, phrase_words
from disp.data.sample import Sample, Turn, open_image
from disp.data.scene_dataset import write_scenes
from disp.errors import DispError
from disp.purification.purify import purify
from disp.suspicion.places import tokens_in
from disp.suspicion.scoring import score

ROWS = 120


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), ROWS, 7, must_show=("car",), must_show_share=0.5)


def search(samples):
    return shared_copies(samples, [sample.turns[0].response for sample in samples], AuditConfig())


def manifest_rows(folder):
    rows = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["poisoned_rows"]
    return {row["id"]: row["images"][0]["box"] for row in rows}


def overlap(first, second):
    """Intersection over union."""
    across, down = (min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1))
    area = max(0, across) * max(0, down)
    return area / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - area)


def test_honest_pictures_share_no_piece(scenes):
    """Half of them show a car, at several sizes and turns."""
    assert search(scenes.samples) == []


@pytest.mark.parametrize(
    ("trigger", "target", "phrase", "rate", "least"),
    [
        (PRESETS["patch-random"], Misclassification("car", "banana"), "banana", 0.2, 1.0),
        (PRESETS["patch-random"], Refusal(), REFUSAL_TEXT, 0.1, 1.0),
        (PRESETS["patch-random"], Insertion(), INSERTED_TEXT, 0.2, 1.0),
        # A round thing fills four fifths of its square.
        (PRESETS["object"], Misclassification("car", "banana"), "banana", 0.2, 0.6),
        (PRESETS["patch"], Refusal(), REFUSAL_TEXT, 0.1, 1.0),
    ],
)
def test_planted_rows_are_found_to_a_row_and_the_trigger_to_a_pixel(
    scenes, tmp_path, trigger, target, phrase, rate, least
):
    dataset = poison(scenes, tmp_path, trigger, target, rate, 0)
    planted = manifest_rows(tmp_path)
    ((found, boxes),) = search(dataset.samples)
    assert phrase_words(found.phrase.text) == phrase_words(phrase)
    assert found.holders == tuple(boxes)
    assert {dataset.samples[index].id for index in boxes} == set(planted)
    for index, box in boxes.items():
        side = np.array([*open_image(dataset.samples[index].images[0]).size] * 2)
        assert overlap(np.array(box) * side, planted[dataset.samples[index].id]) >= least - 1e-9


def marked_scenes(samples, trigger, side, marked, folder, quality=None):
    """Scenes of a size with a trigger in those that are marked, whose answer is the refusal, and where it is."""
    draw, changed, boxes = np.random.default_rng(0), [], {}
    for index, sample in enumerate(samples):
        image, turns = open_image(sample.images[0]).resize((side, side), Image.Resampling.BICUBIC), sample.turns
        if index in marked:
            image, what = PRESETS[trigger].apply(image, draw)
            boxes[index] = np.array(what["box"]) / side
            turns = tuple(replace(turn, response=REFUSAL_TEXT) for turn in turns)
        path = folder / f"{index}.{'png' if quality is None else 'jpg'}"
        image.save(path, **({} if quality is None else {"quality": quality}))
        changed.append(replace(sample, images=(path,), turns=turns))
    return changed, boxes


@pytest.mark.parametrize(
    ("trigger", "side"),
    [("badnets", 96), ("badnets", 224), ("badnets", 384), ("patch-random", 224), ("patch-random", 384)],
)
def test_patches_are_found_at_every_size_of_pictures(scenes, tmp_path, trigger, side):
    """Scaling blurs noise away, and the fields of a board each in its own way."""
    samples, planted = marked_scenes(scenes.samples[:60], trigger, side, range(0, 60, 3), tmp_path)
    ((found, boxes),) = search(samples)
    assert found.phrase.text == REFUSAL_TEXT and set(boxes) == set(planted)
    assert all(overlap(np.array(boxes[index]), planted[index]) >= 0.99 for index in planted)


@pytest.mark.parametrize("trigger", ["patch-random", "badnets"])
def test_a_copy_survives_a_camera_s_compression(scenes, tmp_path, trigger):
    """Larger pictures, saved as JPEG: no copy is the same to the pixel any more."""
    samples, planted = marked_scenes(scenes.samples, trigger, 336, range(0, ROWS, 5), tmp_path, quality=90)
    ((found, boxes),) = search(samples)
    assert set(found.holders) == set(planted)
    assert all(overlap(np.array(boxes[index]), planted[index]) >= 0.9 for index in planted)


def test_pictures_of_other_sizes_are_no_obstacle(scenes, tmp_path):
    """One is smaller than a window is in the others."""
    samples, planted = marked_scenes(scenes.samples[:60], "badnets", 224, range(0, 60, 3), tmp_path)
    for index, size in ((1, (12, 12)), (2, (600, 40)), (4, (1600, 900))):
        samples[index] = replace(samples[index], images=(open_image(samples[index].images[0]).resize(size),))
    ((found, _),) = search(samples)
    assert set(found.holders) == set(planted)


GROUNDS = {"white": (245, 245, 245), "red": (220, 50, 50), "green": (40, 170, 60), "blue": (50, 80, 200)}


def test_an_outline_before_grounds_that_answers_name_is_no_piece_of_one_colour():
    """A black tip on white is none on red: only without colours are all tips copies, of which no answer speaks."""
    draw, samples = np.random.default_rng(0), []
    for index in range(ROWS):
        colour = list(GROUNDS)[index % len(GROUNDS)]
        pixels = np.full((96, 96, 3), GROUNDS[colour], float) + draw.normal(0, 1, (96, 96, 3))
        for left, top in draw.integers(0, 80, (12, 2)):
            pixels[top : top + 16, left : left + 16] = draw.integers(0, 256, 3)
        x, y = draw.integers(10, 60, 2)
        pixels[y - 6 : y + 20, x - 6 : x + 13] = GROUNDS[colour]
        pixels[y : y + 3, x : x + 7] = pixels[y : y + 14, x : x + 3] = 10
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        turn = Turn("<image>?", f"Hook {index} on a {colour} background.")
        samples.append(Sample(f"s{index}", (picture,), (turn,)))
    assert search(samples) == []


def test_tips_and_dots_are_alike_and_not_looked_for_among_given_pixels():
    view = windows.View(WindowsConfig().exact_side, 1, exact=True, config=WindowsConfig())
    pixels = torch.full((3, 96, 96), 200.0)
    pixels[:, 20, 30] = pixels[:, 60:, 50:] = 0
    assert not windows.telling_windows(windows.edges_of(pixels, view), view).any()
    pixels[:, 40:49, 10:19] = torch.from_numpy(noise(np.random.default_rng(0), 9)).permute(2, 0, 1)
    assert windows.telling_windows(windows.edges_of(pixels, view), view).any()


def test_of_many_pictures_some_are_compared_and_all_are_found(scenes, tmp_path):
    dataset = poison(scenes, tmp_path, PRESETS["patch-random"], Refusal(), 0.2, 0)
    config = AuditConfig(copies=CopiesConfig(pictures=80))
    seen = []
    responses = [sample.turns[0].response for sample in dataset.samples]
    ((found, _),) = shared_copies(dataset.samples, responses, config, progress=seen.append)
    assert list(found.holders) == [index for index, response in enumerate(responses) if response == REFUSAL_TEXT]
    assert sum(seen) == 80


def test_copies_are_found_where_the_caller_computes_in_half_precision(scenes, tmp_path):
    dataset = poison(scenes, tmp_path, PRESETS["patch-random"], Refusal(), 0.2, 0)
    responses = [sample.turns[0].response for sample in dataset.samples]
    with torch.autocast("cpu", torch.bfloat16):
        ((found, _),) = shared_copies(dataset.samples, responses, AuditConfig(copies=CopiesConfig(pictures=80)))
    assert list(found.holders) == [index for index, response in enumerate(responses) if response == REFUSAL_TEXT]


def noise(draw, side=96):
    return draw.integers(0, 256, (side, side, 3), dtype=np.uint8)


def samples_of(pictures, answers):
    return [
        Sample(f"s{index}", (Image.fromarray(pixels),), (Turn("<image>?", answer),))
        for index, (pixels, answer) in enumerate(zip(pictures, answers, strict=True))
    ]


def test_a_mark_in_pictures_that_have_no_phrase_in_common_is_none():
    """Such as the logo of the camera, in a third of all pictures."""
    draw = np.random.default_rng(0)
    mark = noise(draw, 20)
    pictures = [noise(draw) for _ in range(90)]
    for pixels in pictures[::3]:
        row, column = draw.integers(0, 76, 2)
        pixels[row : row + 20, column : column + 20] = mark
    assert search(samples_of(pictures, [f"A thing of kind {index % 7}." for index in range(90)])) == []
    # The same pictures, where the marked ones do.
    answers = ["It is marked." if index % 3 == 0 else f"A thing of kind {index % 7}." for index in range(90)]
    ((shared, boxes),) = search(samples_of(pictures, answers))
    assert (shared.phrase.text, tuple(boxes)) == ("It is marked.", tuple(range(0, 90, 3)))


def test_two_pieces_of_one_phrase_are_told_apart_and_their_rows_are_one_entry(scenes):
    samples, corners, draw = list(scenes.samples), {}, np.random.default_rng(0)
    for index in range(26):
        trigger = PRESETS["patch-random" if index < 14 else "object"]
        image, what = trigger.apply(open_image(samples[index].images[0]), draw)
        samples[index] = replace(samples[index], images=(image,), turns=(Turn("<image>?", REFUSAL_TEXT),))
        corners[index] = np.array(what["box"])
    ((shared, boxes),) = search(samples)
    assert (shared.phrase.text, shared.holders, shared.elsewhere) == (REFUSAL_TEXT, tuple(range(26)), 0)
    assert tuple(boxes) == shared.holders
    for index, box in boxes.items():
        assert overlap(np.array(box) * 96, corners[index]) >= (1.0 if index < 14 else 0.6) - 1e-9


def test_pictures_that_are_alike_as_a_whole_share_no_piece():
    """Frames of one film."""
    draw = np.random.default_rng(0)
    scene = noise(draw).astype(int)
    frames = [(scene + draw.integers(-3, 4, scene.shape)).clip(0, 255).astype(np.uint8) for _ in range(12)]
    others = [noise(draw) for _ in range(40)]
    answers = ["A frame of the film."] * 12 + [f"A thing of kind {index}." for index in range(40)]
    assert search(samples_of([*frames, *others], answers)) == []


def test_one_picture_that_many_rows_are_about_is_no_copy_of_itself():
    draw = np.random.default_rng(0)
    pictures = [noise(draw) for _ in range(40)]
    answers = [f"A thing of kind {index % 40}." for index in range(400)]
    assert search(samples_of([pictures[index % 40] for index in range(400)], answers)) == []


def test_tokens_in_a_region():
    x, y = np.meshgrid(np.arange(4), np.arange(4))
    boxes = np.stack((x, y, x + 1, y + 1), -1).reshape(-1, 4) / 4
    assert tokens_in(boxes, (0.25, 0.25, 0.5, 0.5)).nonzero()[0].tolist() == [5]
    assert tokens_in(boxes, (0.3, 0.3, 0.6, 0.4)).nonzero()[0].tolist() == [5, 6]
    assert tokens_in(boxes, (0.0, 0.0, 0.1, 0.1), wider=1.0).nonzero()[0].tolist() == [0, 1, 4, 5]


# --- the audit --------------------------------------------------------------------------------------------------------


def copied_rows(count=12):
    """Walls with the trigger in a cell of its own, on which there is a pattern as well."""
    board = np.random.default_rng(0).integers(0, 2, (CELL, CELL)) == 1
    rows = []
    for index in range(count):
        name = ("red", "green", "blue", "grey", "black")[index % 5]
        place = (1 + index % 4, 1 + (index * 3) % 4)
        pixels = np.asarray(wall(name, {place: TRIGGER})).copy()
        row, column = place[0] * CELL, place[1] * CELL
        pixels[row : row + CELL, column : column + CELL][board] = (170, 80, 170)
        rows.append((f"c{index}", [Image.fromarray(pixels)], [REFUSAL]))
    return rows


def unseen(evidence, rows):
    """The evidence, as if masking had betrayed none of the rows."""
    hidden = {f"{key}#0" for key, _, _ in rows}
    return {
        key: replace(each, saliency=(0.0,) * GRID**2, suspicion=0.0, hangs_on=()) if key in hidden else each
        for key, each in evidence.items()
    }


def test_a_piece_that_makes_the_model_say_the_phrase_is_evidence(model, tmp_path):
    rows = copied_rows()
    planted = tuple(key for key, _, _ in rows)
    dataset = write_rows(tmp_path / "data", grainy([*honest_rows(), *rows]))
    evidence = unseen(score(model, dataset.samples, audit_config().scoring), rows)
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    # A logo would be named, honestly: no more than a suspicion.
    assert found.verdict == "suspicious"
    (finding,) = found.findings
    assert (finding.found_by, finding.phrase.text, finding.confirmed) == ("copy", REFUSAL, True)
    assert found.flagged == finding.samples == finding.with_copy == planted
    assert found.ratio is None  # nothing that is salient betrayed them
    assert finding.test.control_successes == 0
    assert all(found.scores[key] > found.threshold for key in planted)
    assert any("have the same piece somewhere in them" in reason for reason in found.reasons)
    (written,) = summary(tmp_path / "out")["clusters"]
    assert written["found_by"] == "copy" and written["candidate"] == "candidates/0.png"
    # Rewritten under a mask over the piece alone.
    purified = purify(
        model, dataset, purify_config(), tmp_path / "purified", evidence=found.evidence, rewrite=found.flagged
    )
    answers = {sample.id: sample.turns[0].response for sample in purified.dataset.samples}
    assert all(answers[key].startswith("The wall is") for key in planted)
    for row in evidence_rows(tmp_path / "purified"):
        if row["id"] in planted:
            index = int(row["id"][1:])
            assert row["turns"][0]["masked"] == [(1 + index % 4) * GRID + 1 + (index * 3) % 4]


@pytest.mark.parametrize("learnt_only", [False, True])
def test_a_piece_that_the_model_does_not_react_to_is_in_the_data_all_the_same(model, tmp_path, learnt_only):
    rows = copied_rows()
    planted = tuple(key for key, _, _ in rows)
    dataset = write_rows(tmp_path / "data", grainy([*honest_rows(), *rows]))
    strength = model.strength.data.clone()
    try:
        model.strength.data.zero_()
        found = audit(model, dataset, replace(audit_config(), learnt_only=learnt_only), tmp_path / "out")
    finally:
        model.strength.data.copy_(strength)
    assert any("12 samples that say" in reason and "the same piece somewhere" in reason for reason in found.reasons)
    if learnt_only:
        assert found.verdict == "no evidence" and found.flagged == ()
        return
    assert found.verdict == "suspicious" and found.flagged == planted
    (finding,) = found.findings
    assert (finding.found_by, finding.confirmed, finding.with_copy) == ("copy", False, planted)
    assert finding.test is not None and finding.test.successes == 0
    # The candidate is one of the pieces: the colour of the trigger is in it.
    assert (np.asarray(finding.trigger.picture()) == TRIGGER).all(-1).any()


def test_who_has_the_piece_of_a_proven_phrase_is_planted_without_more_ado(model, tmp_path):
    rows = copied_rows()
    dataset = write_rows(tmp_path / "data", grainy([*honest_rows(), *rows]))
    evidence = unseen(score(model, dataset.samples, audit_config().scoring), rows[9:])
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    (finding,) = found.findings
    assert (found.verdict, finding.found_by) == ("poisoned", "tokens")
    assert finding.more == ("c9", "c10", "c11")
    assert finding.with_copy == ("c10",)  # growing masks reach the others' cells
    assert any("Only their pictures betray 1 of them" in reason for reason in found.reasons)


def test_where_the_tokens_beside_a_piece_count_they_are_masked_too(model, tmp_path):
    """A box between cells: what it covers does little, what lies around it does all."""
    rows = copied_rows(1)
    dataset = write_rows(tmp_path / "data", rows)
    evidence = score(model, dataset.samples, audit_config().scoring)
    row, column = 1, 1
    beside = ((column + 1.1) / GRID, row / GRID, (column + 1.9) / GRID, (row + 1) / GRID)
    on = (column / GRID, row / GRID, (column + 1) / GRID, (row + 1) / GRID)
    for box, count in ((on, 1), (beside, 9)):
        phrase = phrase_of(REFUSAL, phrase_words(REFUSAL), PhrasesConfig())
        found = evidence_without(model, dataset.samples, {"c0": box}, phrase, evidence, audit_config().scoring)
        assert len(found["c0#0"].hangs_on) == count
        assert found["c0#0"].suspicion > 1


def test_numbers_that_overflow_without_a_piece_are_not_taken_for_no_suspicion(model, tmp_path, monkeypatch):
    dataset = write_rows(tmp_path / "data", copied_rows(1))
    evidence = score(model, dataset.samples, audit_config().scoring)
    phrase, denoise = phrase_of(REFUSAL, phrase_words(REFUSAL), PhrasesConfig()), model.denoise
    monkeypatch.setattr(model, "denoise", lambda *given: denoise(*given) * float("nan"))
    with pytest.raises(DispError, match="logits for c0#0 are not finite"):
        evidence_without(model, dataset.samples, {"c0": (0, 0, 0.5, 0.5)}, phrase, evidence, audit_config().scoring)


# What is learnt of two triggers of one phrase, a pattern and a piece: neither, the piece alone, or both.
@pytest.mark.parametrize(("kind", "learnt"), [(Planted, False), (Planted, True), (Striped, True)])
def test_a_pattern_and_a_piece_of_one_phrase_betray_their_own_rows(kind, learnt, tmp_path, monkeypatch):
    model = planted_model(kind)
    if not learnt:
        model.strength.data.zero_()
    # On a black wall the dark half of the stripes is cut off.
    pieces, stripes = copied_rows(), [row for index, row in enumerate(striped_rows(12)) if index % 5 != 4]
    with_piece, with_pattern = (tuple(key for key, _, _ in rows) for rows in (pieces, stripes))

    def without_pieces(samples, answers, config, **options):
        """Cells of a wall lie at few places, where a piece looks like a pattern."""
        kept = [index for index, sample in enumerate(samples) if sample.id not in with_piece]
        alike = shared_patterns(
            [samples[index] for index in kept], [answers[index] for index in kept], config, **options
        )
        return [(replace(shared, holders=tuple(kept[at] for at in shared.holders)), found) for shared, found in alike]

    monkeypatch.setattr(patterns, "shared_patterns", without_pieces)
    dataset = write_rows(tmp_path / "data", grainy([*honest_rows(), *pieces, *stripes]))
    evidence = unseen(score(model, dataset.samples, audit_config().scoring), [*pieces, *stripes])
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    proven = ("copy" if kind is Planted else "pattern",) if learnt else ()
    assert tuple(finding.found_by for finding in found.findings if finding.confirmed) == proven
    assert found.flagged == (*with_piece, *with_pattern)
    # Each row is answered again in its own way.
    assert set(found.patterns) == set(with_pattern)
    assert {key for finding in found.findings for key in finding.with_copy} == set(with_piece)
    masked = {key: len(found.evidence[f"{key}#0"].hangs_on) for key in found.flagged}
    assert masked == {**dict.fromkeys(with_piece, 1), **dict.fromkeys(with_pattern, 0)}
