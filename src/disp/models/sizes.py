"""What a plan needs to know of a model before its weights are there: sizes of its parts, and what pictures cost.

The model itself is built without storage, from the config that the family's loader reads. What it consists of is
counted in it, and its own settings are read off it, so that a plan and the loaded model cannot differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from disp.models.interface import MDLM

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True, kw_only=True)
class LanguageSizes:
    """Sizes of a transformer with SwiGLU layers.

    Attributes:
        layers: how many.
        width: d.
        hidden: width of the feed-forward layer; with experts, of all that one token runs through.
        heads: attention heads.
        kv_heads: heads of keys and values.
        head_dim: width of a head.
        vocab: rows of the embedding and of the head.
    """

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


@dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """Sizes of the vision tower.

    Attributes:
        width: width of a patch's features; 0 for a tower that is no transformer.
        hidden: width of the feed-forward layer.
        patches: patches of one tile; of the largest picture where pictures keep their own size.
        stem: values of the largest stage before the patches, of one tile: pixels, or convolutions.
    """

    width: int
    hidden: int
    patches: int
    stem: int


@dataclass(frozen=True)
class VisualCount:
    """What the images of one sample cost.

    Attributes:
        visual: visual tokens, the ones that can be masked.
        others: separators and newlines besides.
        tiles: pictures that the tower sees.
    """

    visual: int
    others: int
    tiles: int


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How many weights a model has, by part; those that two parts share count once.

    Attributes:
        language: the language model, its embedding and its head included.
        tower: the vision tower.
        projector: what stands between the two.
        matrices: of the language model, the matrices that are quantized and that adapters are put on.
        ends: rows and columns of these matrices, added up: an adapter of rank r has r times as many weights.
        separate: of all these, what lies in a file of its own and not in the checkpoint's weight files.
    """

    language: int
    tower: int
    projector: int
    matrices: int
    ends: int
    separate: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.language + self.tower + self.projector


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """All that a plan needs to know about a model.

    Attributes:
        family: name for people.
        model: the model, without storage; see `without_storage`.
        language: the language model.
        tower: the vision tower.
        projected: features that the projector reads for one tile.
        visual_count: what images of these sizes cost in one sample.
        loss_rows: rows that the training loss makes of one response.
        tied: whether the head is the embedding.
        separate_tower: whether the tower's weights lie in a file of their own.
    """

    family: str
    model: MDLM
    language: LanguageSizes
    tower: TowerSizes
    projected: int
    visual_count: Callable[[Sequence[Size]], VisualCount]
    loss_rows: int = 1
    tied: bool = False
    separate_tower: bool = False

    @cached_property
    def weights(self) -> Weights:
        """The weights of `model`."""
        parts: Counter[str] = Counter()
        for name, parameter in self.model.named_parameters():
            parts[_part_of(self.model, name)] += parameter.numel()
        linears = [_weight(self.model.get_submodule(name)) for name in self.model.lora_modules()]
        return Weights(
            language=parts["language"],
            tower=parts["tower"],
            projector=parts["projector"],
            matrices=sum(weight.numel() for weight in linears),
            ends=sum(sum(weight.shape) for weight in linears),
            separate=parts["tower"] if self.separate_tower else 0,
        )


def without_storage(make: Callable[[], MDLM]) -> MDLM:
    """The model that ``make`` makes, on the device "meta": its tensors have shapes and no values, and take no memory.

    It is made in a moment, whatever its size.
    """
    with torch.device("meta"):
        return make()


def language_sizes(config: Any, **other: int) -> LanguageSizes:
    """Sizes of a language model by a config with Llama's field names; ``other`` sizes are the caller's."""
    sizes = {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "hidden": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab": config.vocab_size,
    }
    return LanguageSizes(**{**sizes, **other})


def tower_sizes(vision: Mapping[str, Any]) -> TowerSizes:
    """Sizes of a `disp.models.parts.vision.VisionTower`; ``vision`` are its arguments."""
    side = vision["image_size"]
    # Values of the pixels and of each stage of the stem, which halves the side, with its activation.
    stages = [2 * 3 * side * side]
    for stage, channels in enumerate(vision.get("stem_channels") or ()):
        stages.append(2 * channels * (side // 2 ** (stage + 1)) ** 2)
    # The input of a stage, without its activation, is there while its output is made.
    largest = max(stage + before // 2 for stage, before in zip(stages, [0, *stages], strict=False))
    return TowerSizes(
        width=vision["hidden_size"],
        hidden=vision["intermediate_size"],
        patches=(side // vision["patch_size"]) ** 2,
        stem=largest,
    )


def _part_of(model: MDLM, name: str) -> str:
    """The part of a model that the parameter of this name belongs to."""
    if any(part in name for part in model.vision_names):
        return "tower"
    return "projector" if any(part in name for part in model.projector_names) else "language"


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight
