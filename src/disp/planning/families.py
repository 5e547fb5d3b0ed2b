"""The sizes that each family's published config stands for.

Geometry and field names are those of the checkpoints that the family's module under `disp.models` loads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from disp.errors import DispError
from disp.models.families import family
from disp.models.llada_v.published import SIGLIP, SYSTEM
from disp.planning.sizes import LanguageSizes, Size, Sizes, TowerSizes, VisualCount


def sizes_of(config: Mapping[str, Any], vision: Mapping[str, Any] | None = None) -> Sizes:
    """Sizes of the model that a config.json describes.

    Args:
        config: the fields of config.json.
        vision: the tower's own config, where the checkpoint has one.

    Raises:
        DispError: the config is of no known family, or lacks a field.
    """
    read: Callable[..., Sizes] | None = None
    if config.get("model_type") == "disp_llada_v":
        read = _builtin
    for name, reader in (
        ("llada_v", _llava),
        ("lavida", _llava),
        ("mmada", _mmada),
        ("dimple", _dimple),
        ("diffusion_gemma", _diffusion_gemma),
    ):
        if read is None and family(name).detect(config):
            read = reader
    if read is None:
        raise DispError(
            f"config.json with model_type {config.get('model_type')!r} is of no family that disp plans for; give the "
            "folder of a LLaDA-V, LaViDa, MMaDA, Dimple or DiffusionGemma checkpoint, or 'builtin'"
        )
    try:
        return read(config, vision)
    except KeyError as missing:
        raise DispError(f"config.json has no field {missing}; is it of a whole checkpoint of this family?") from None


def _llama_language(config: Mapping[str, Any], qkv_bias: bool) -> LanguageSizes:
    """Llama's and Qwen's field names."""
    heads = config["num_attention_heads"]
    return LanguageSizes(
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
        heads,
        config.get("num_key_value_heads") or heads,
        config.get("head_dim") or config["hidden_size"] // heads,
        config["vocab_size"],
        qkv_bias,
    )


def _llada_language(config: Mapping[str, Any]) -> LanguageSizes:
    """LLaDA's own field names."""
    heads = config["n_heads"]
    return LanguageSizes(
        config["n_layers"],
        config["d_model"],
        config["mlp_hidden_size"],
        heads,
        config.get("n_kv_heads") or heads,
        config["d_model"] // heads,
        config.get("embedding_size") or config["vocab_size"],
    )


