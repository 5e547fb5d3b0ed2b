"""Sizes and geometry of LaViDa, and how its published config is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from disp.errors import DispError
from disp.models.lavida.published import PINPOINTS, POOLING, TOKENS, Variant, default_generation, variant_of
from disp.models.llada_v.config import LladaVConfig
from disp.models.parts.anyres import parse_pinpoints
from disp.models.parts.config import llada_sizes, qwen2_sizes
from disp.models.parts.llava import tower_arguments


class LavidaConfig(LladaVConfig):
    """Sizes and geometry of a published LaViDa; see `from_official`.

    ``variant`` is the language model; ``pooling`` how each tile's tokens become fewer.
    """

    model_type = "disp_lavida"

    def __init__(
        self,
        *,
        variant: Variant = "llada",
        pooling: Literal["bilinear", "average", "max", "none"] = "bilinear",
        token_ids: Mapping[str, int] | None = None,
        **kwargs: Any,
    ):
        published = {name: number for name, (_, number) in TOKENS[variant].items()}
        super().__init__(token_ids={**published, **(token_ids or {})}, **kwargs)
        self.variant, self.pooling = variant, pooling

    @classmethod
    def from_official(
        cls, config: Mapping[str, Any], vision: Mapping[str, Any] | None = None, **token_ids: int
    ) -> LavidaConfig:
        """The config of a checkpoint.

        Args:
            config: the published ``config.json``. ``mm_spatial_pool_mode`` "none" switches pooling off: the "lowres"
                checkpoint needs that, for the published code is told so by its environment and not by the config. A
                section ``"disp"``, which the published code does not read, may hold ``gen_length``, ``pooling`` and
                ``token_ids``.
            vision: sizes of the vision tower before its last layer is left out; SigLIP-so400m's by default.
            token_ids: ids under the names of `TOKENS`, where they are not the published ones.

        Raises:
            DispError: the config asks for something that no published LaViDa has.
        """
        variant = variant_of(config)
        _check_supported(config, variant)
        extra = config.get("disp", {})
        vision = tower_arguments(vision)
        ids = {
            name: config[f"{name}_token_id"] for name in ("eos", "mask") if config.get(f"{name}_token_id") is not None
        }
        length = extra.get("gen_length", 64)
        return cls(
            variant=variant,
            pooling=extra.get("pooling") or config.get("mm_spatial_pool_mode") or "bilinear",
            token_ids={**ids, **extra.get("token_ids", {}), **token_ids},
            pinpoints=parse_pinpoints(config.get("image_grid_pinpoints", PINPOINTS), vision["image_size"]),
            max_ratio_sq=None,
            vision=vision,
            gen_length=length,
            generation=default_generation(variant, length),
            **(llada_sizes(config, rope_theta=500_000.0) if variant == "llada" else qwen2_sizes(config)),
        )


def _check_supported(config: Mapping[str, Any], variant: Variant) -> None:
    expected: dict[str, tuple[Any, ...]] = {
        "mm_projector_type": ("mlp2x_gelu", None),
        "mm_patch_merge_type": ("spatial_unpad", None),
        "image_aspect_ratio": ("anyres", None),
        "mm_spatial_pool_mode": (*POOLING, None),
    }
    if variant == "llada":
        off = (False, None)
        expected |= {"activation_type": ("silu", None), "block_type": ("llama", None), "layer_norm_type": ("rms", None)}
        expected |= {name: off for name in ("alibi", "include_bias", "weight_tying", "input_emb_norm", "scale_logits")}
        expected["attention_layer_norm"] = off
    else:
        expected |= {"hidden_act": ("silu", None), "tie_word_embeddings": (False, None), "rope_scaling": (None,)}
    for name, values in expected.items():
        value = config.get(name)
        if name == "rope_scaling" and isinstance(value, Mapping):
            value = None if value.get("rope_type", value.get("type")) in ("default", None) else value
        if value not in values:
            raise DispError(f"config.json: {name} {value!r} is not supported for LaViDa; expected {values[0]!r}")
