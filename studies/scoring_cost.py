"""What scoring a row costs, and what the screen saves: ``python -m studies.scoring_cost RUN … --out DIR``.

A RUN is a folder with a planted model in ``backdoored`` and its set in ``poisoned``, such as the folder of an attack of
`disp experiment`. Some of its poisoned and some of its honest rows are scored twice, batch by batch in turn: with the
default screen, and with every candidate tried. Passes are counted. Prints a row for each set and way, and writes
``scoring.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from disp.auditing.statistics import area_under_curve
from disp.auditing.truth import read_truth
from disp.data.loading import load_dataset
from disp.data.sample import Sample, batches
from disp.evaluation.table import markdown_table
from disp.experiments.precision import load_float32
from disp.files import write_text
from disp.models.interface import MDLM
from disp.suspicion.config import ScoringConfig
from disp.suspicion.evidence import Evidence, sample_suspicion
from disp.suspicion.scoring import score
from disp.suspicion.threshold import suspicion_threshold

# A backward pass of a probe in forward passes, measured on a CPU (docs/benchmarks.md).
BACKWARD = 1.32
# The share of poisoned rows that costs are told for: of a sample with more of them, both kinds are weighted to it.
RATE = 0.1
TITLES = ("set", "sets tried", "poisoned", "honest", f"at {RATE:.0%}", "AUROC", "recall", "precision", "ms a row")


@dataclass
class Cost:
    """What scoring some rows of one kind took.

    Attributes:
        rows: how many were scored.
        passes: forward passes, those that a backward pass is worth included.
        seconds: of one thread.
    """

    rows: int = 0
    passes: float = 0.0
    seconds: float = 0.0


@dataclass
class Way:
    """One way to score, and what came of it.

    Attributes:
        config: the settings.
        costs: by whether rows are poisoned.
        evidence: of every turn.
    """

    config: ScoringConfig
    costs: Mapping[bool, Cost] = field(default_factory=lambda: {True: Cost(), False: Cost()})
    evidence: dict[str, Evidence] = field(default_factory=dict)

    def score(self, model: MDLM, samples: Sequence[Sample], poisoned: bool) -> None:
        """Score some rows of one kind."""
        cost, passes, plain = self.costs[poisoned], 0.0, model.denoise

        def counted(prefix, response, *rest, **named):  # type: ignore[no-untyped-def]
            nonlocal passes
            logits: Tensor = plain(prefix, response, *rest, **named)
            passes += len(response)
            if logits.requires_grad:
                passes += BACKWARD * len(response) * self.config.saliency.probes
            return logits

        model.denoise = counted  # type: ignore[method-assign]
        begin = time.process_time()
        self.evidence |= score(model, samples, self.config)
        cost.seconds += time.process_time() - begin
        cost.passes += passes
        cost.rows += sum(len(sample.turns) for sample in samples)
        model.denoise = plain  # type: ignore[method-assign]

    def row(self, poisoned: Sequence[Sample], honest: Sequence[Sample]) -> list[str]:
        """The cells of the table behind the set's name."""
        values = np.array([sample_suspicion(sample, self.evidence) for sample in (*poisoned, *honest)])
        truth = np.arange(len(values)) < len(poisoned)
        above = values > suspicion_threshold(values, self.config.least_suspicion)
        passes, seconds = (
            {kind: getattr(cost, name) / cost.rows for kind, cost in self.costs.items()}
            for name in ("passes", "seconds")
        )
        return [
            "all" if self.config.screen is None else "screened",
            f"{passes[True]:.1f}",
            f"{passes[False]:.1f}",
            f"{RATE * passes[True] + (1 - RATE) * passes[False]:.1f}",
            f"{area_under_curve(values, truth):.4f}",
            f"{above[truth].mean():.3f}",
            f"{truth[above].mean():.3f}" if above.any() else "-",
            f"{1000 * (RATE * seconds[True] + (1 - RATE) * seconds[False]):.0f}",
        ]


def measure(folder: Path, poisoned_rows: int, honest_rows: int, batch_size: int) -> list[list[str]]:
    """Rows of the table for one planted model and its set."""
    model, samples = load_float32(folder / "backdoored"), load_dataset(folder / "poisoned").samples
    truth = read_truth(folder / "poisoned" / "manifest.json")
    poisoned = [sample for sample in samples if sample.id in truth][:poisoned_rows]
    honest = [sample for sample in samples if sample.images and sample.id not in truth][:honest_rows]
    ways = [Way(ScoringConfig(batch_size=batch_size, screen=screen)) for screen in (ScoringConfig.screen, None)]
    for kind, group in ((True, poisoned), (False, honest)):
        for batch in batches(group, batch_size):
            for way in ways:
                way.score(model, batch, kind)
    return [[folder.name, *way.row(poisoned, honest)] for way in ways]


def main() -> None:
    """Measure each set, print its rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--poisoned", type=int, default=32, help="poisoned rows that are scored")
    parser.add_argument("--honest", type=int, default=96, help="honest rows that are scored")
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for folder in options.runs:
        rows += measure(folder, options.poisoned, options.honest, options.batch_size)
        print("\n".join(" | ".join(row) for row in rows[-2:]), flush=True)
        write_text(options.out / "scoring.md", markdown_table(TITLES, rows))


if __name__ == "__main__":
    main()
