"""What is measured: decoding profiles, saliency by probes, a training step, and what a step's cost grows with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from disp.benchmarks.speed.measuring import peak_bytes, side_by_side
from disp.benchmarks.speed.model import BenchSizes, bench_model, bench_prefix
from disp.benchmarks.speed.reference import reference_decode, reference_saliency
from disp.decoding.generate import decode
from disp.decoding.profiles import PROFILES
from disp.decoding.samplers import own_settings
from disp.models.builtin.model import BuiltinModel
from disp.models.interface import Prefix
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.masking import hide, mask_random
from disp.suspicion.saliency import saliency

# The share of visual tokens that the paper masks.
MASKED = 0.45


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how often.

    Attributes:
        sizes: of the model.
        rounds: of saliency and training.
        decoding_rounds: of whole answers, which take half a minute each.
        growth_rounds: of single steps.
        probes: of saliency.
        visual: numbers of visual tokens that a step is measured at.
        response: response lengths that a step is measured at.
        rows: batch sizes that a step is measured at.
        device: where.
    """

    sizes: BenchSizes = field(default_factory=BenchSizes)
    rounds: int = 3
    decoding_rounds: int = 1
    growth_rounds: int = 1
    probes: tuple[int, ...] = (1, 2, 4, 8)
    visual: tuple[int, ...] = (144, 600, 1500, 4000)
    response: tuple[int, ...] = (16, 64, 256)
    rows: tuple[int, ...] = (1, 4, 16)
    device: str = "cpu"


@dataclass(frozen=True)
class BenchRow:
    """One line of the results.

    Attributes:
        group: what it is about.
        name: what was measured.
        seconds: see `disp.benchmarks.speed.measuring.Times`.
        busy: the same.
        ratio: to the base of its group.
        peak_bytes: see `disp.benchmarks.speed.measuring.peak_bytes`; None where it was not measured.
        same: of decoding, the share of tokens that are those of the reference loop; None elsewhere.
    """

    group: str
    name: str
    seconds: float
    busy: float
    ratio: float
    peak_bytes: int | None = None
    same: float | None = None


GROUPS = ("decoding", "saliency", "training", "visual tokens", "response slots", "rows in a batch")


def measure(config: BenchConfig, groups: Collection[str] = GROUPS) -> Iterator[BenchRow]:
    """All rows of some groups, group by group."""
    model, sizes = bench_model(config.sizes, device=config.device), config.sizes
    if "decoding" in groups:
        yield from decoding(model, config)
    if "saliency" in groups:
        yield from saliency_by_probes(model, config)
    if "training" in groups:
        yield from training_step(model, config)
    if "visual tokens" in groups:
        for visual in config.visual:
            yield from steps(model, config, "visual tokens", str(visual), replace(sizes, visual=visual))
    if "response slots" in groups:
        for length in config.response:
            yield from steps(model, config, "response slots", str(length), replace(sizes, response=length))
    if "rows in a batch" in groups:
        for rows in config.rows:
            yield from steps(model, config, "rows in a batch", str(rows), sizes, rows)


def decoding(model: BuiltinModel, config: BenchConfig) -> Iterator[BenchRow]:
    """Whole answers of one row; ratios are times of the reference loop over theirs."""
    sizes, answers = config.sizes, {}
    prefix = bench_prefix(model, sizes)
    masked = mask_random(prefix.visual_mask, MASKED, ["row"], 0)
    shorter = hide(prefix, masked, model.mask_embedding.detach(), "left out")
    tasks: dict[str, Callable[[int | None], Tensor]] = {
        "reference loop": lambda steps: reference_decode(model, prefix, sizes.response, steps or sizes.response),
        **{name: _decoding(model, prefix, name) for name in PROFILES},
        "exact, 45% of the visual tokens left out": _decoding(model, shorter, "exact"),
        "fast, 45% of the visual tokens left out": _decoding(model, shorter, "fast"),
    }

    def timed(name: str) -> Callable[[], None]:
        def run() -> None:
            answers[name] = tasks[name](None)

        return run

    times = side_by_side({name: timed(name) for name in tasks}, "reference loop", config.decoding_rounds, config.device)
    expected = answers["reference loop"]
    for name, each in times.items():
        # Of as few steps as have one that keeps the prompt.
        peak = peak_bytes(lambda name=name: tasks[name](2), config.device)  # type: ignore[misc]
        same = None if "left out" in name else float((answers[name] == expected).float().mean())
        yield BenchRow(
            "decoding",
            name,
            seconds=each.seconds,
            busy=each.busy,
            ratio=1 / each.ratio,
            peak_bytes=peak,
            same=same,
        )


