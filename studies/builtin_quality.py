"""Measure the built-in model on clean scenes that it has not seen: ``python -m studies.builtin_quality``."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from disp.data.scene_dataset import write_scenes
from disp.evaluation.evaluate import evaluate
from disp.files import write_json
from disp.models.hub import BUILTIN
from disp.models.interface import MDLM
from disp.models.loading import load_model

TEST_SEED, HELD_OUT_SEED = 2_000_003, 3_000_017


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
    questions = [row["clean_quality"] for row in clean.answers if row["task"] != "caption"]
    return {
        "caption_nouns": clean.quality_by_task["caption"].value,
        "questions": sum(questions) / len(questions),
        "held_out_pair_nouns": composed.quality_by_task["caption"].value,
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
