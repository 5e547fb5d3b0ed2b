"""What a model of full size takes on one GPU, beside what `disp plan` says that it takes.

``python -m studies.full_size --out DIR`` writes a LLaDA-V of published size and layout with random weights and
measures loading it, scoring, decoding and a training step with it. The table goes to the standard output, everything to
``DIR/full_size.json``; the checkpoint (17 GB) stays in ``DIR/checkpoint``. Seconds and bytes do not depend on what the
weights are. A measurement that fails leaves its error and the others still run; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from disp.data.dataset import Dataset
from disp.data.sample import Sample, Turn, queries_of
from disp.decoding.generate import decode_with_lengths
from disp.decoding.samplers import own_settings
from disp.errors import DispError
from disp.files import write_json
from disp.models.interface import MDLM, Prefix
from disp.models.loading import load_model
from disp.planning.memory import Memory
from disp.planning.passes import Passes, PlannedTurn, decoding_passes, saliency_passes, training_passes
from disp.planning.plan import Plan, PlanSettings, default_decode, make_plan
from disp.purification.config import PurifyConfig
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.suspicion.saliency import saliency
from disp.training.config import TrainConfig
from disp.training.train import train
from studies.random_checkpoint import DTYPE, write_checkpoint

PICTURE = (640, 480)  # 2×2 tiles and the whole picture
PROMPT = (
    "<image>\nLook closely at the picture. Describe what is in it, where things are and what colours they have, and "
    "say whether anything in it is out of place."
)
RESPONSE = (
    "The picture shows a blurred pattern of coloured squares.",
    "In the upper half they are mostly green and blue, and the lower half is warmer, with patches of red and orange "
    "that run into each other. There is no text and there are no people or animals. Nothing in it looks out of place, "
    "though one square near the middle is darker than the others.",
)
PROBES = (2, 8)
# As docs/models/llada_v.md trains adapters. The first step warms up.
TRAINING = TrainConfig(
    steps=3, batch_size=1, learning_rate=5e-5, method="lora", gradient_checkpointing=True, merge=False
)


@dataclass
class Measurement:
    """One row of the table; None where there is nothing to say, as of the memory of a CPU.

    Attributes:
        name: what was done.
        seconds: wall time.
        peak_bytes: most memory that tensors held on the GPU, the weights included.
        reserved_bytes: most memory that the allocator held.
        forward: passes through the language model's head.
        backward: backward passes from it.
        planned: bytes by `disp.planning`.
        planned_passes: passes by `disp.planning`.
        error: type and last line of what went wrong.
    """

    name: str
    seconds: float | None = None
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    forward: int | None = None
    backward: int | None = None
    planned: Memory | None = None
    planned_passes: Passes | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as JSON holds it, with the sum of the planned bytes."""
        row = asdict(self)
        if self.planned is not None:
            row["planned"]["total"] = self.planned.total
        return row


def make_sample(folder: Path, small: bool) -> Sample:
    """A picture of blurred squares, a question and an answer, which is of one sentence for the small model."""
    squares = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path = folder / "picture.png"
    Image.fromarray(squares).resize(PICTURE, Image.Resampling.BICUBIC).save(path)
    return Sample("picture", (path,), (Turn(PROMPT, " ".join(RESPONSE[: 1 if small else None])),))


# --- measuring --------------------------------------------------------------------------------------------------------


