"""One poisoned row of a real run, for pictures: its trigger, and its whole way through the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from disp.data.sample import ImageSource, Query, Sample, open_image
from disp.decoding.generate import generate
from disp.evaluation.quality import answer_quality
from disp.experiments.attacked import AttackRun
from disp.experiments.defended import defence_folder, run_defence
from disp.experiments.recipe import Defence
from disp.experiments.subject import saliency_of
from disp.files import read_finished_jsonl, write_atomically, write_json
from disp.machine import stamp
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM
from disp.report.heatmap import overlay, pixel_boxes
from disp.suspicion.places import Box, token_boxes
from disp.suspicion.scoring import score

# Longest side in pixels of the pictures that are kept, and how many rows are asked for one where the attack works.
SIDE, TRIED = 384, 20


def run_trigger(run: AttackRun, name: str, defence: Defence) -> None:
    """A poisoned row's picture before and after the trigger, and the saliency of its tokens; writes ``cell.json``.

    The row is the first whose planted answer the backdoored model gives, if there is one among the first `TRIED`.

    Args:
        run: the attack.
        name: what the estimator is called.
        defence: says how saliency is estimated.
    """
    folder = defence_folder(run, f"picture-{name}", defence)
    if (folder / "cell.json").exists():
        return
    model = run.model()
    rows = _poisoned_queries(run)[:TRIED]
    answers = generate(model, rows, seed=run.attack.seed)
    target = run.planted.target
    place = next((n for n, (row, said) in enumerate(zip(rows, answers, strict=True)) if target.keyword(said, "")), 0)
    query, said = rows[place], answers[place]
    poisoned, honest = _sample(run, query), _honest(run, query)
    scoring = run.settings.purify.scoring
    scoring = replace(scoring, saliency=saliency_of(scoring.saliency, defence.saliency))
    evidence = score(model, [poisoned], scoring, counterfactual=False)[query.key]
    kept, boxes = _of_first(model, evidence.locations, query.images)
    shown = _picture(query)
    _save(folder / "clean.png", _fitted(open_image(honest.images[0])))
    _save(folder / "poisoned.png", shown)
    _save(folder / "saliency.png", overlay(shown, boxes, [evidence.saliency[index] for index in kept]))
    write_json(
        folder / "cell.json",
        {
            "prompt": query.prompt.replace("<image>", "").strip(),
            "honest": honest.turns[query.turn].response,
            "planted": query.response,
            "answer": said,
            "pictures": ["clean.png", "poisoned.png", "saliency.png"],
            "weights": fingerprint(model),
            "made": stamp(),
        },
    )


def run_overview(run: AttackRun, name: str, defence: Defence) -> None:
    """One poisoned row on its whole way: poisoned, scored, masked, rewritten, and answered by the recovered model.

    Writes ``overview.json`` and pictures beside the defence's own results, and makes the defence where it is not made.

    Args:
        run: the attack.
        name: what the defence is called.
        defence: what it does.
    """
    folder = defence_folder(run, name, defence)
    if (folder / "overview.json").exists():
        return
    run_defence(run, name, defence)
    evidence = {row["id"]: row for row in read_finished_jsonl(folder / "purified" / "evidence.jsonl")}
    target = run.planted.target
    best: tuple[float, Query, dict[str, Any]] | None = None
    for query in _poisoned_queries(run):
        turn = evidence[query.sample_id]["turns"][query.turn]
        honest = _honest(run, query)
        right = answer_quality(turn["new"], honest.turns[query.turn].response, honest.metadata, query.turn)
        # The recovered model has not seen a row that was left out.
        spoilt = target.keyword(turn["new"], "") or evidence[query.sample_id]["left_out"]
        worth = right - spoilt + 0.1 * bool(turn["masked"])
        if best is None or worth > best[0]:
            best = worth, query, turn
    assert best is not None
    _, query, turn = best
    model = run.model()
    (before,) = generate(model, [query], seed=run.attack.seed)
    kept, boxes = _of_first(model, turn["locations"], query.images)
    run.release()
    (after,) = generate(run.subject.load(folder / "model"), [query], seed=run.attack.seed)
    honest, shown = _honest(run, query), _picture(query)
    _save(folder / "clean.png", _fitted(open_image(honest.images[0])))
    _save(folder / "poisoned.png", shown)
    _save(folder / "saliency.png", overlay(shown, boxes, [turn["saliency"][index] for index in kept]))
    masked = [box for index, box in zip(kept, boxes, strict=True) if index in turn["masked"]]
    _save(folder / "masked.png", _masked(shown, masked))
    write_json(
        folder / "overview.json",
        {
            "prompt": query.prompt.replace("<image>", "").strip(),
            "honest": honest.turns[query.turn].response,
            "planted": query.response,
            "compromised": before,
            "rewritten": turn["new"],
            "recovered": after,
            "masked": len(turn["masked"]),
            "tokens": len(turn["saliency"]),
            "pictures": ["clean.png", "poisoned.png", "saliency.png", "masked.png"],
            "made": stamp(),
        },
    )


def _poisoned_queries(run: AttackRun) -> list[Query]:
    """The turns with a picture of the poisoned rows."""
    found = [each for each in run.poisoned.samples if each.id in run.poisoned_ids and each.images]
    return [query for sample in found for query in sample.queries if query.images]


def _sample(run: AttackRun, query: Query) -> Sample:
    return next(each for each in run.poisoned.samples if each.id == query.sample_id)


def _honest(run: AttackRun, query: Query) -> Sample:
    return next(each for each in run.tuning.samples if each.id == query.sample_id)


def _of_first(
    model: MDLM, locations: Sequence[Sequence[int]], images: Sequence[ImageSource]
) -> tuple[list[int], list[Box]]:
    """Which tokens are of the first picture, separators left out, and where they lie in it."""
    kept = [index for index, place in enumerate(locations) if place[0] == 0]
    places = [(a, b, c, d) for a, b, c, d in (locations[index] for index in kept)]
    boxes = token_boxes(model, places, images)
    return kept, [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes]


def _picture(query: Query) -> Image.Image:
    return _fitted(open_image(query.images[0]))


def _fitted(picture: Image.Image) -> Image.Image:
    """The picture with its longest side at `SIDE`."""
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.LANCZOS)


def _masked(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The picture with the masked tokens blackened, each with a grey rim."""
    shown = picture.copy()
    draw = ImageDraw.Draw(shown)
    for x0, y0, x1, y1 in pixel_boxes(boxes, picture.size).tolist():
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=(28, 32, 42), outline=(150, 155, 165))
    return shown


def _save(file: Path, picture: Image.Image) -> None:
    write_atomically(file, partial(picture.save, format="PNG"))
