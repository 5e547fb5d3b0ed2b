"""What the rest of `disp` asks of a family of models; `disp.models.families` lists them all.

A family's ``family.py`` holds its `Family`. It is imported to recognise a checkpoint, to plan a run and to list
recipes, so it loads neither torch nor the model: the function that loads a model imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disp.models.interface import MDLM
    from disp.models.sizes import Sizes

Config = Mapping[str, Any]  # the fields of a checkpoint's config.json

# What LLaVA's training scripts set, and those of the models that grew out of it; fields of a `Recipe`.
LLAVA_TRAINING: Config = {"weight_decay": 0.0, "max_grad_norm": 1.0, "warmup_share": 0.03, "batch_size": 1}


@dataclass(frozen=True)
class Recipe:
    """Fine-tuning settings.

    Attributes:
        settings: fields of `disp.training.config.TrainConfig`, and ``rows_a_step``, the batch over all devices.
        trains: what is trained, in words.
        note: what else there is to know, in words.
    """

    settings: Mapping[str, Any]
    trains: str = "all but the vision tower"
    note: str = ""


@dataclass(frozen=True)
class Published:
    """One published model of a family, as docs/models/index.md lists it.

    Attributes:
        name: what it is called, where the family has several; otherwise empty.
        hub_ids: ids on the Hugging Face hub.
        licence: of the published code.
        parameters: how many, as `disp plan` counts them, with their unit.
        visual_tokens: of a picture, and in brackets of one of 640×480, as `disp plan` counts them.
    """

    hub_ids: tuple[str, ...]
    licence: str
    parameters: str
    visual_tokens: str
    name: str = ""


@dataclass(frozen=True)
class About:
    """What the docs say of a family, each in a few words.

    Attributes:
        page: its page beside docs/models/index.md.
        published: its published models.
        masked: what stands in for a masked visual token.
        gradients: where saliency takes gradients.
        open_slots: what an open response slot holds.
        prefix_cache: what is cached of a prompt, and whether that is exact.
    """

    page: str
    published: tuple[Published, ...]
    masked: str = "embedding of the mask token"
    gradients: str = "projected tokens"
    open_slots: str = "mask token"
    prefix_cache: str = "none"


def _no_presets(config: Config) -> Mapping[str, Mapping[str, Any]]:
    return {}


@dataclass(frozen=True)
class Family:
    """Everything that the rest of `disp` asks of a family of models.

    Attributes:
        name: its name in `disp.models.families.FAMILIES`.
        title: its name for people.
        detect: whether a config.json is of this family.
        load: ``load(folder, dtype=..., device=...)`` returns the model in a folder with its tokenizer, in evaluation
            mode. Raises `DispError` where a file is missing or damaged.
        sizes: ``sizes(config, folder)`` returns what a plan needs of a checkpoint with this config.json; ``folder`` is
            where it lies, with what small files there are beside it, or None for a config alone. No weights are read.
            Raises `KeyError` where a field is missing, `DispError` where the config is not of a supported model.
        options: further arguments that ``load`` takes, see `disp.models.checkpoint.assemble`.
        keeps_layout: whether checkpoints have a published layout, which saving keeps: key names, config and the files
            beside it. Otherwise they are in the library's own format, as ``save_pretrained`` writes it.
        recipes: published fine-tuning settings by name.
        presets: published decoding settings of a checkpoint with this config.json, by benchmark; arguments of
            `disp.decoding.samplers.decode_config`.
        folder: of a model that comes with `disp` and goes by the family's name.
        about: what the docs say; None for a family that they do not list.
    """

    name: str
    title: str
    detect: Callable[[Config], bool]
    load: Callable[..., MDLM]
    sizes: Callable[[Config, Path | None], Sizes]
    options: tuple[str, ...] = ("device_map", "quantization")
    keeps_layout: bool = True
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    presets: Callable[[Config], Mapping[str, Mapping[str, Any]]] = _no_presets
    folder: Path | None = None
    about: About | None = None