class Bench:
    """The measurements, and what they share: the checkpoint, the model once it is loaded, and the plan."""

    def __init__(self, out: Path, device: str, *, small: bool = False):
        self.out, self.device, self.small = out, device, small
        self.folder = out / "checkpoint"
        out.mkdir(parents=True, exist_ok=True)
        self.sample = make_sample(out, small)
        self.queries = queries_of([self.sample])
        self.loaded: MDLM | None = None
        self.plan: Plan | None = None
        self.facts: dict[str, Any] = {}

    def run(self) -> Iterator[Measurement]:
        """All measurements, in order, each as soon as it is there."""
        jobs: dict[str, Callable[[Measurement], None]] = {
            "writing the checkpoint": self.write,
            "plan": self.make_plan,
            "loading": self.load,
            "encoding": self.encode,
            **{f"saliency, {probes} probes": self.saliency_with(probes) for probes in PROBES},
            "decoding": self.decode,
            "training step, LoRA": self.train,
        }
        for name, job in jobs.items():
            row = Measurement(name)
            try:
                job(row)
            except Exception as error:
                # Whatever it is, out of memory above all: it is the result of this measurement and of no other.
                last = (str(error).strip().splitlines() or [""])[-1]
                row.error = f"{type(error).__name__}: {last}"
                traceback.print_exc()
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()
            yield row

    def write(self, row: Measurement) -> None:
        with self.watch(row):
            write_checkpoint(self.folder, [PROMPT, *RESPONSE], device=self.device, small=self.small)

    def make_plan(self, row: Measurement) -> None:
        dataset = Dataset((self.sample,), self.out / "data.json", self.out)
        settings = PlanSettings(
            dtype="bfloat16", purify=PurifyConfig(scoring=ScoringConfig(batch_size=1), batch_size=1), train=TRAINING
        )
        with self.watch(row):
            self.plan = make_plan(self.folder, dataset, settings)
        self.facts["planned_prefix_tokens"] = self.plan.prefix
        self.facts["planned_weight_bytes"] = self.plan.memory["encoding"].weights
        self.facts["planned_trained_parameters"] = self.plan.trained

    def load(self, row: Measurement) -> None:
        if self.plan is not None:
            row.planned = Memory(self.plan.memory["encoding"].weights, 0)
        with self.watch(row):
            # What a GPU takes by default, named so that a CPU does the same.
            self.loaded = load_model(self.folder, device=self.device, dtype=DTYPE)
        weights = self.loaded.official_state_dict().values()
        self.facts["weight_bytes"] = sum(weight.nbytes for weight in weights)
        self.facts["parameters"] = sum(weight.numel() for weight in weights)

    def encode(self, row: Measurement) -> None:
        self.expect(row, "encoding", None)
        self.prefix()
        with self.watch(row):
            prefix = self.prefix()
        self.facts["prefix_tokens"] = prefix.embeds.shape[1]
        self.facts["visual_tokens"] = int(prefix.visual_mask.sum())

    def saliency_with(self, probes: int) -> Callable[[Measurement], None]:
        """The measurement with so many probes."""

        def measure(row: Measurement) -> None:
            self.expect(row, "saliency", saliency_passes(self.asked, 1, probes))
            prefix, keys = self.prefix(), [self.queries[0].key]
            saliency(self.model, prefix, keys, SaliencyConfig(probes=1))
            with self.watch(row, self.model):
                scores = saliency(self.model, prefix, keys, SaliencyConfig(probes=probes))
            if not scores.isfinite().all() or not scores.any():
                raise DispError("the scores are not finite, or all of them are 0")

        return measure

    def decode(self, row: Measurement) -> None:
        # LLaDA-V has no prefix cache, so this is its only way.
        self.expect(row, "decoding", decoding_passes(1, 1, default_decode(self.folder)))
        config, prefix = own_settings(self.model), self.prefix()
        decode_with_lengths(self.model, prefix, own_settings(self.model, steps=1))
        with self.watch(row, self.model):
            decoded = decode_with_lengths(self.model, prefix, config)
        self.facts["decoded_tokens"], self.facts["decoding_steps"] = int(decoded.lengths[0]), config.steps

    def train(self, row: Measurement) -> None:
        """Time and passes of a step, the time without the first one; memory of the whole run."""
        self.expect(row, "training", training_passes(replace(TRAINING, steps=1)))
        ends: list[float] = []

        def step_ended(count: int) -> None:
            self.wait()
            ends.append(time.perf_counter())

        with self.watch(row, self.model):
            self.loaded = train(self.model, [self.sample], TRAINING, self.out / "lora", progress=step_ended)
        row.seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
        row.forward, row.backward = (row.forward or 0) // len(ends), (row.backward or 0) // len(ends)

    @property
    def model(self) -> MDLM:
        """The loaded model.

        Raises:
            DispError: it could not be loaded.
        """
        if self.loaded is None:
            raise DispError("the model was not loaded")
        return self.loaded

    @property
    def asked(self) -> list[PlannedTurn]:
        """The query as the plan sees it."""
        return [PlannedTurn(0, 1)]

    def prefix(self) -> Prefix:
        """The encoded query."""
        return self.model.encode(self.queries)

    def expect(self, row: Measurement, name: str, passes: Passes | None) -> None:
        """Write down what was planned, if there is a plan."""
        row.planned_passes = passes
        if self.plan is not None:
            row.planned = self.plan.memory[name]

    def wait(self) -> None:
        """Until the GPU is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def watch(self, row: Measurement, model: MDLM | None = None) -> Iterator[None]:
        """Measure what is done within: time, memory, and passes of the model."""
        hook = None
        if model is not None:
            row.forward = row.backward = 0
            hook = head_of(model).register_forward_hook(counting(row))
        self.wait()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            yield
            self.wait()
            row.seconds = time.perf_counter() - start
        finally:  # how far it came is worth knowing where memory ran out, too
            if hook is not None:
                hook.remove()
            if self.device == "cuda":
                row.peak_bytes = torch.cuda.max_memory_allocated()
                row.reserved_bytes = torch.cuda.max_memory_reserved()


def head_of(model: MDLM) -> torch.nn.Module:
    """The language model's head, which every pass goes through once, whatever is recomputed before it."""
    return model.get_submodule("lm_head")