def _decoding(model: BuiltinModel, prefix: Prefix, profile: str) -> Callable[[int | None], Tensor]:
    return lambda steps: decode(model, prefix, own_settings(model, profile=profile, steps=steps))


def saliency_by_probes(model: BuiltinModel, config: BenchConfig) -> Iterator[BenchRow]:
    """Ratios are to one forward pass."""
    prefix, length = bench_prefix(model, config.sizes), config.sizes.response
    tasks: dict[str, Callable[[], object]] = {"one forward pass": lambda: _forward(model, prefix, length)}
    for probes in config.probes:
        settings = SaliencyConfig(probes=probes)
        tasks[f"K = {probes}"] = lambda settings=settings: saliency(model, prefix, ["row"], settings)  # type: ignore[misc]
    # Each further probe of the loop costs the same again.
    tasks["reference loop, K = 1"] = lambda: reference_saliency(model, prefix, ["row"], length, 1)
    yield from _rows("saliency", tasks, "one forward pass", config)


def training_step(model: BuiltinModel, config: BenchConfig) -> Iterator[BenchRow]:
    """A forward and a backward pass of one row with all weights trained; the optimiser's step is left out."""
    prefix, length = bench_prefix(model, config.sizes), config.sizes.response
    source = torch.Generator().manual_seed(2)
    clean = torch.randint(3, config.sizes.vocabulary, (1, length), generator=source).to(config.device)
    uniforms = torch.rand(1, length, generator=source).to(config.device)
    ratio = torch.tensor([0.5], device=config.device)

    def step() -> None:
        model.noisy_loss(prefix, clean, ratio, uniforms).backward()
        model.zero_grad()

    tasks: dict[str, Callable[[], object]] = {
        "one forward pass": lambda: _forward(model, prefix, length),
        "training step": step,
    }
    yield from _rows("training", tasks, "one forward pass", config)


def steps(
    model: BuiltinModel, config: BenchConfig, group: str, value: str, sizes: BenchSizes, rows: int = 1
) -> Iterator[BenchRow]:
    """A denoising step of each kind, with half of the slots open; ratios are to the reference loop's step a row."""
    prefix, length = bench_prefix(model, sizes, rows), sizes.response
    response = torch.full((rows, length), model.mask_token_id, device=config.device)
    response[:, ::2] = 5
    slots = torch.arange(1, length, 2, device=config.device).expand(rows, -1)
    with torch.no_grad():
        past = model.denoise_slots(prefix, response, slots, keep=True)[1]

    @torch.no_grad()
    def step(kept: bool) -> None:
        model.denoise_slots(prefix, response, slots, past if kept else None)

    one = prefix.select(torch.zeros(1, dtype=torch.int64, device=config.device))
    tasks: dict[str, Callable[[], object]] = {
        f"reference loop, {value}": lambda: reference_decode(model, one, length, 1),
        f"exact, {value}": lambda: step(False),
        f"prompt kept, {value}": lambda: step(True),
    }
    if rows == 1:
        settings, keys = SaliencyConfig(probes=1), ["row"]
        tasks[f"saliency, K = 1, {value}"] = lambda: saliency(model, prefix, keys, settings, length)
    for row in _rows(group, tasks, f"reference loop, {value}", replace(config, rounds=config.growth_rounds)):
        # The loop takes one row at a time.
        yield row if row.name.startswith("reference") else replace(row, ratio=row.ratio / rows)


@torch.no_grad()
def _forward(model: BuiltinModel, prefix: Prefix, length: int) -> Tensor:
    response = torch.full((len(prefix), length), model.mask_token_id, device=prefix.embeds.device)
    return model.denoise(prefix, response)


def _rows(group: str, tasks: dict[str, Callable[[], object]], base: str, config: BenchConfig) -> Iterator[BenchRow]:
    times = side_by_side(tasks, base, config.rounds, config.device)
    for name, each in times.items():
        peak = peak_bytes(tasks[name], config.device)
        yield BenchRow(group, name, seconds=each.seconds, busy=each.busy, ratio=each.ratio, peak_bytes=peak)


def to_json(config: BenchConfig, rows: list[dict[str, Any]], where: dict[str, Any]) -> dict[str, Any]:
    """What the results' file holds; ``rows`` as `dataclasses.asdict` makes them."""
    order = {group: place for place, group in enumerate(GROUPS)}
    return {
        "config": asdict(config),
        "hardware": where,
        "rows": sorted(rows, key=lambda row: order[row["group"]]),
    }
