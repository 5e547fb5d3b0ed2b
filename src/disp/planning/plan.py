"""What a run will need and take, before anything heavy is loaded: memory, and passes of the model.

Nothing but configs, headers of weight files, the tokenizer, the data file and the headers of pictures is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from disp.auditing.config import AuditConfig
from disp.data.dataset import Dataset
from disp.data.sample import queries_of
from disp.decoding.config import DecodeConfig
from disp.decoding.samplers import own_settings
from disp.errors import DispError
from disp.models.adapters import base_of, check_new, is_adapter
from disp.models.hub import resolve
from disp.models.settings import MOST_SLOTS, check_whole
from disp.models.sizes import Sizes
from disp.planning.checkpoints import read_config, sizes_of, stored_parameters
from disp.planning.lengths import longest_prefix, tokens_a_picture, visual_counts
from disp.planning.memory import (
    Memory,
    Rows,
    decoding_bytes,
    encoding_bytes,
    saliency_bytes,
    trained_parameters,
    training_memory,
    weight_bytes,
)
from disp.planning.passes import (
    Passes,
    PlannedTurn,
    audit_passes,
    evaluation_passes,
    purification_passes,
    scoring_passes,
    training_passes,
)
from disp.purification.config import PurifyConfig
from disp.training.config import TrainConfig

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class PlanSettings:
    """What the plan is for.

    Attributes:
        dtype: of weights and activations.
        bits: 8 or 4 where the language model is loaded quantized.
        purify: how the data is purified; an audit scores it and decodes answers in the same way.
        train: how the model is fine-tuned.
        decode: how answers are decoded in the evaluation; None for ``purify.decode``, and where that is None too for
            the model's own settings.
        evaluation_batch_size: queries a pass in the evaluation.
        attacked: whether the evaluation measures an attack too.
        gen_length: response slots; None for the model's own.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    bits: Literal[4, 8] | None = None
    purify: PurifyConfig = field(default_factory=PurifyConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig | None = None
    evaluation_batch_size: int = 32
    attacked: bool = False
    gen_length: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZE:
            raise DispError(f"dtype must be one of {', '.join(ITEMSIZE)}, got {self.dtype!r}")
        if self.bits not in (None, 4, 8):
            raise DispError(f"bits must be 4, 8 or None, got {self.bits!r}")
        if self.bits and self.train.method != "lora":
            raise DispError("quantized weights can be neither trained nor saved; choose method 'lora', or bits None")
        if self.evaluation_batch_size < 1:
            raise DispError(f"evaluation_batch_size must be at least 1, got {self.evaluation_batch_size}")
        if self.gen_length is not None:
            check_whole(self.gen_length, "gen_length", most=MOST_SLOTS)


@dataclass(frozen=True)
class Plan:
    """What a run needs and takes.

    Attributes:
        model: what the model is called.
        family: its family.
        data: the data file.
        settings: what the plan is for.
        parameters: weights of the model.
        counted: whether they were counted in the weight files; otherwise they follow from the config.
        trained: weights that are trained.
        samples: samples of the data.
        queries: assistant turns of the data.
        images: pictures of the data.
        visual_tokens: fewest and most visual tokens of a picture.
        prefix: positions of the longest prefix.
        measured_text: whether the tokenizer was there to measure prompts with; otherwise their length is a guess.
        memory: bytes at the peak of each step, by its name.
        passes: passes of each step, by its name; "audit" and "purify" include scoring.
    """

    model: str
    family: str
    data: str
    settings: PlanSettings
    parameters: int
    counted: bool
    trained: int
    samples: int
    queries: int
    images: int
    visual_tokens: tuple[int, int]
    prefix: int
    measured_text: bool
    memory: Mapping[str, Memory]
    passes: Mapping[str, Passes]

    def to_text(self) -> str:
        """The plan as plain text."""
        fewest, most = self.visual_tokens
        train, purify = self.settings.train, self.settings.purify
        lines = [
            f"Model      {self.model}: {self.family}, {_count(self.parameters)} parameters"
            f" ({'counted in the weight files' if self.counted else 'by its config'})",
            f"Weights    {self.settings.dtype}" + (f", {self.settings.bits} bits" if self.settings.bits else ""),
            f"Training   {train.method}: {_count(self.trained)} parameters trained, batch size {train.batch_size}",
            f"Data       {self.data}: {self.samples:,} samples, {self.queries:,} answers, {self.images:,} pictures",
            f"Sequence   {fewest if fewest == most else f'{fewest} to {most}'} visual tokens a picture, "
            f"{self.prefix} positions before the response" + ("" if self.measured_text else " (text length guessed)"),
            "",
            f"Memory at the peak, batch size {purify.batch_size} where nothing else is said",
            f"  {'':<12}{'weights':>12}{'activations':>14}{'gradients':>12}{'optimiser':>12}{'total':>12}",
        ]
        for name, memory in self.memory.items():
            cells = (memory.weights, memory.activations, memory.gradients, memory.optimiser, memory.total)
            widths = (12, 14, 12, 12, 12)
            lines.append(f"  {name:<12}" + "".join(f"{_bytes(n):>{w}}" for n, w in zip(cells, widths, strict=True)))
        lines += ["", "Passes", f"  {'':<12}{'forward':>14}{'backward':>12}{'sequences':>16}"]
        for name, passes in self.passes.items():
            note = "  at most" if passes.at_most else ""
            lines.append(f"  {name:<12}{passes.forward:>14,}{passes.backward:>12,}{passes.rows:>16,}{note}")
        return "\n".join(lines)


def make_plan(model: str | Path | Mapping[str, Any], dataset: Dataset, settings: PlanSettings = PlanSettings()) -> Plan:
    """Plan audit, purification, training and evaluation of a model on a dataset.

    Args:
        model: "builtin", a folder with config.json (weights and tokenizer are looked at if they are there), or the
            fields of a config.json.
        dataset: the data.
        settings: see `PlanSettings`.

    Raises:
        DispError: the folder has no config.json, the model is of no known family, or the training method trains
            nothing in it.
    """
    # 1. The model.
    folder: Path | None = None
    if isinstance(model, Mapping):
        name, config = str(model.get("model_type", "config")), dict(model)
    else:
        name, folder = str(model), _folder(model)
        config = read_config(folder)
    sizes = _sized(config, folder, settings.gen_length)
    stored = stored_parameters(folder) if folder else None
    parameters = sum(stored.values()) + sizes.weights.separate if stored else sizes.weights.total
    # 2. The data: what is asked, and how long it is.
    queries = queries_of(dataset.samples)
    counts = visual_counts(dataset, sizes)
    asked = [PlannedTurn(query.turn, counts[query.sample_id].visual) for query in queries]
    prefix, measured = longest_prefix(queries, counts, folder, sizes)
    # 3. Memory.
    itemsize = ITEMSIZE[settings.dtype]
    weights = weight_bytes(sizes, parameters, itemsize, settings.bits)
    own = settings.purify.decode or own_settings(sizes.model)
    purify, train = replace(settings.purify, decode=own), settings.train
    length = sizes.model.gen_length
    visual = max((count.visual + count.others for count in counts.values()), default=0)
    tiles = max((count.tiles for count in counts.values()), default=0)
    some = max(len(queries), 1)
    scored = Rows(min(purify.scoring.batch_size, some), prefix, length, visual, tiles)
    decoded = Rows(min(purify.batch_size, some), prefix, own.gen_length, visual, tiles)
    trained = trained_parameters(sizes, train.method, train.lora_rank, train.train_vision)
    if not trained:
        raise DispError(f"method {train.method!r} trains nothing in this model; use 'lora' or 'full'")
    guided, cached = own.passes_a_step > 1, own.keeps_prefix
    memory = {
        "encoding": Memory(weights, encoding_bytes(sizes, scored, itemsize)),
        "saliency": Memory(weights, saliency_bytes(sizes, scored, itemsize)),
        "decoding": Memory(weights, decoding_bytes(sizes, decoded, itemsize, cached=cached, guided=guided)),
        "training": training_memory(
            sizes,
            Rows(train.batch_size, prefix, length, visual, tiles),
            itemsize,
            weights,
            trained,
            method=train.method,
            rank=train.lora_rank,
            checkpointing=train.gradient_checkpointing,
            accumulation=int(train.trainer.get("gradient_accumulation_steps", 1)),
        ),
    }
    # 4. Passes.
    scoring, rewriting = purification_passes(asked, purify)
    passes = {
        "score": scoring_passes(asked, purify.scoring),
        "audit": audit_passes(asked, AuditConfig(scoring=purify.scoring, decode=own, batch_size=purify.batch_size)),
        "purify": scoring + rewriting,
        "train": training_passes(train.for_turns(len(asked)), sizes.loss_rows),
        "evaluate": evaluation_passes(asked, settings.decode or own, settings.evaluation_batch_size, settings.attacked),
    }
    images = sum(len(sample.images) for sample in dataset.samples)
    return Plan(
        model=name,
        family=sizes.family,
        data=str(dataset.path),
        settings=settings,
        parameters=parameters,
        counted=stored is not None,
        trained=trained,
        samples=len(dataset.samples),
        queries=len(queries),
        images=images,
        visual_tokens=tokens_a_picture(dataset, counts),
        prefix=prefix,
        measured_text=measured,
        memory=memory,
        passes=passes,
    )


def default_decode(model: str | Path | Mapping[str, Any], gen_length: int | None = None) -> DecodeConfig:
    """The model's own decoding settings, without loading it; of ``gen_length`` slots where it is given."""
    if isinstance(model, Mapping):
        return own_settings(_sized(model, None, gen_length).model)
    folder = _folder(model)
    return own_settings(_sized(read_config(folder), folder, gen_length).model)


def _sized(config: Mapping[str, Any], folder: Path | None, gen_length: int | None) -> Sizes:
    """The model's sizes, with so many response slots where their number is given."""
    sizes = sizes_of(config, folder)
    if gen_length is not None:
        sizes.model.use_gen_length(gen_length)
    return sizes


def _folder(model: str | Path, adapters: Sequence[Path] = ()) -> Path:
    """Where config.json is; an adapter is planned as the model that it was trained on.

    Of a model on the hub only what is small is downloaded. ``adapters`` are those that led to the model.
    """
    folder = resolve(model, weights=False)
    check_new(folder, adapters)
    if (folder / "config.json").is_file() or not is_adapter(folder):
        return folder
    return _folder(base_of(folder), [*adapters, folder])


def _count(number: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,}"


def _bytes(number: int) -> str:
    if number == 0:
        return "-"
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1024:.1f} KiB"
