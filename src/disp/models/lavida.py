"""LaViDa (arXiv 2505.16839) on LLaDA and on Dream.

The arrangement of LLaDA-V with its tiles, and these differences: each tile's tokens are pooled after the projector;
the training loss runs on two complementary masks without the 1/t weight; decoding may freeze the prompt's keys and
values. The Dream variant has grouped key heads and predicts each token one position earlier.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2 import Qwen2Tokenizer

from disp.errors import DispError
from disp.models.anyres import Merged, parse_pinpoints
from disp.models.checkpoint import assemble, read_json, read_weights, weight_files
from disp.models.interface import Prefix
from disp.models.llada_v_official import (
    CHAT_TEMPLATE,
    IGNORED,
    MIN_RATIO,
    SIGLIP,
    LladaVOfficial,
    LladaVOfficialConfig,
    model_key,
    official_key,
)
from disp.models.transformer import Block, attend, attention_inputs, rotate

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
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
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

_EMBEDDING = {"llada": "model.transformer.wte.weight", "dream": "model.embed_tokens.weight"}
# LLaDA's own key names and Llama's. `ff_out` is two different things at two levels.
_TOP = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
_LAYER = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}
_LLAMA_LAYER = {llama: own for own, llama in _LAYER.items()}


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


class Lavida(LladaVOfficial):
    """A published LaViDa; see `disp.models.interface.MDLM` for what each method promises."""

    config_class = LavidaConfig  # type: ignore[assignment]  # the library wraps config classes
    config: LavidaConfig

    def __init__(self, config: LavidaConfig):
        super().__init__(config)
        # No token is banned, and the end of text is an end like that of the turn: both were trained.
        self.banned_token_ids = ()
        self.generation_defaults = dict(config.generation)
        own = _SETTINGS[config.variant]
        self.generation_presets = {
            **{task: {**own, "gen_length": length, "steps": length} for task, length in _TASKS.items()},
            **{task: {**own, "gen_length": size, **_half_steps(config.variant, size)} for task, size in _CAPTIONS},
        }
        # Rows by which logits are shifted: Dream's row i predicts token i + 1.
        self.shift = int(config.variant == "dream")

    # --- tensors to logits ----------------------------------------------------------------------------------------

    def _merged(self, tokens: Tensor, sizes: Sequence[Sequence[int]]) -> list[Merged]:
        """Projected tiles of all images ``[tiles, N, d]`` to each image's tokens."""
        return super()._merged(pool_tiles(tokens, self.config.pooling), sizes)

    def denoise(self, prefix: Prefix, response: Tensor, cache: Any = None) -> Tensor:
        """One denoising pass: int64 ``[B, L]`` to logits ``[B, L, V]``, aligned in both variants.

        ``cache`` is that of `cache_prefix`: the prompt has then not seen the response.
        """
        length = response.shape[1]
        if cache is not None:
            hidden = self._hidden_after(prefix, response, cache)
            if not self.shift:
                return self.lm_head(hidden)
            return torch.cat((cache["first_logits"][:, None], self.lm_head(hidden[:, :-1])), dim=1)
        return self.lm_head(self._response_hidden(prefix, response, length + self.shift)[:, :length])

    def unaligned_logits(self, prefix: Prefix, response: Tensor) -> Tensor:
        """Logits ``[B, 1 + L, V]`` as the head puts them out: of the last prompt position, then of the response."""
        return self.lm_head(self._response_hidden(prefix, response, 1 + response.shape[1]))

    def _response_hidden(self, prefix: Prefix, response: Tensor, rows: int) -> Tensor:
        embeds = torch.cat((prefix.embeds, self.model.embed_tokens(response)), dim=1)
        return self._hidden(embeds, _valid(prefix, response.shape[1]), rows=rows)

    # --- prefix cache ---------------------------------------------------------------------------------------------

    def cache_prefix(self, prefix: Prefix) -> dict[str, Any]:
        """Keys and values of a prompt that sees itself only (the published ``prefix_lm``).

        Answers differ from those without it, for there the prompt sees the response too.

        Returns:
            ``keys`` and ``values``, one tensor ``[B, kv_heads, P, head_dim]`` a layer; for Dream also
            ``first_logits`` ``[B, V]``, the prompt's prediction of slot 0.
        """
        table, mask = attention_inputs(prefix.attention_mask, self.config.head_dim, self.config.rope_theta)
        x = prefix.embeds
        keys, values = [], []
        for layer in self.model.layers:
            x, key, value = _block_after(layer, x, table, mask, None)
            keys.append(key)
            values.append(value)
        cache: dict[str, Any] = {"keys": tuple(keys), "values": tuple(values)}
        if self.shift:
            cache["first_logits"] = self.lm_head(self.model.norm(x[:, -1]))
        return cache

    def _hidden_after(self, prefix: Prefix, response: Tensor, cache: Mapping[str, Any]) -> Tensor:
        """Hidden states ``[B, L, d]`` of a response behind a cached prompt."""
        length = response.shape[1]
        (cos, sin), mask = attention_inputs(_valid(prefix, length), self.config.head_dim, self.config.rope_theta)
        table = cos[:, :, -length:], sin[:, :, -length:]
        x = self.model.embed_tokens(response)
        for layer, key, value in zip(self.model.layers, cache["keys"], cache["values"], strict=True):
            x, _, _ = _block_after(layer, x, table, mask, (key, value))
        return self.model.norm(x)

    # --- training -------------------------------------------------------------------------------------------------

    def noisy_loss(self, prefix: Prefix, clean: Tensor, ratio: Tensor, uniforms: Tensor) -> Tensor:
        """`sequence_loss` of one response a row, end tokens and padding included, as published."""
        before = torch.full(prefix.attention_mask.shape, IGNORED, device=clean.device)
        return self.sequence_loss(
            torch.cat((prefix.embeds, self.model.embed_tokens(clean)), dim=1),
            torch.cat((before, clean), dim=1),
            ratio,
            # Nothing of the prompt is masked, so the smallest uniform is looked for in the response.
            torch.cat((torch.ones(before.shape, device=clean.device), uniforms.float()), dim=1),
            _valid(prefix, clean.shape[1]),
        )

    def sequence_loss(  # type: ignore[override]  # no conversation mask in this family
        self,
        embeds: Tensor,
        labels: Tensor,
        ratio: Tensor,
        uniforms: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The published training loss on whole sequences: mean cross-entropy over two complementary masks.

        Each supervised token is masked, and predicted, in exactly one of the two. There is no 1/t weight.

        Args:
            embeds: float ``[B, T, d]``, prompts, images and answers.
            labels: int64 ``[B, T]``, -100 where nothing is supervised.
            ratio: float ``[B]``, t.
            uniforms: float ``[B, T]``.
            attention_mask: bool ``[B, T]``, false at padding; None for no padding.
        """
        # 1. The two masks, one below the other.
        masked, targets = complementary_pair(labels, ratio, uniforms, fill=self.config.token_ids.get("fill"))
        noisy = torch.where(masked[..., None], self.mask_embedding.to(embeds.dtype), embeds.repeat(2, 1, 1))
        valid = masked.new_ones(embeds.shape[:2]) if attention_mask is None else attention_mask
        # 2. The row that predicts a token: its own, or in Dream the one before.
        length = targets.shape[1]
        targets = targets[:, self.shift :]
        wanted = targets != IGNORED
        first = int(wanted.any(0).long().argmax()) if wanted.any() else 0
        hidden = self._hidden(noisy, valid.repeat(2, 1), rows=length - first)
        # 3. Logits of the targets only: with a large vocabulary the others' would take most of the memory.
        wanted, targets = wanted[:, first:], targets[:, first:]
        logits = self.lm_head(hidden[:, : wanted.shape[1]][wanted]).float()
        return F.cross_entropy(logits, targets[wanted], reduction="sum") / wanted.sum().clamp(min=1)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def official_state_dict(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights, or those of ``state_dict``, under the published names."""
        weights = self.state_dict() if state_dict is None else state_dict
        rename = to_llada if self.config.variant == "llada" else official_key
        return {rename(name): tensor for name, tensor in weights.items()} | self.unused_weights


def _valid(prefix: Prefix, length: int) -> Tensor:
    """Bool ``[B, P + L]``: the prefix's attention mask, and true for a response of ``length`` tokens."""
    return F.pad(prefix.attention_mask, (0, length), value=True)


def _block_after(
    block: Block,
    x: Tensor,
    table: tuple[Tensor, Tensor],
    mask: Tensor | None,
    past: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer on ``x`` ``[B, T, d]``, which sees itself and, before that, cached keys and values.

    Returns:
        The layer's output ``[B, T, d]``, and the keys (rotated) and values ``[B, kv_heads, T, head_dim]`` of ``x``.
    """
    attention = block.self_attn
    normed = block.input_layernorm(x)
    query, key, value = (
        project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = rotate(query, table), rotate(key, table)
    all_keys = key if past is None else torch.cat((past[0], key), dim=2)
    all_values = value if past is None else torch.cat((past[1], value), dim=2)
    attended = attend(query, all_keys, all_values, mask, attention.implementation)
    x = x + attention.o_proj(attended.transpose(1, 2).flatten(2))
    return x + block.mlp(block.post_attention_layernorm(x)), key, value


def pool_tiles(tokens: Tensor, mode: str) -> Tensor:
    """Each tile's tokens ``[tiles, g * g, d]`` at half the resolution; "none" leaves them as they are.

    "bilinear" rounds an odd side up (27 to 14), "average" and "max" round it down.
    """
    if mode == "none":
        return tokens
    side = math.isqrt(tokens.shape[1])
    maps = tokens.transpose(1, 2).unflatten(2, (side, side))
    if mode == "bilinear":
        maps = F.interpolate(maps, (math.ceil(side / 2), math.ceil(side / 2)), mode="bilinear")
    elif mode == "average":
        maps = F.avg_pool2d(maps, 2)
    elif mode == "max":
        maps = F.max_pool2d(maps, 2)
    else:
        raise ValueError(f"pooling must be one of {', '.join(POOLING)}, got {mode!r}")
    return maps.flatten(2).transpose(1, 2)


def complementary_pair(
    labels: Tensor, ratio: Tensor, uniforms: Tensor, fill: int | None = None
) -> tuple[Tensor, Tensor]:
    """The two masks of LaViDa's loss.

    A token is drawn with probability p = (1 - 0.001) t + 0.001, and the one of each row's smallest uniform always. The
    first mask holds the supervised tokens that were drawn, the second the others.

    Args:
        labels: int64 ``[B, T]``, -100 where nothing is supervised.
        ratio: float ``[B]``, t.
        uniforms: float ``[B, T]``, of all positions: the smallest may be at one that is not supervised.
        fill: a token that is never masked nor predicted.

    Returns:
        Masks bool ``[2 B, T]`` and targets int64 ``[2 B, T]``, -100 where nothing is masked: all rows of the first
        mask, then all rows of the second.
    """
    supervised = labels != IGNORED
    if fill is not None:
        supervised &= labels != fill
    probability = ((1 - MIN_RATIO) * ratio.float() + MIN_RATIO)[:, None]
    drawn = uniforms <= torch.maximum(probability, uniforms.min(-1, keepdim=True).values)
    masked = torch.cat((drawn & supervised, ~drawn & supervised))
    return masked, labels.repeat(2, 1).masked_fill(~masked, IGNORED)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def from_llada(name: str) -> str:
    """A key of a checkpoint on LLaDA as the model's own."""
    parts = name.split(".")
    if parts[:2] != ["model", "transformer"]:
        return model_key(name)
    if parts[2] == "blocks" and parts[4] in _LAYER:
        return ".".join(("model.layers", parts[3], _LAYER[parts[4]], *parts[5:]))
    return ".".join((_TOP[parts[2]], *parts[3:])) if parts[2] in _TOP else name


def to_llada(name: str) -> str:
    """The model's key as that of a checkpoint on LLaDA."""
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        return f"model.transformer.blocks.{layer[1]}.{_LLAMA_LAYER[layer[2]]}.{layer[3]}"
    for own, llama in _TOP.items():
        if name.startswith(f"{llama}."):
            return f"model.transformer.{own}.{name.removeprefix(f'{llama}.')}"
    return official_key(name)


def detect(config: Mapping[str, Any]) -> bool:
    """Whether a published ``config.json`` is that of a LaViDa: LLaDA-V has the same model type, other field names."""
    kind = config.get("model_type")
    return kind == "llava_dream" or (kind == "llava_llada" and {"d_model", "n_layers"} <= config.keys())


def load_official(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    token_ids: Mapping[str, int] | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> Lavida:
    """Load a published checkpoint, or one of the same layout.

    Args:
        folder: config.json, safetensors and, where it is to read texts, the tokenizer's files; vision_config.json
            where the tower is not SigLIP-so400m.
        dtype: of the weights.
        device: where they go.
        token_ids: ids under the names of `TOKENS` that differ from the published ones; needed only where the folder
            has neither a tokenizer nor these ids in its config.
        device_map: see `disp.models.checkpoint.assemble`.
        quantization: see `disp.models.checkpoint.assemble`; of the language model's layers.

    Raises:
        DispError: the config is not that of a LaViDa, or keys are missing or surplus.
    """
    config, vision = read_json(folder / "config.json"), None
    if (folder / "vision_config.json").is_file():
        vision = read_json(folder / "vision_config.json")
    if not detect(config):
        raise DispError(
            f"{folder / 'config.json'} is not that of a LaViDa; its model_type is {config.get('model_type')!r}"
        )
    variant = "llada" if "d_model" in config else "dream"
    tokenizer = _load_tokenizer(folder, variant)
    found = {}
    if tokenizer is not None:
        known = tokenizer.get_vocab()
        found = {name: known[token] for name, (token, _) in TOKENS[variant].items() if token in known}
    own = config.get("disp", {}).get("token_ids", {})
    sizes = LavidaConfig.from_official(config, vision, **{**found, **own, **(token_ids or {})})
    # Training may have cut the unused rows off without the config saying so.
    sizes.vocab_size = _stored_rows(folder, _EMBEDDING[variant]) or sizes.vocab_size
    tower = r"model\.vision_tower\.vision_tower\.vision_model\."
    layers = sizes.vision["num_hidden_layers"]
    model, unused = assemble(
        lambda: Lavida(sizes),
        read_weights(folder),
        from_llada if variant == "llada" else model_key,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
        quantized=lambda name: name.startswith("model.layers."),
        # Never read: the norm and the pooling head behind the tower, and its last layer where it was kept.
        ignore=(rf"{tower}(post_layernorm|head|encoder\.layers\.{layers})\..*",),
        what=str(folder),
    )
    model.unused_weights = unused
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def _load_tokenizer(folder: Path, variant: str) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer; None if it has none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    if variant == "dream":
        # Dream's tokenizer is Qwen2's, but its config names code of its own.
        tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=LavidaConfig(), local_files_only=True)
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHATML if variant == "dream" else CHAT_TEMPLATE
    return tokenizer


def _stored_rows(folder: Path, key: str) -> int | None:
    """Rows of a stored matrix, from the files' headers; None if it is not there."""
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            if key in set(file.keys()):
                return file.get_slice(key).get_shape()[0]
    return None
