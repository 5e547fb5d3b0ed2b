"""Sizes and token ids of MMaDA, and how its published config is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from disp.errors import DispError
from disp.models.mmada.published import SPECIAL_TOKENS
from disp.models.parts.config import LanguageConfig, llada_sizes

# Field of the published config -> the only values that this architecture has.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "block_group_size": (1,),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "alibi": (False,),
    "weight_tying": (False,),
    "include_bias": (False,),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
}


SIZES: dict[str, Any] = {
    "vocab_size": 134656,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
}


class MMadaConfig(LanguageConfig):
    """Sizes and token ids of an MMaDA model.

    ``token_ids`` holds the ids of `SPECIAL_TOKENS`; ``vision`` the arguments of `disp.models.mmada.vq.VQEncoder`, or
    None for a model without an image tokenizer; ``image_size`` is the side of the picture that it is shown; ``squash``
    says whether pictures are squashed to the square rather than cropped; ``sizes`` are those of `LanguageConfig`,
    `SIZES` where they are not given.
    """

    model_type = "disp_mmada"

    def __init__(
        self,
        *,
        token_ids: Mapping[str, int] | None = None,
        image_token_offset: int = 126349,
        codebook_size: int = 8192,
        vision: dict[str, Any] | None = None,
        image_size: int = 512,
        squash: bool = False,
        gen_length: int = 512,
        **sizes: Any,
    ):
        super().__init__(**{**SIZES, **sizes})
        self.token_ids = {**{name: number for name, (_, number) in SPECIAL_TOKENS.items()}, **(token_ids or {})}
        self.image_token_offset, self.codebook_size = image_token_offset, codebook_size
        self.vision, self.image_size, self.squash = vision, image_size, squash
        self.gen_length = gen_length

    @classmethod
    def from_official(
        cls, config: Mapping[str, Any], vision: dict[str, Any] | None = None, **token_ids: int
    ) -> MMadaConfig:
        """The config of a published checkpoint.

        Args:
            config: its ``config.json``. A section ``"disp"``, which the published code does not read, may hold
                ``gen_length`` (512 by default, the published one), ``squash`` and ``token_ids``.
            vision: arguments of `VQEncoder`; None for a model without an image tokenizer.
            token_ids: ids under the names of `SPECIAL_TOKENS`, where they are not the published ones.

        Raises:
            DispError: a field has a value that MMaDA's architecture does not have, or a size is missing.
        """
        for name, values in _SUPPORTED.items():
            if config.get(name, values[0]) not in values:
                raise DispError(f"config.json: {name} is {config[name]!r}, but MMaDA has {values[0]!r}; not supported")
        stride = 2 ** (len(vision["multipliers"]) - 1) if vision else 16
        extra = config.get("disp", {})
        mask = {"mask": config["mask_token_id"]} if "mask_token_id" in config else {}
        return cls(
            **llada_sizes(config, rope_theta=10_000.0),
            token_ids={**mask, **token_ids, **extra.get("token_ids", {})},
            codebook_size=2 ** vision["code_bits"] if vision else config.get("codebook_size", 8192),
            vision=vision,
            image_size=math.isqrt(config.get("num_vq_tokens", 1024)) * stride,
            squash=extra.get("squash", False),
            gen_length=extra.get("gen_length", 512),
        )
