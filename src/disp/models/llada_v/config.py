"""Sizes, token ids and geometry of published LLaDA-V checkpoints, and how their config is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from disp.errors import DispError
from disp.models.builtin.model import LladaVConfig
from disp.models.llada_v.published import SIGLIP, SPECIAL_TOKENS
from disp.models.parts.anyres import parse_pinpoints


class LladaVOfficialConfig(LladaVConfig):
    """Sizes and geometry of a published LLaDA-V; see `from_official`.

    ``token_ids`` holds the ids of `SPECIAL_TOKENS`; ``pinpoints`` the sizes that a picture may be tiled to, and
    ``max_ratio_sq`` how many tiles' tokens it may become.
    """

    model_type = "disp_llada_v_official"

    def __init__(
        self,
        token_ids: Mapping[str, int] | None = None,
        pinpoints: Sequence[Sequence[int]] = ((384, 384),),
        max_ratio_sq: int | None = None,
        **kwargs: Any,
    ):
        self.token_ids = {**{name: number for name, (_, number) in SPECIAL_TOKENS.items()}, **(token_ids or {})}
        kwargs.setdefault("vision", dict(SIGLIP))
        kwargs["mask_token_id"] = self.token_ids["mask"]
        kwargs["end_token_ids"] = (self.token_ids["eot"], self.token_ids["eos"])
        super().__init__(**kwargs)
        self.pinpoints = [list(pair) for pair in pinpoints]
        self.max_ratio_sq = max_ratio_sq

    @property
    def candidates(self) -> list[tuple[int, int]]:
        """``pinpoints`` as pairs; a config read from JSON holds lists."""
        return [(width, height) for width, height in self.pinpoints]

    @classmethod
    def from_official(
        cls, config: Mapping[str, Any], vision: Mapping[str, Any] | None = None, **token_ids: int
    ) -> LladaVOfficialConfig:
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
        vision = {**SIGLIP, **{name: value for name, value in (vision or {}).items() if name in SIGLIP}}
        vision["num_hidden_layers"] -= 1
        aspect = str(config.get("image_aspect_ratio", "anyres_max_4"))
        ratio = re.fullmatch(r"anyres(?:_max_(\d+))?", aspect)
        if ratio is None:
            raise DispError(f"config.json: image_aspect_ratio {aspect!r} is not supported; expected 'anyres_max_4'")
        rope = config.get("rope_parameters") or {}
        ids = {**extra.get("token_ids", {}), **token_ids}
        length = extra.get("gen_length", 128)
        return cls(
            token_ids=ids,
            pinpoints=parse_pinpoints(config.get("image_grid_pinpoints", "(1x1),...,(6x6)"), vision["image_size"]),
            max_ratio_sq=int(ratio[1]) if ratio[1] else None,
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config.get("num_key_value_heads"),
            attention_bias=config.get("attention_bias", False),
            rope_theta=config.get("rope_theta") or rope.get("rope_theta") or 500_000.0,
            rms_norm_eps=config.get("rms_norm_eps", 1e-5),
            initializer_range=config.get("initializer_range", 0.02),
            vision=vision,
            gen_length=length,
            generation={"steps": length},
        )
