"""What a published config says about a model's sizes, without building the model.

Geometry and field names of each family are those of the checkpoints that its module under `disp.models` loads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from disp.errors import DispError
from disp.models.loading import FAMILIES

Size = tuple[int, int]  # width, height in pixels

# SigLIP so400m at 384 pixels, which LLaDA-V's and LaViDa's configs name but do not describe. Their checkpoints leave
# out its last layer, whose output is never read.
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


@dataclass(frozen=True)
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
        qkv_bias: whether queries, keys and values have a bias.
    """

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    qkv_bias: bool = False

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' matrices: what is quantized, and what adapters are put on."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.hidden)

    @property
    def parameters(self) -> int:
        """Everything, with an embedding and a head of its own."""
        biases = self.head_dim * (self.heads + 2 * self.kv_heads) if self.qkv_bias else 0
        norms = (2 * self.layers + 1) * self.width
        return self.linear_parameters + self.layers * biases + norms + 2 * self.vocab * self.width

    def adapter_parameters(self, rank: int) -> int:
        """Weights of adapters of a rank on every matrix of the layers."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        ends = 2 * (self.width + query) + 2 * (self.width + key) + 3 * (self.width + self.hidden)
        return self.layers * rank * ends


@dataclass(frozen=True)
class TowerSizes:
    """Sizes of the vision tower.

    Attributes:
        layers: how many.
        width: width of a patch's features.
        hidden: width of the feed-forward layer.
        patches: patches of one tile; of the largest picture where pictures keep their own size.
        parameters: weights of the tower.
        stem: values of the largest stage before the patches, of one tile: pixels, or convolutions.
    """

    layers: int
    width: int
    hidden: int
    patches: int
    parameters: int
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


@dataclass(frozen=True)
class Sizes:
    """All that a plan needs to know about a model.

    Attributes:
        family: name for people.
        language: the language model.
        tower: the vision tower.
        projected: features that the projector reads for one tile.
        projector_parameters: weights of the projector.
        gen_length: response slots L that the model was made for.
        generation: decoding settings of the config itself, if it has any.
        visual_count: what images of these sizes cost in one sample.
        loss_rows: rows that the training loss makes of one response.
        tied: whether the head is the embedding.
        idle: weights of experts that a token does not run through.
    """

    family: str
    language: LanguageSizes
    tower: TowerSizes
    projected: int
    projector_parameters: int
    gen_length: int
    visual_count: Callable[[Sequence[Size]], VisualCount]
    generation: Mapping[str, Any] = field(default_factory=dict)
    loss_rows: int = 1
    tied: bool = False
    idle: int = 0

    @property
    def language_parameters(self) -> int:
        """Weights of the language model."""
        head = self.language.vocab * self.language.width if self.tied else 0
        return self.language.parameters + self.idle - head

    @property
    def parameters(self) -> int:
        """All weights, by the config."""
        return self.language_parameters + self.tower.parameters + self.projector_parameters


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
    for family, reader in (
        ("llada_v", _llava),
        ("lavida", _llava),
        ("mmada", _mmada),
        ("dimple", _dimple),
        ("diffusion_gemma", _diffusion_gemma),
    ):
        if read is None and import_module(FAMILIES[family]).detect(config):
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


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """``config.json`` of a folder and, if there is one, ``vision_config.json``.

    What ``preprocessor_config.json`` says of picture sizes is added to the config, under ``"preprocessor"``.

    Raises:
        DispError: there is no config.json, or it is not JSON.
    """
    found = []
    for name in ("config.json", "vision_config.json", "preprocessor_config.json"):
        try:
            found.append(json.loads((folder / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            found.append(None)
        except (OSError, ValueError) as error:
            raise DispError(f"{folder / name} cannot be read ({error})") from None
    if not isinstance(found[0], dict):
        raise DispError(f"{folder} has no config.json; give the folder of a checkpoint")
    return {**found[0], "preprocessor": found[2] or {}}, found[1]


def stored_parameters(folder: Path) -> dict[str, int] | None:
    """Values of each tensor in a folder's safetensors files, by name, from the files' headers alone.

    Returns:
        None where the weights are not there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    names += [name for name in ("vq.safetensors",) if (folder / name).is_file()]
    counts: dict[str, int] = {}
    for name in names:
        if not (folder / name).is_file():
            return None
        with (folder / name).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for tensor, about in header.items():
            if tensor != "__metadata__":
                counts[tensor] = math.prod(about["shape"])
    return counts


def adapter_base(folder: Path) -> str | None:
    """What a PEFT adapter in a folder was trained on; None where the folder holds no adapter."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""


# --- one reader a family --------------------------------------------------------------------------------------------


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
    from disp.models.anyres import grid_of, map_layout, parse_pinpoints

    fields = {**SO400M, **(vision or {})}
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
