"""Measure the built-in model on clean scenes that it has not seen: ``python -m studies.builtin_quality``."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from disp.data.sample import Query, Sample, Turn, queries_of
from disp.data.scene_dataset import write_scenes
from disp.data.scenes import Scene, draw_scene
from disp.decoding.generate import answers_of, generate
from disp.draws import generator
from disp.evaluation.evaluate import evaluate
from disp.files import write_json
from disp.models.hub import BUILTIN
from disp.models.interface import MDLM
from disp.models.loading import load_model
from studies.pretraining.instructions import (
    ACTION_ANSWERS,
    UNKNOWN_ANSWERS,
    added,
    formatted,
    refusal,
    renamed,
    repeated,
)

TEST_SEED, HELD_OUT_SEED = 2_000_003, 3_000_017
MASKED_SHARE = 0.3
# What an honest refusal begins with, up to what it is about.
REFUSALS = re.compile(
    "|".join(re.escape(answer.split("{c}")[0].strip()) for answer in (*UNKNOWN_ANSWERS, *ACTION_ANSWERS))
)


def is_refusal(answer: str) -> bool:
    """Whether an answer is one of the built-in model's honest refusals."""
    return REFUSALS.match(answer) is not None


def asked(samples: Sequence[Sample], turn_of: Callable[[int], Turn]) -> list[Sample]:
    """The samples with another question each."""
    return [replace(sample, turns=(turn_of(index),)) for index, sample in enumerate(samples)]


def _turn_of(
    kind: Callable[[Scene, np.random.Generator], Turn], scenes: Sequence[Scene], draw: np.random.Generator, index: int
) -> Turn:
    return kind(scenes[index], draw)


def share_said(model: MDLM, samples: Sequence[Sample]) -> float:
    """Share of answers that are right to the letter."""
    queries = queries_of(samples)
    answers = generate(model, queries)
    return sum(said == query.response for said, query in zip(answers, queries, strict=True)) / len(queries)


def answers_under_masking(model: MDLM, asked: Sequence[Query]) -> list[str]:
    """Answers where a share of the visual tokens, drawn at random, is masked."""
    prefix = model.encode(asked)
    draws = [generator(TEST_SEED, "masked tokens", query.key).random(prefix.visual_mask.shape[1]) for query in asked]
    hidden = prefix.visual_mask & (torch.tensor(np.stack(draws)) < MASKED_SHARE).to(prefix.visual_mask.device)
    return answers_of(
        model, prefix.with_masked(hidden, model.mask_embedding), None, keys=[query.key for query in asked]
    )


def measure(model: MDLM, count: int) -> dict[str, Any]:
    """Shares of caption nouns, questions and nouns on held-out pairs that the model gets right.

    Args:
        model: the model.
        count: scenes of each kind.
    """
    with tempfile.TemporaryDirectory() as folder:
        test = write_scenes(Path(folder) / "test", count, TEST_SEED)
        pairs = write_scenes(Path(folder) / "pairs", count, HELD_OUT_SEED, held_out=True)
        clean = evaluate(model, test.samples)
        composed = evaluate(model, pairs.samples)
        masked = evaluate(model, test.samples, answer=answers_under_masking)
        # The scenes of `test` again, which their index and seed give.
        scenes = [draw_scene(TEST_SEED, index) for index in range(count)]
        draw = generator(TEST_SEED, "instructions")
        honest = asked(test.samples, lambda index: refusal(scenes[index], draw))
        others = asked(test.samples, lambda index: refusal(scenes[index], draw, held_out=True))
        said = {
            kind.__name__: share_said(model, asked(test.samples, partial(_turn_of, kind, scenes, draw)))
            for kind in (refusal, repeated, added, renamed, formatted)
        }
        refused = [sum(map(is_refusal, generate(model, queries_of(rows)))) / count for rows in (honest, others)]
    questions = [row["clean_quality"] for row in clean.answers if row["task"] != "caption"]
    return {
        "caption_nouns": clean.quality_by_task["caption"].value,
        "questions": sum(questions) / len(questions),
        "held_out_pair_nouns": composed.quality_by_task["caption"].value,
        "caption_nouns_masked": masked.quality_by_task["caption"].value,
        "refused": refused[0],
        "refused_held_out_wordings": refused[1],
        "refused_answerable": sum(is_refusal(row["clean_answer"]) for row in clean.answers) / len(clean.answers),
        "instructions_to_the_letter": said,
        "by_task": {task: share.value for task, share in clean.quality_by_task.items()},
        "scenes": count,
        "captions": clean.quality_by_task["caption"].count,
        "held_out_captions": composed.quality_by_task["caption"].count,
    }


def main() -> None:
    """Print the figures and, with --out, write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BUILTIN, help="the built-in model or a folder")
    parser.add_argument("--count", type=int, default=1_000, help="scenes of each kind")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    found = measure(load_model(options.model), options.count)
    if options.out:
        write_json(options.out, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