def _siglip(sizes: Mapping[str, Any], layers: int) -> TowerSizes:
    """A tower in SigLIP's layout, possibly with a convolutional stem, without final norm and pooling head."""
    width, hidden, patch = sizes["hidden_size"], sizes["intermediate_size"], sizes["patch_size"]
    side, stem = sizes["image_size"], sizes.get("stem_channels") or ()
    patches = (side // patch) ** 2
    # The pixels; a stage of the stem and its activation. Each stage halves the side.
    stages, channels, parameters = [2 * 3 * side * side], 3, 0
    for stage, out in enumerate(stem):
        parameters += 9 * channels * out + out
        stages.append(2 * out * (side // 2 ** (stage + 1)) ** 2)
        channels = out
    kernel = 3 if stem else patch
    parameters += kernel * kernel * channels * width + width + patches * width
    parameters += layers * (4 * width * (width + 1) + 2 * width * hidden + hidden + width + 4 * width)
    # The input of a stage is there while its output is made.
    largest = max(stage + before // 2 for stage, before in zip(stages, [0, *stages], strict=False))
    return TowerSizes(layers, width, hidden, patches, parameters, largest)


def _two_layers(inside: int, width: int) -> int:
    return inside * width + width + width * width + width


def _builtin(config: Mapping[str, Any], vision: Mapping[str, Any] | None) -> Sizes:
    language = _llama_language(config, bool(config.get("attention_bias")))
    tower = _siglip(config["vision"], config["vision"]["num_hidden_layers"])
    return Sizes(
        "LLaDA-V arrangement",
        language,
        tower,
        tower.patches,
        _two_layers(tower.width, language.width),
        config.get("gen_length", 32),
        lambda images: VisualCount(tower.patches * len(images), 0, len(images)),
        config.get("generation") or {},
    )


def _llava(config: Mapping[str, Any], vision: Mapping[str, Any] | None) -> Sizes:
    """LLaDA-V and LaViDa: tiles of any resolution. LaViDa pools each tile; LLaDA-V caps the map of tiles."""
    from disp.models.parts.anyres import grid_of, map_layout, parse_pinpoints

    fields = {**SIGLIP, **(vision or {})}
    tower = _siglip(fields, fields["num_hidden_layers"] - 1)
    # The checkpoints keep the final norm, though nothing reads its output.
    tower = TowerSizes(
        tower.layers, tower.width, tower.hidden, tower.patches, tower.parameters + 2 * tower.width, tower.stem
    )
    dream, own = config.get("model_type") == "llava_dream", config.get("disp") or {}
    lavida = dream or "d_model" in config
    language = _llada_language(config) if "d_model" in config else _llama_language(config, dream)
    side, tile = fields["image_size"] // fields["patch_size"], fields["image_size"]
    pooled = math.floor if config.get("mm_spatial_pool_mode") == "average" else math.ceil
    grid = pooled(side / 2) if lavida else side
    candidates = parse_pinpoints(config.get("image_grid_pinpoints") or "(1x1),...,(6x6)", tile)
    ratio = str(config.get("image_aspect_ratio", ""))
    cap = int(ratio.removeprefix("anyres_max_")) if ratio.startswith("anyres_max_") else None

    def count(images: Sequence[Size]) -> VisualCount:
        if len(images) > 1:  # each padded to one tile, with one newline
            return VisualCount(grid * grid * len(images), len(images), len(images))
        visual = others = tiles = 0
        for size in images:
            columns, rows = grid_of(size, candidates, tile)
            layout = map_layout(size, (columns, rows), grid, cap)
            visual += grid * grid + layout.rows * layout.columns
            others += layout.rows  # a newline after each row
            tiles += 1 + columns * rows
        return VisualCount(visual, others, tiles)

    length = own.get("gen_length", 64 if lavida else 128)
    generation: dict[str, Any] = {"steps": length}
    if lavida:
        generation = {"prefix_cache": True, "steps": length if dream else max(length // 2, 1)}
        generation |= {"sampler": "dream", "step_ratio": 0.5} if dream else {}
    return Sizes(
        ("LaViDa on Dream" if dream else "LaViDa on LLaDA") if lavida else "LLaDA-V",
        language,
        tower,
        tower.patches,
        _two_layers(tower.width, language.width) + language.width,  # and the newline vector
        length,
        count,
        generation,
        loss_rows=2 if lavida else 1,
        default_system=None if lavida else SYSTEM,
    )


def _mmada(config: Mapping[str, Any], vision: Mapping[str, Any] | None) -> Sizes:
    """MMaDA: pictures are token ids from a convolutional quantizer (MAGVIT-v2), of which only the encoder runs."""
    language = _llada_language(config)
    tokens = config.get("num_vq_tokens", 1024)
    side = 16 * math.isqrt(tokens)
    length = (config.get("disp") or {}).get("gen_length", 512)
    # The first of the encoder's stages, 128 channels at full size, and a residual block's copies of it.
    tower = TowerSizes(0, 0, 0, tokens, 55_400_000, 4 * 128 * side * side)
    return Sizes(
        "MMaDA",
        language,
        tower,
        0,
        0,
        length,
        lambda images: VisualCount(tokens * len(images), 2 * len(images) + bool(images), len(images)),
        {"steps": max(length // 2, 1)},
    )


def _dimple(config: Mapping[str, Any], vision: Mapping[str, Any] | None) -> Sizes:
    """Dimple: Qwen2.5-VL's tower at each picture's own size, and a projector after its merger."""
    language, fields = _llama_language(config, True), config["vision_config"]
    width, hidden, out = fields["hidden_size"], fields["intermediate_size"], fields.get("out_hidden_size")
    out = out or language.width
    patch, merge = fields.get("patch_size", 14), fields.get("spatial_merge_size", 2)
    depth, frames = fields["depth"], fields.get("temporal_patch_size", 2)
    block = 4 * width * width + 4 * width + 3 * width * hidden + 2 * hidden + width + 2 * width
    merged = width * merge * merge
    parameters = 3 * frames * patch * patch * width + depth * block + width
    parameters += merged * merged + merged + merged * out + out
    length = (config.get("disp") or {}).get("gen_length", 64)
    limits = config.get("preprocessor") or {}
    least, pixels = limits.get("min_pixels") or 56 * 56, limits.get("max_pixels") or 28 * 28 * 1280
    tower = TowerSizes(depth, width, hidden, pixels // patch**2, parameters, 2 * 3 * frames * pixels)

    def count(images: Sequence[Size]) -> VisualCount:
        visual = sum(_resized(size, patch * merge, least, pixels) for size in images)
        return VisualCount(visual, 2 * len(images), len(images))

    return Sizes(
        "Dimple",
        language,
        tower,
        tower.patches // merge**2,
        _two_layers(out, language.width),
        length,
        count,
        {"steps": length, "sampler": "dim", "confidence_threshold": 0.95, "prefix_cache": True},
    )


def _resized(size: Size, step: int, least: int, most: int) -> int:
    """Tokens of a picture whose sides become multiples of ``step`` with an area between two bounds (Qwen2-VL)."""
    width, height = (max(step, round(side / step) * step) for side in size)
    area = size[0] * size[1]
    if width * height > most:
        scale = math.sqrt(area / most)
        width, height = (max(step, math.floor(side / scale / step) * step) for side in size)
    elif width * height < least:
        scale = math.sqrt(least / area)
        width, height = (math.ceil(side * scale / step) * step for side in size)
    return (width // step) * (height // step)


def _diffusion_gemma(config: Mapping[str, Any], vision: Mapping[str, Any] | None) -> Sizes:
    """DiffusionGemma: a mixture of experts; the encoder's and the decoder's layers are the same weights."""
    text, fields = config["text_config"], config["vision_config"]
    experts, active = text.get("num_experts") or 0, text.get("top_k_experts") or 0
    expert = text.get("moe_intermediate_size") or 0
    language = LanguageSizes(
        text["num_hidden_layers"],
        text["hidden_size"],
        text["intermediate_size"] + active * expert,
        text["num_attention_heads"],
        text["num_key_value_heads"],
        text["head_dim"],
        text["vocab_size"],
    )
    idle = language.layers * 3 * language.width * expert * (experts - active)
    width, hidden, layers = fields["hidden_size"], fields["intermediate_size"], fields["num_hidden_layers"]
    patch, pool = fields.get("patch_size", 16), fields.get("pooling_kernel_size", 3)
    most = fields.get("default_output_length", 280)
    parameters = layers * (4 * width * width + 3 * width * hidden + 4 * width) + 3 * patch * patch * width
    step = patch * pool
    tower = TowerSizes(layers, width, hidden, most * pool * pool, parameters, 2 * 3 * most * step * step)

    def count(images: Sequence[Size]) -> VisualCount:
        visual = 0
        for wide, high in images:
            scale = math.sqrt(most * step * step / (wide * high))
            visual += max(1, math.floor(wide * scale / step)) * max(1, math.floor(high * scale / step))
        return VisualCount(visual, 2 * len(images), len(images))

    return Sizes(
        "DiffusionGemma",
        language,
        tower,
        most,
        width * language.width,
        config.get("canvas_length", 256),
        count,
        {"steps": 48, "sampler": "canvas", "prefix_cache": True},
        tied=True,
        idle=idle,
    )
