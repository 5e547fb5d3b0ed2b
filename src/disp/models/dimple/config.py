"""Sizes and token ids of Dimple, and how its published config files are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disp.errors import DispError
from disp.models.checkpoint import read_json
from disp.models.dimple.published import PROCESSING, SIZES, VISION
from disp.models.parts.config import LanguageConfig, qwen2_sizes, required


class DimpleConfig(LanguageConfig):
    """Sizes and token ids of a Dimple model.

    ``vision`` holds the arguments of the vision tower's config, ``processing`` how pictures are resized and
    normalised, ``mrope_section`` how many of a head's frequencies turn with time, row and column; ``generation`` the
    decoding defaults; ``sizes`` are those of `LanguageConfig`, `SIZES` where they are not given.
    """

    model_type = "disp_dimple"

    def __init__(
        self,
        *,
        mrope_section: Sequence[int] = (16, 24, 24),
        mask_token_id: int = 151666,
        image_token_id: int = 151655,
        vision_start_token_id: int = 151652,
        vision_end_token_id: int = 151653,
        end_token_ids: Sequence[int] = (151645, 151643),
        vision: dict[str, Any] | None = None,
        processing: dict[str, Any] | None = None,
        gen_length: int = 64,
        generation: dict[str, Any] | None = None,
        **sizes: Any,
    ):
        super().__init__(**{**SIZES, **sizes})
        self.mrope_section = list(mrope_section)
        self.mask_token_id, self.image_token_id, self.end_token_ids = mask_token_id, image_token_id, list(end_token_ids)
        self.vision_start_token_id, self.vision_end_token_id = vision_start_token_id, vision_end_token_id
        self.vision = {**VISION, **(vision or {})}
        self.processing = {**PROCESSING, **(processing or {})}
        self.gen_length, self.generation = gen_length, generation or {"steps": gen_length}

    @classmethod
    def from_official(cls, config: Mapping[str, Any], vision: Mapping[str, Any] | None = None) -> DimpleConfig:
        """The config of a published checkpoint.

        Args:
            config: its ``config.json``. A section ``"disp"``, which the published code does not read, may hold
                ``gen_length``.
            vision: sizes of the vision tower in place of those in ``config``.

        Raises:
            DispError: a size is missing, or the config asks for something that Dimple does not have.
        """
        sizes = dict(vision or config.get("vision_config") or {})
        scaling = config.get("rope_scaling") or {}
        rope = config.get("rope_parameters") or {}
        sections = config.get("mrope_section") or scaling.get("mrope_section") or rope.get("mrope_section")
        for name, value, expected in (
            ("hidden_act", config.get("hidden_act", "silu"), "silu"),
            ("tie_word_embeddings", bool(config.get("tie_word_embeddings")), False),
            ("use_sliding_window", bool(config.get("use_sliding_window")), False),
            ("rope_scaling", scaling.get("rope_type", scaling.get("type", "default")) in ("default", "mrope"), True),
        ):
            if value != expected:
                raise DispError(f"config.json: {name} is {config[name]!r}; Dimple has no such thing, so not supported")
        length = config.get("disp", {}).get("gen_length", 64)
        width, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
        sections = sections or (16, 24, 24)
        if sum(sections) * 2 != width // heads:
            raise DispError(
                f"config.json: mrope_section {list(sections)} must add up to half a head, {width // heads // 2}"
            )
        ids = {
            name: config[name]
            for name in ("mask_token_id", "image_token_id", "vision_start_token_id", "vision_end_token_id")
            if config.get(name) is not None
        }
        return cls(
            **qwen2_sizes(config),
            mrope_section=sections,
            end_token_ids=(_first(config.get("eos_token_id"), 151645), _first(config.get("pad_token_id"), 151643)),
            vision={name: value for name, value in sizes.items() if name in VISION},
            gen_length=length,
            # The model card's.
            generation={
                "steps": length,
                "sampler": "dim",
                "algorithm": "origin",
                "temperature": 0.2,
                "top_p": 0.95,
                "top_k": 50,
                "confidence_threshold": 0.95,
                "prefix_cache": True,
            },
            **ids,
        )


def _first(value: int | Sequence[int] | None, default: int) -> int:
    return default if value is None else value if isinstance(value, int) else value[0]


def read_config(folder: Path) -> DimpleConfig:
    """The config of a folder, with what ``preprocessor_config.json`` says where there is one.

    Raises:
        DispError: a file is missing, damaged or not Dimple's.
    """
    config = DimpleConfig.from_official(read_json(folder / "config.json"))
    if (folder / "preprocessor_config.json").is_file():
        config.processing |= processing_of(read_json(folder / "preprocessor_config.json"), config.vision)
    return config


def processing_of(settings: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """`PROCESSING` as a published ``preprocessor_config.json`` has it.

    Raises:
        DispError: it cuts patches that the tower does not take.
    """
    size = settings.get("size") or {}
    found = {
        "min_pixels": settings.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": settings.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge"),
        **{name: settings.get(name) for name in ("rescale_factor", "image_mean", "image_std")},
    }
    names = (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size"), ("temporal_patch_size",) * 2)
    for theirs, ours in names:
        if settings.get(theirs, vision[ours]) != vision[ours]:
            raise DispError(
                f"preprocessor_config.json: {theirs} is {settings[theirs]}, but the tower of config.json takes "
                f"{vision[ours]}; the two files are of different models"
            )
    return {name: value for name, value in found.items() if value is not None}
