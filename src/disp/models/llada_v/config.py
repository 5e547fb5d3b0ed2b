"""Sizes, token ids and geometry of published LLaDA-V checkpoints, and how their config is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from disp.errors import DispError
from disp.models.llada_v.published import SPECIAL_TOKENS
from disp.models.parts.anyres import parse_pinpoints
from disp.models.parts.config import LanguageConfig, llama_sizes
from disp.models.parts.llava import SIGLIP, tower_arguments


class LladaVConfig(LanguageConfig):
    """Sizes and geometry of a published LLaDA-V; see `from_official`.

    ``token_ids`` holds the ids of `SPECIAL_TOKENS`; ``pinpoints`` the sizes that a picture may be tiled to, and
    ``max_ratio_sq`` how many tiles' tokens it may become; ``vision`` the arguments of
    `disp.models.parts.vision.VisionTower`; ``generation`` the decoding defaults; ``sizes`` are those of
    `LanguageConfig`.
    """

    model_type = "disp_llada_v_official"

    def __init__(
        self,
        *,
        token_ids: Mapping[str, int] | None = None,
        pinpoints: Sequence[Sequence[int]] = ((384, 384),),
        max_ratio_sq: int | None = None,
        vision: dict[str, Any] | None = None,
        gen_length: int = 32,
        generation: dict[str, Any] | None = None,
        **sizes: Any,
    ):
        super().__init__(**sizes)
        self.token_ids = {**{name: number for name, (_, number) in SPECIAL_TOKENS.items()}, **(token_ids or {})}
        self.pinpoints = [list(pair) for pair in pinpoints]
        self.max_ratio_sq = max_ratio_sq
        self.vision = dict(SIGLIP) if vision is None else vision
        self.gen_length, self.generation = gen_length, generation or {}

    @property
    def candidates(self) -> list[tuple[int, int]]:
        """``pinpoints`` as pairs; a config read from JSON holds lists."""
        return [(width, height) for width, height in self.pinpoints]

    @classmethod
    def from_official(
        cls, config: Mapping[str, Any], vision: Mapping[str, Any] | None = None, **token_ids: int
    ) -> LladaVConfig:
        """The config of a checkpoint.

        Args:
            config: the published ``config.json``. A section ``"disp"``, which the published code does not read, may
                hold ``gen_length`` and ``token_ids``.
            vision: sizes of the vision tower before its last layer is left out; SigLIP-so400m's by default.
            token_ids: ids under the names of `SPECIAL_TOKENS`, where they are not the published ones.

        Raises:
            DispError: the config asks for something that no published LLaDA-V has.
        """
        for name, value, expected in (
            ("mm_projector_type", config.get("mm_projector_type", "mlp2x_gelu"), ("mlp2x_gelu",)),
            ("hidden_act", config.get("hidden_act", "silu"), ("silu",)),
            ("mm_patch_merge_type", config.get("mm_patch_merge_type", "spatial_unpad"), ("spatial_unpad",)),
        ):
            if value not in expected:
                raise DispError(f"config.json: {name} {value!r} is not supported for LLaDA-V; expected {expected[0]!r}")
        extra = config.get("disp", {})
        vision = tower_arguments(vision)
        aspect = str(config.get("image_aspect_ratio", "anyres_max_4"))
        ratio = re.fullmatch(r"anyres(?:_max_(\d+))?", aspect)
        if ratio is None:
            raise DispError(f"config.json: image_aspect_ratio {aspect!r} is not supported; expected 'anyres_max_4'")
        ids = {**extra.get("token_ids", {}), **token_ids}
        length = extra.get("gen_length", 128)
        return cls(
            token_ids=ids,
            pinpoints=parse_pinpoints(config.get("image_grid_pinpoints", "(1x1),...,(6x6)"), vision["image_size"]),
            max_ratio_sq=int(ratio[1]) if ratio[1] else None,
            **llama_sizes(config, rope_theta=500_000.0, rms_norm_eps=1e-5),
            vision=vision,
            gen_length=length,
            generation={"steps": length},
        )
