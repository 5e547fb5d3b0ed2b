"""Dimple (rp-yu/Dimple-7B, arXiv 2505.16990): Qwen2.5-VL's vision tower in front of Dream's bidirectional transformer.

Pictures keep their aspect: they are resized to multiples of 28 pixels, and each 28-pixel square is one visual token.
Positions are three numbers a token (time, row, column), so a picture takes up as much of the position axis as its
longer side, and the response goes on after it. The head predicts the next token; `Dimple.denoise` shifts that away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, Qwen2Tokenizer, initialization
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from disp.data.sample import ImageSource, Query, open_image
from disp.errors import DispError
from disp.models.checkpoint import assemble, read_json, read_weights
from disp.models.interface import MDLM, Prefix
from disp.models.llada_v import IMAGE_PLACEHOLDER
from disp.models.transformer import Block, RMSNorm, attend, rotate

# Sizes that a published config may leave out.
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
PROCESSING = {
    "min_pixels": 56 * 56,
    "max_pixels": 28 * 28 * 1280,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# The published evaluation: eight tokens, the likeliest first.
SHORT = {
    "gen_length": 8,
    "steps": 8,
    "sampler": "dream",
    "algorithm": "maskgit_plus",
    "temperature": 0.0,
    "top_p": 0.01,
    "top_k": 50,
    "prefix_cache": True,
}
# Used where the checkpoint brings no template.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Smallest mask ratio of the published loss.
MIN_RATIO = 1e-3
# A picture is squeezed to this aspect where it is longer than the one that the resizing rule takes.
_LONGEST, _SQUEEZED = 200, 180
_IMAGE_SLOT = "\0image\0"


class DimpleConfig(PreTrainedConfig):
    """Sizes and token ids of a Dimple model; the other names are those of Qwen2's config.

    ``vision`` holds the arguments of the vision tower's config, ``processing`` how pictures are resized and
    normalised, ``mrope_section`` how many of a head's frequencies turn with time, row and column; ``generation`` the
    decoding defaults.
    """

    model_type = "disp_dimple"

    def __init__(
        self,
        vocab_size: int = 152064,
        hidden_size: int = 3584,
        intermediate_size: int = 18944,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 28,
        num_key_value_heads: int | None = 4,
        rope_theta: float = 1_000_000.0,
        rms_norm_eps: float = 1e-6,
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
        initializer_range: float = 0.02,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = hidden_size // num_attention_heads
        self.attention_bias, self.rope_theta, self.rms_norm_eps = True, rope_theta, rms_norm_eps
        self.mrope_section = list(mrope_section)
        self.mask_token_id, self.image_token_id, self.end_token_ids = mask_token_id, image_token_id, list(end_token_ids)
        self.vision_start_token_id, self.vision_end_token_id = vision_start_token_id, vision_end_token_id
        self.vision = {**VISION, **(vision or {})}
        self.processing = {**PROCESSING, **(processing or {})}
        self.gen_length, self.generation = gen_length, generation or {"steps": gen_length}
        self.initializer_range = initializer_range

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
        try:
            width, heads = config["hidden_size"], config["num_attention_heads"]
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
                vocab_size=config["vocab_size"],
                hidden_size=width,
                intermediate_size=config["intermediate_size"],
                num_hidden_layers=config["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=config.get("num_key_value_heads"),
                rope_theta=config.get("rope_theta") or rope.get("rope_theta") or 1_000_000.0,
                rms_norm_eps=config.get("rms_norm_eps", 1e-6),
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
                initializer_range=config.get("initializer_range", 0.02),
                **ids,
            )
        except KeyError as error:
            raise DispError(f"config.json: no field {error}; is this a Dimple checkpoint?") from None


def _first(value: int | Sequence[int] | None, default: int) -> int:
    return default if value is None else value if isinstance(value, int) else value[0]


class Backbone(nn.Module):
    """The parts under the ``model.`` prefix of a checkpoint."""

    def __init__(self, config: DimpleConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Projector(nn.Module):
    """From the tower's width to the language model's; it comes after the tower's own merging layer."""

    def __init__(self, vision_width: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


@dataclass
class PromptCache:
    """Keys and values of every prompt token but the last, from a pass with a response of nothing but masks.

    Attributes:
        layers: key and value ``[B, KV, P - 1, head_dim]`` of each layer; empty until the first pass.
        length: L of that pass.
    """

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    length: int = 0

    def select(self, rows: Tensor) -> PromptCache:
        """The given rows; ``rows`` int64 ``[B']``."""
        return PromptCache([(key[rows], value[rows]) for key, value in self.layers], self.length)


class Dimple(MDLM):
    """Dimple; see `disp.models.interface.MDLM` for what each method promises.

    The vision tower was never trained with the rest. ``extras["positions"]`` of a prefix are the three position
    numbers of each token, int64 ``[B, P, 3]``.
    """

    config_class = DimpleConfig
    config: DimpleConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block", "Qwen2_5_VLVisionBlock"]  # noqa: RUF012  # the library's own class attribute
    vision_names = ("visual.",)
    projector_names = ("img_projector",)
    ratio_floor = MIN_RATIO
    # Padding does; published answers have no end of turn.
    answers_end_turns = False

    # Decoding per lmms-eval task. Published: eight tokens for the first group, MM-Vet. The others are ours.
    generation_presets: Mapping[str, Mapping[str, Any]] = {
        **{
            task: SHORT
            for task in (
                *("gqa", "vizwiz_vqa_test", "scienceqa_img", "mmbench_en_test", "pope", "mathvista_testmini", "ai2d"),
                *("chartqa", "mme", "ocrbench", "mmmu_val"),
                *("textvqa_val", "vqav2_val", "mmbench_en_dev", "mmstar", "seedbench", "realworldqa"),
            )
        },
        "mmvet": {**SHORT, "gen_length": 64, "steps": 64},
        **{task: {**SHORT, "gen_length": 32, "steps": 32} for task in ("docvqa_val", "infovqa_val")},
        **{
            task: {**SHORT, "gen_length": 64, "steps": 64}
            for task in ("coco2017_cap_val", "coco2017_cap_val_lite", "flickr30k_test", "nocaps_val")
        },
    }

    def __init__(self, config: DimpleConfig):
        super().__init__(config)
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.visual = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**config.vision))
        self.img_projector = Projector(config.vision["out_hidden_size"], config.hidden_size)
        if next(self.visual.rotary_pos_emb.buffers()).is_meta:
            # Frequencies are in no checkpoint; a model that is built without storage needs theirs all the same.
            with torch.device("cpu"):
                self.visual.rotary_pos_emb = type(self.visual.rotary_pos_emb)(self.visual.config)
        self.mask_token_id = config.mask_token_id
        self.end_token_ids = tuple(config.end_token_ids)
        self.gen_length, self.generation_defaults = config.gen_length, dict(config.generation)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The library's own functions leave alone what was loaded from a checkpoint.
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv3d):
            initialization.normal_(module.weight, 0.0, self.config.initializer_range)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                initialization.zeros_(module.bias)

    @property
    def mask_embedding(self) -> Tensor:
        """Float ``[d]``: the embedding of the mask token."""
        return self.model.embed_tokens.weight[self.mask_token_id]

    def lora_modules(self) -> list[str]:
        """Every linear layer of the language model's blocks; not the head."""
        return [
            f"model.layers.{name}"
            for name, module in self.model.layers.named_modules()
            if isinstance(module, nn.Linear)
        ]

    # --- text and pixels to tensors -------------------------------------------------------------------------------

    def prepare(self, queries: Sequence[Query], features: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Tokenize and load a batch of queries.

        Args:
            queries: the batch.
            features: for each image of the batch in order, what `image_features` returned for it.

        Returns:
            ``token_ids`` int64 ``[B, P]``, left-padded, the image token at each visual token; ``attention_mask`` bool
            ``[B, P]``; ``grids`` int64 ``[images, 2]``, rows and columns of each image's visual tokens; and
            ``patches`` uint8 ``[n, 3 * patch * patch]`` of all images or ``features`` float ``[N, d_out]``.

        Raises:
            DispError: a prompt has more placeholders than there are images, or an image cannot be read.
        """
        sources = [source for query in queries for source in query.images]
        inputs: dict[str, Tensor] = {}
        if features:
            shapes = [tuple(tensor.shape[:2]) for tensor in features]
            inputs["features"] = torch.cat([tensor.flatten(0, 1) for tensor in features])
        else:
            images = [self.patches(open_image(source)) for source in sources]
            shapes = [shape for _, shape in images]
            empty = np.zeros((0, 3 * self.config.vision["patch_size"] ** 2), np.uint8)
            inputs["patches"] = torch.from_numpy(np.concatenate([empty, *(patches for patches, _ in images)]))
        rows: list[list[int]] = []
        first = 0
        for query in queries:
            counts = [height * width for height, width in shapes[first : first + len(query.images)]]
            rows.append(self._token_ids(query, counts))
            first += len(query.images)
        longest = max(len(row) for row in rows)
        token_ids = torch.full((len(rows), longest), self.end_token_ids[-1])
        attention_mask = torch.zeros((len(rows), longest), dtype=torch.bool)
        for index, row in enumerate(rows):
            token_ids[index, longest - len(row) :] = torch.tensor(row)
            attention_mask[index, longest - len(row) :] = True
        grids = torch.tensor(shapes, dtype=torch.int64).view(-1, 2)
        return {"token_ids": token_ids, "attention_mask": attention_mask, "grids": grids, **inputs}

    @torch.no_grad()
    def image_features(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """The tower's output for each image, float ``[rows, columns, d_out]``, on the CPU."""
        features = []
        for source in sources:
            patches, shape = self.patches(open_image(source))
            pixels = self.pixel_values(torch.from_numpy(patches).to(self.device))
            features.append(
                self.vision_features(pixels, torch.tensor([shape], device=self.device)).view(*shape, -1).cpu()
            )
        return features

    def patches(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """A picture cut into patches.

        Returns:
            uint8 ``[n, 3 * patch * patch]``, the four patches of a visual token one after the other, visual tokens in
            raster order; and the grid of visual tokens, rows and columns.
        """
        patch, merge = self.config.vision["patch_size"], self.config.vision["spatial_merge_size"]
        factor = patch * merge
        # 1. What the resizing rule does not take: the published data code prepares such pictures in this way.
        width, height = max(image.width, factor), max(image.height, factor)
        if width > _LONGEST * height:
            width = _SQUEEZED * height
        elif height > _LONGEST * width:
            height = _SQUEEZED * width
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        # 2. The nearest size in whole visual tokens with a permitted number of pixels.
        limits = self.config.processing
        height, width = smart_resize(height, width, factor, limits["min_pixels"], limits["max_pixels"])
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        # 3. Patches.
        rows, columns = height // factor, width // factor
        pixels = np.asarray(image, dtype=np.uint8).reshape(rows, merge, patch, columns, merge, patch, 3)
        cut = pixels.transpose(0, 3, 1, 4, 6, 2, 5)  # row, column, row in it, column in it, channel, y, x
        return np.ascontiguousarray(cut).reshape(-1, 3 * patch * patch), (rows, columns)

    def pixel_values(self, patches: Tensor) -> Tensor:
        """uint8 ``[n, 3 * patch * patch]`` to what the tower reads, float32 ``[n, 3 * time * patch * patch]``."""
        how, patch = self.config.processing, self.config.vision["patch_size"]
        mean = torch.tensor(how["image_mean"], dtype=torch.float32, device=patches.device)[:, None]
        std = torch.tensor(how["image_std"], dtype=torch.float32, device=patches.device)[:, None]
        scaled = (patches.view(len(patches), 3, patch * patch).double() * how["rescale_factor"]).float()
        # The tower was made for videos too: a still picture is shown as two equal frames.
        frames = ((scaled - mean) / std)[:, :, None].expand(-1, -1, self.config.vision["temporal_patch_size"], -1)
        return frames.flatten(1)

    def vision_features(self, pixel_values: Tensor, grids: Tensor) -> Tensor:
        """The tower's output, its merging layer included.

        Args:
            pixel_values: float ``[n, 3 * time * patch * patch]``, all images one after the other.
            grids: int64 ``[images, 2]``, rows and columns of each image's visual tokens.

        Returns:
            Float ``[N, d_out]``, each image's tokens in raster order.
        """
        if not len(grids):
            return pixel_values.new_zeros((0, self.config.vision["out_hidden_size"]), dtype=self.dtype)
        times = torch.ones_like(grids[:, :1])
        shapes = torch.cat((times, grids * self.config.vision["spatial_merge_size"]), dim=1)
        return self.visual(pixel_values.to(self.dtype), grid_thw=shapes).pooler_output

    def _token_ids(self, query: Query, counts: Sequence[int]) -> list[int]:
        """The prompt of one query whose images have ``counts`` visual tokens."""
        messages = [{"role": "system", "content": query.system}] if query.system else []
        for turn in query.history:
            messages.append({"role": "user", "content": turn.prompt})
            messages.append({"role": "assistant", "content": turn.response})
        messages.append({"role": "user", "content": query.prompt})
        user = [message for message in messages if message["role"] == "user"]
        missing = len(query.images) - sum(message["content"].count(IMAGE_PLACEHOLDER) for message in user)
        if missing < 0:
            raise DispError(
                f"sample {query.sample_id!r}: {len(query.images) - missing} {IMAGE_PLACEHOLDER} placeholders for "
                f"{len(query.images)} images; remove the surplus placeholders or add the images"
            )
        user[0]["content"] = IMAGE_PLACEHOLDER * missing + user[0]["content"]
        for message in messages:
            message["content"] = self._plain(message["content"])
        for message in user:
            message["content"] = message["content"].replace(IMAGE_PLACEHOLDER, _IMAGE_SLOT)
        text = str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        ids: list[int] = []
        for index, chunk in enumerate(text.split(_IMAGE_SLOT)):
            if index:
                image = [self.config.image_token_id] * counts[index - 1]
                ids += [self.config.vision_start_token_id, *image, self.config.vision_end_token_id]
            ids += self.tokenizer(chunk, add_special_tokens=False)["input_ids"]
        return ids

    # --- tensors to logits ----------------------------------------------------------------------------------------

    def embed(  # type: ignore[override]  # the inputs' names are the family's own
        self,
        token_ids: Tensor,
        attention_mask: Tensor | None = None,
        grids: Tensor | None = None,
        patches: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Prefix:
        """Embed prepared inputs; the arguments are the values that `prepare` returns.

        Args:
            token_ids: int64 ``[B, P]``, the image token at each visual token, images in the order of ``grids``.
            attention_mask: bool ``[B, P]``, false at padding; None for no padding.
            grids: int64 ``[images, 2]``; None for no images.
            patches: uint8 ``[n, 3 * patch * patch]``; not needed where ``features`` is given.
            features: float ``[N, d_out]``, the tower's output, to run it only once.

        Raises:
            DispError: the image tokens are not as many as ``grids`` says.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(token_ids, dtype=torch.bool)
        grids = token_ids.new_zeros((0, 2)) if grids is None else grids
        positions, locations = lay_out(token_ids, attention_mask, grids, self.config.image_token_id)
        visual_mask = locations[..., 0] >= 0
        embeds = self.model.embed_tokens(token_ids)
        if len(grids):
            if features is None:
                if patches is None:
                    raise ValueError("image tokens need `patches` or `features`")
                features = self.vision_features(self.pixel_values(patches), grids)
            tokens = self.img_projector(features.to(self.dtype))
            embeds = embeds.masked_scatter(visual_mask[..., None], tokens.to(embeds.dtype))
        return Prefix(embeds, attention_mask, visual_mask, locations, {"positions": positions})

    def denoise(self, prefix: Prefix, response: Tensor, cache: Any = None) -> Tensor:
        """One denoising pass: int64 ``[B, L]`` to logits ``[B, L, V]``; row j predicts slot j.

        Args:
            prefix: prompts and visual tokens.
            response: token ids, the mask id at open slots.
            cache: a `PromptCache`. The first pass with a new one is a whole pass that fills it; later ones compute the
                last prompt token and the response only. As published, the cached keys and values come from a response
                of all masks, so the logits differ from those without a cache as soon as a slot is filled.
        """
        return self.next_token_logits(prefix, response, cache)[:, :-1]

    def next_token_logits(self, prefix: Prefix, response: Tensor, cache: PromptCache | None = None) -> Tensor:
        """What the head says at the last prompt token and at each slot about the token after it, ``[B, L + 1, V]``."""
        if cache is not None:
            return self.lm_head(self._cached_hidden(prefix, response, cache))
        return self.lm_head(self._response_hidden(prefix, response, torch.ones_like(response, dtype=torch.bool)))

    def cache_prefix(self, prefix: Prefix) -> PromptCache:
        """A cache that the first pass fills: what it holds depends on the length of the response."""
        return PromptCache()

    def _joined(self, prefix: Prefix, response: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``[B, P + L, d]`` and positions ``[B, P + L, 3]`` of prefix and response."""
        embeds = torch.cat((prefix.embeds, self.model.embed_tokens(response)), dim=1)
        positions = prefix.extras["positions"]
        seen = positions.masked_fill(~prefix.attention_mask[..., None], -1).amax((1, 2))
        following = seen[:, None] + 1 + torch.arange(response.shape[1], device=response.device)
        return embeds, torch.cat((positions, following[..., None].expand(-1, -1, 3)), dim=1)

    def _response_hidden(self, prefix: Prefix, response: Tensor, there: Tensor) -> Tensor:
        """Hidden states ``[B, L + 1, d]`` from the last prompt token on; slots are hidden where ``there`` is false."""
        embeds, positions = self._joined(prefix, response)
        valid = torch.cat((prefix.attention_mask, there), dim=1)
        return self._hidden(embeds, positions, valid, rows=response.shape[1] + 1)

    def _hidden(self, x: Tensor, positions: Tensor, valid: Tensor, *, rows: int) -> Tensor:
        """The language model without its head: ``[B, T, d]`` to the last rows' ``[B, rows, d]``."""
        table = self._table(positions)
        # Published masks let padding see itself alone; what padding sees is never read.
        mask = None if valid.all() else valid[:, None, None, :]
        for layer in self.model.layers[:-1]:
            x = layer(x, table, mask, x.shape[1])
        return self.model.norm(self.model.layers[-1](x, table, mask, rows))

    def _cached_hidden(self, prefix: Prefix, response: Tensor, cache: PromptCache) -> Tensor:
        length = response.shape[1]
        tail = length + 1
        embeds, positions = self._joined(prefix, response)
        table = self._table(positions)
        mask = None
        if not prefix.attention_mask.all():
            mask = F.pad(prefix.attention_mask, (0, length), value=True)[:, None, None, :]
        if not cache.layers or cache.length != length:
            blank = torch.full_like(response, self.mask_token_id)
            x, layers = self._joined(prefix, blank)[0], []
            for layer in self.model.layers:
                x, (key, value) = _attend(layer, x, table, mask, None)
                layers.append((key[:, :, :-tail], value[:, :, :-tail]))
            cache.layers, cache.length = layers, length
            if response.equal(blank):
                return self.model.norm(x[:, -tail:])
        x = embeds[:, -tail:]
        table = (table[0][:, :, -tail:], table[1][:, :, -tail:])
        for layer, past in zip(self.model.layers, cache.layers, strict=True):
            x, _ = _attend(layer, x, table, mask, past)
        return self.model.norm(x)

    def _table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return mrope_table(positions, self.config.head_dim, self.config.rope_theta, self.config.mrope_section)

    # --- training -------------------------------------------------------------------------------------------------

    def noisy_loss(self, prefix: Prefix, clean: Tensor, ratio: Tensor, uniforms: Tensor) -> Tensor:
        """The mean cross-entropy of all masked tokens of the batch, without a weight of 1/t.

        As published, an answer is followed by a random number of padding tokens, all of which count. The slots behind
        them are not there: nobody sees them, and they are not trained.

        Args:
            prefix: prompts and visual tokens.
            clean: int64 ``[B, L]``, padded to L.
            ratio: float ``[B]`` in [0, 1], before the floor of 0.001.
            uniforms: float ``[B, L]``; slot j is masked where ``uniforms[j]`` is below the floored ratio. The last one
                also draws how much padding follows; its slot is there only when the draw is at its upper end.
        """
        lengths = padded_lengths(clean, self.end_token_ids[-1], uniforms[:, -1])
        there = torch.arange(clean.shape[1], device=clean.device) < lengths[:, None]
        masked = (uniforms < self._floored(ratio)[:, None]) & there
        hidden = self._response_hidden(prefix, torch.where(masked, self.mask_token_id, clean), there)
        return self._mean_loss(hidden[:, :-1], clean, masked)

    def sequence_loss(
        self, prefix: Prefix, token_ids: Tensor, answers: Tensor, ratio: Tensor, uniforms: Tensor
    ) -> Tensor:
        """The same loss on whole sequences, which may hold several answers.

        Args:
            prefix: the embedded sequences, as `embed` returns them.
            token_ids: int64 ``[B, T]``.
            answers: bool ``[B, T]``, true at answers and their padding.
            ratio: float ``[B]``, before the floor.
            uniforms: float ``[B, T]``.
        """
        masked = (uniforms < self._floored(ratio)[:, None]) & answers & prefix.attention_mask
        noisy = torch.where(masked[..., None], self.mask_embedding.to(prefix.embeds.dtype), prefix.embeds)
        hidden = self._hidden(noisy, prefix.extras["positions"], prefix.attention_mask, rows=noisy.shape[1])
        return self._mean_loss(hidden[:, :-1], token_ids[:, 1:], masked[:, 1:])

    def _floored(self, ratio: Tensor) -> Tensor:
        return (1 - MIN_RATIO) * ratio + MIN_RATIO

    def _mean_loss(self, hidden: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
        """Cross-entropy of ``targets`` int64 ``[B, T]`` where masked; 0 where nothing is."""
        # Of the masked tokens only: with a large vocabulary the others' logits would take most of the memory.
        logits = self.lm_head(hidden[masked]).float()
        return F.cross_entropy(logits, targets[masked], reduction="sum") / masked.sum().clamp(min=1)

    # --- published checkpoints ------------------------------------------------------------------------------------

    def official_state_dict(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights, or those of ``state_dict``: our names are the published ones."""
        return dict(self.state_dict() if state_dict is None else state_dict)


def lay_out(token_ids: Tensor, attention_mask: Tensor, grids: Tensor, image_token_id: int) -> tuple[Tensor, Tensor]:
    """Where each token of a prompt is, on the position axes and in its image.

    Text counts up on all three axes at once. An image's tokens share one time; their rows and columns count from it,
    and the text behind goes on from the largest number so far.

    Args:
        token_ids: int64 ``[B, P]``.
        attention_mask: bool ``[B, P]``, false at padding.
        grids: int64 ``[images, 2]``, rows and columns of the visual tokens of all images of the batch, in order.
        image_token_id: stands at visual tokens.

    Returns:
        Positions int64 ``[B, P, 3]`` (time, row, column; 1 at padding) and locations int64 ``[B, P, 4]`` (image of
        the row, tile 0, row, column; -1 elsewhere).

    Raises:
        DispError: the image tokens are not as many as ``grids`` says.
    """
    batch, length = token_ids.shape
    positions = torch.ones((batch, length, 3), dtype=torch.int64)
    locations = torch.full((batch, length, 4), -1)
    shapes, used = grids.tolist(), 0
    rows = zip(token_ids.tolist(), attention_mask.tolist(), strict=True)
    for row, (ids, there) in enumerate(rows):
        place, following, image = 0, 0, 0
        while place < length:
            if not there[place]:
                place += 1
                continue
            if ids[place] != image_token_id:
                positions[row, place] = following
                place, following = place + 1, following + 1
                continue
            height, width = shapes[used] if used < len(shapes) else (1, 0)
            end = place + height * width
            if end == place or ids[place:end] != [image_token_id] * (height * width):
                raise DispError(
                    f"row {row}: the image tokens from position {place} do not match grid {shapes[used:][:1]}"
                )
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            zero = torch.zeros_like(y)
            positions[row, place:end] = following + torch.stack((zero, y, x), dim=-1).flatten(0, 1)
            locations[row, place:end] = torch.stack((zero + image, zero, y, x), dim=-1).flatten(0, 1)
            place, following, used, image = end, following + max(height, width), used + 1, image + 1
    if used < len(shapes):
        raise DispError(f"{len(shapes)} images, but image tokens for {used} of them")
    return positions.to(token_ids.device), locations.to(token_ids.device)


def mrope_table(positions: Tensor, head_dim: int, theta: float, sections: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions with three numbers a token (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Args:
        positions: int64 ``[B, T, 3]``.
        head_dim: width of one head.
        theta: base of the wavelengths.
        sections: how many of the ``head_dim / 2`` frequencies, fastest first, turn with each of the three numbers.

    Returns:
        Two float32 tensors ``[B, 1, T, head_dim]`` for `disp.models.transformer.rotate`.
    """
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(list(sections))).to(positions.device)
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., axis].float() * (1.0 / theta**steps)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def padded_lengths(clean: Tensor, padding: int, draws: Tensor) -> Tensor:
    """How many slots of each answer there are: the answer and a random number of padding tokens, at least one.

    At most up to the next power of two below 16, and to the next multiple of 16 from there on, as published.

    Args:
        clean: int64 ``[B, L]``.
        padding: its id; the first one ends an answer.
        draws: float ``[B]`` in [0, 1).

    Returns:
        int64 ``[B]``, at most L.
    """
    slots = clean.shape[1]
    lengths = []
    for row, draw in zip(clean.tolist(), draws.tolist(), strict=True):
        count = row.index(padding) if padding in row else slots
        most = 1 << count.bit_length() if count < 16 else (count // 16 + 1) * 16
        lengths.append(min(count + 1 + math.floor(draw * (most - count)), slots))
    return torch.tensor(lengths, device=clean.device)


def _attend(
    block: Block,
    x: Tensor,
    table: tuple[Tensor, Tensor],
    mask: Tensor | None,
    past: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One layer over ``[B, T, d]`` that also sees ``past`` keys and values; returns those of all it has seen."""
    attention = block.self_attn
    normed = block.input_layernorm(x)

    def heads(projection: nn.Linear, count: int) -> Tensor:
        return projection(normed).unflatten(-1, (count, attention.head_dim)).transpose(1, 2)

    query = rotate(heads(attention.q_proj, attention.heads), table)
    key = rotate(heads(attention.k_proj, attention.kv_heads), table)
    value = heads(attention.v_proj, attention.kv_heads)
    if past is not None:
        key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
    out = attend(query, key, value, mask, attention.implementation)
    x = x + attention.o_proj(out.transpose(1, 2).flatten(2))
    return x + block.mlp(block.post_attention_layernorm(x)), (key, value)


def detect(config: Mapping[str, Any]) -> bool:
    """Whether a published ``config.json`` is Dimple's."""
    if "model_type" in config:
        return config["model_type"] == "dimple"
    # Qwen2.5-VL has no mask token.
    return "mrope_section" in config and "mask_token_id" in config and isinstance(config.get("vision_config"), dict)


def load_official(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> Dimple:
    """Load a published checkpoint, or one of the same layout.

    Args:
        folder: config.json, safetensors, preprocessor_config.json where pictures are not processed in the default way,
            and, where it is to read texts, the tokenizer's files.
        dtype: of the weights.
        device: where they go.
        device_map: see `disp.models.checkpoint.assemble`.
        quantization: see `disp.models.checkpoint.assemble`; of the language model's layers.

    Raises:
        DispError: a file is missing or damaged, or keys are missing or surplus.
    """
    folder = Path(folder)
    config = DimpleConfig.from_official(read_json(folder / "config.json"))
    if (folder / "preprocessor_config.json").is_file():
        config.processing |= processing_of(read_json(folder / "preprocessor_config.json"), config.vision)
    tokenizer = load_tokenizer(folder)
    model, _ = assemble(
        lambda: Dimple(config),
        read_weights(folder),
        lambda name: name,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
        quantized=lambda name: name.startswith("model.layers."),
        what=str(folder),
    )
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint, or None where it has none.

    Published checkpoints name a tokenizer class of their own code; its rules are Qwen2's.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    kind = ""
    if (folder / "tokenizer_config.json").is_file():
        kind = read_json(folder / "tokenizer_config.json").get("tokenizer_class") or ""
    if kind in ("", "DimpleTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast"):
        tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=DimpleConfig(), local_files_only=True)
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
