"""Sizes, token ids and decoding settings of LaViDa, and how its published config is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from disp.errors import DispError
from disp.models.llada_v.config import SIGLIP, LladaVOfficialConfig
from disp.models.parts.anyres import parse_pinpoints

Variant = Literal["llada", "dream"]

# Name, token and id of the special tokens of each variant. The ids of a folder's own tokenizer come before these.
# "fill" stands for a gap in fill-in-the-middle training, where it is neither masked nor predicted.
TOKENS: dict[str, dict[str, tuple[str, int]]] = {
    "llada": {
        "mask": ("<|mdm_mask|>", 126336),
        "bos": ("<|startoftext|>", 126080),
        "eos": ("<|endoftext|>", 126081),
        "eot": ("<|eot_id|>", 126348),
        "fill": ("<|reserved_token_1|>", 126085),
    },
    "dream": {
        "mask": ("<|mask|>", 151666),
        "bos": ("<|beginoftext|>", 151665),
        "eos": ("<|endoftext|>", 151643),
        "eot": ("<|im_end|>", 151645),
    },
}
PINPOINTS = ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))
POOLING = ("bilinear", "average", "max", "none")
# Decoding as in the published scripts for captions: half as many steps as tokens, most tokens in the first ones.
_SETTINGS: dict[str, dict[str, Any]] = {
    "llada": {"prefix_cache": True},
    # The published results were made with version 4 of the transformers library, which set top_k behind the back of
    # its users.
    "dream": {"prefix_cache": True, "sampler": "dream", "algorithm": "topk_margin", "top_k": 50},
}
_HALF = {"schedule": "shift", "schedule_shift": 0.33}
# Slots of an answer in each task of the published evaluation, which takes a step a slot.
_TASKS = {
    **dict.fromkeys(("mme", "vqav2_val_lite", "textvqa_val", "chartqa", "scienceqa_full", "ai2d", "mmmu_val"), 16),
    **dict.fromkeys(("docvqa_val", "infovqa_val_lite"), 32),
    **dict.fromkeys(("mmbench_en_dev_lite", "mathvista_testmini_format", "mathverse_testmini_vision_dominant"), 100),
}
_CAPTIONS = (("coco2017_cap_val", 64), ("coco2017_cap_val_lite", 32))


class LavidaConfig(LladaVOfficialConfig):
    """Sizes and geometry of a published LaViDa; see `from_official`.

    ``variant`` is the language model; ``pooling`` how each tile's tokens become fewer.
    """

    model_type = "disp_lavida"

    def __init__(
        self,
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
        variant: Variant = "llada" if "d_model" in config else "dream"
        _check_supported(config, variant)
        extra = config.get("disp", {})
        vision = {**SIGLIP, **{name: value for name, value in (vision or {}).items() if name in SIGLIP}}
        vision["num_hidden_layers"] -= 1
        ids = {
            name: config[f"{name}_token_id"] for name in ("eos", "mask") if config.get(f"{name}_token_id") is not None
        }
        length = extra.get("gen_length", 64)
        generation = {**_SETTINGS[variant], **_half_steps(variant, length)}
        return cls(
            variant=variant,
            pooling=extra.get("pooling") or config.get("mm_spatial_pool_mode") or "bilinear",
            token_ids={**ids, **extra.get("token_ids", {}), **token_ids},
            pinpoints=parse_pinpoints(config.get("image_grid_pinpoints", PINPOINTS), vision["image_size"]),
            max_ratio_sq=None,
            vision=vision,
            gen_length=length,
            generation=generation,
            **(_llada_sizes(config) if variant == "llada" else _dream_sizes(config)),
        )


def generation_presets(variant: Variant) -> dict[str, dict[str, Any]]:
    """The published decoding settings of each task."""
    own = _SETTINGS[variant]
    return {
        **{task: {**own, "gen_length": length, "steps": length} for task, length in _TASKS.items()},
        **{task: {**own, "gen_length": size, **_half_steps(variant, size)} for task, size in _CAPTIONS},
    }


def _half_steps(variant: Variant, length: int) -> dict[str, Any]:
    if variant == "dream":
        return {**_HALF, "steps": length, "step_ratio": 0.5}  # of whose time grid half is run
    return {**_HALF, "steps": max(length // 2, 1)}


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


def _llada_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config["n_heads"]
    kv_heads = config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads)
    return {
        "vocab_size": config.get("embedding_size") or config["vocab_size"],
        "hidden_size": config["d_model"],
        "intermediate_size": config.get("mlp_hidden_size") or int(config["mlp_ratio"] * config["d_model"]),
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "attention_bias": bool(config.get("include_qkv_bias")),
        "rope_theta": config.get("rope_theta") or 500_000.0,
        "rms_norm_eps": config.get("rms_norm_eps") or 1e-5,
    }


def _dream_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    rope = config.get("rope_parameters") or {}
    return {
        **{name: config[name] for name in names},
        "num_key_value_heads": config.get("num_key_value_heads"),
        "attention_bias": True,
        "rope_theta": config.get("rope_theta") or rope.get("rope_theta") or 1_000_000.0,
        "rms_norm_eps": config.get("rms_norm_eps") or 1e-6,
    }


def detect(config: Mapping[str, Any]) -> bool:
    """Whether a published ``config.json`` is that of a LaViDa: LLaDA-V has the same model type, other field names."""
    kind = config.get("model_type")
    return kind == "llava_dream" or (kind == "llava_llada" and {"d_model", "n_layers"} <= config.keys())