def counting(row: Measurement) -> Callable[[torch.nn.Module, Any, Tensor], None]:
    """A hook that counts passes in a row of the table."""

    def backward(gradient: Tensor) -> None:
        row.backward = (row.backward or 0) + 1

    def forward(module: torch.nn.Module, inputs: Any, logits: Tensor) -> None:
        row.forward = (row.forward or 0) + 1
        if logits.requires_grad:
            logits.register_hook(backward)

    return forward


# --- results ----------------------------------------------------------------------------------------------------------


def to_table(rows: Sequence[Measurement]) -> str:
    """The measurements in Markdown; bytes in GiB."""
    lines = [
        "| measurement | seconds | peak GiB | planned GiB | of it weights | forward, backward | planned | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        planned, passes = row.planned, row.planned_passes
        cells = [
            row.name,
            "-" if row.seconds is None else f"{row.seconds:.3f}",
            _gib(row.peak_bytes),
            _gib(None if planned is None else planned.total),
            _gib(None if planned is None else planned.weights),
            "-" if row.forward is None else f"{row.forward}, {row.backward}",
            "-" if passes is None else f"{passes.forward}, {passes.backward}",
            (row.error or "").replace("|", "\\|"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f}"


def run(out: Path, device: str, *, small: bool = False) -> dict[str, Any]:
    """Measure and print the table; what ``full_size.json`` holds, which is written anew after each measurement."""
    start = time.perf_counter()
    bench, rows = Bench(out, device, small=small), []
    card = torch.cuda.get_device_properties(0) if device == "cuda" else None
    found: dict[str, Any] = {
        "card": card and card.name,
        "card_bytes": card and card.total_memory,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "picture": list(PICTURE),
    }
    for row in bench.run():
        rows.append(row)
        print(f"{row.name}: {row.error or 'done'}", file=sys.stderr, flush=True)
        found |= bench.facts | {
            "seconds": time.perf_counter() - start,
            "measurements": [each.to_json() for each in rows],
        }
        write_json(out / "full_size.json", found)
    print(f"{found['card'] or device}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print(to_table(rows))
    print("\n" + "\n".join(f"{name.replace('_', ' ')}: {value:,}" for name, value in bench.facts.items()))
    return found


def main() -> None:
    """Measure; the exit code is 1 where a measurement failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the results")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="the GPU if there is one")
    options = parser.parse_args()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu" and not options.small:
        parser.error("without a GPU the full size takes hours; use --small")
    found = run(options.out, device, small=options.small)
    if any(row["error"] for row in found["measurements"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
