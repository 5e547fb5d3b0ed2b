"""MMaDA (Gen-Verse/MMaDA-8B-*, arXiv 2505.15809): a LLaDA transformer that reads images as tokens of its vocabulary.

An image is 512×512 pixels, which a frozen tokenizer (`disp.models.vq`) turns into 1024 codes; code c is the token
``image_token_offset + c``, embedded like a word. There is no projector and nothing continuous between the pixels and
the model, so gradients are taken at the embeddings, and masking a visual token is the same as replacing its id by the
mask token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, initialization

from disp.data.sample import ImageSource, Query, open_image
from disp.diffusion.forward import MIN_RATIO, add_noise, diffusion_loss
from disp.errors import DispError
from disp.models.checkpoint import assemble, read_json, read_weights
from disp.models.interface import MDLM, Prefix
from disp.models.transformer import Block, RMSNorm, attention_inputs
from disp.models.vq import VQEncoder, build_encoder, quantize, read_encoder, square_image

IMAGE_PLACEHOLDER = "<image>"
VQ_FILE = "vq.safetensors"
VQ_HUB_ID = "showlab/magvitv2"

# One newline after each header, where LLaDA's own template has two. Used where the checkpoint brings no template.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n' }}{% endif %}"
)

# Name, spellings and id of the special tokens. MMaDA took LLaDA's reserved tokens without renaming them. The ids of a
# folder's own tokenizer come before these.
SPECIAL_TOKENS: dict[str, tuple[tuple[str, ...], int]] = {
    "mask": (("<|mdm_mask|>",), 126336),
    "bos": (("<|startoftext|>",), 126080),
    "eos": (("<|endoftext|>",), 126081),
    "eot": (("<|eot_id|>",), 126348),
    "mmu": (("<|mmu|>", "<|reserved_token_5|>"), 126089),
    "soi": (("<|soi|>", "<|reserved_token_0|>"), 126084),
    "eoi": (("<|eoi|>", "<|reserved_token_1|>"), 126085),
}

# Published are: two tokens for whatever is not named, MathVista, MathVerse and MM-Vet (the repository's VLMEvalKit).
# The others are ours: room for the answers, one token a step.
GENERATION_PRESETS: dict[str, dict[str, Any]] = {
    "multiple_choice": {"gen_length": 2, "steps": 2, "block_length": 2},
    "yes_no": {"gen_length": 2, "steps": 2, "block_length": 2},
    "mathvista": {"gen_length": 96, "steps": 96, "block_length": 48},
    "mathverse": {"gen_length": 256, "steps": 128, "block_length": 32},
    "mmvet": {"gen_length": 512, "steps": 256, "block_length": 128},
    "short_answer": {"gen_length": 16, "steps": 16, "block_length": 16},
    "chartqa": {"gen_length": 16, "steps": 16, "block_length": 16},
    "docvqa": {"gen_length": 32, "steps": 32, "block_length": 32},
    "infovqa": {"gen_length": 32, "steps": 32, "block_length": 32},
    "caption": {"gen_length": 64, "steps": 64, "block_length": 64},
}

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

# Published name -> ours, outside and inside a block. `ff_out` is the head outside and the down projection inside.
_OUTER = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
_INNER = {
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
_BLOCKS, _LAYERS, _ROOT = "model.transformer.blocks.", "model.layers.", "model.transformer."


class MMadaConfig(PreTrainedConfig):
    """Sizes and token ids of an MMaDA model; the other names are those of Llama's config.

    ``token_ids`` holds the ids of `SPECIAL_TOKENS`; ``vision`` the arguments of `disp.models.vq.VQEncoder`, or None
    for a model without an image tokenizer; ``image_size`` is the side of the picture that it is shown; ``squash`` says
    whether pictures are squashed to the square rather than cropped.
    """

    model_type = "disp_mmada"

    def __init__(
        self,
        vocab_size: int = 134656,
        hidden_size: int = 4096,
        intermediate_size: int = 12288,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        attention_bias: bool = False,
        rope_theta: float = 500_000.0,
        rms_norm_eps: float = 1e-5,
        token_ids: Mapping[str, int] | None = None,
        image_token_offset: int = 126349,
        codebook_size: int = 8192,
        vision: dict[str, Any] | None = None,
        image_size: int = 512,
        squash: bool = False,
        gen_length: int = 512,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = hidden_size // num_attention_heads
        self.attention_bias, self.rope_theta, self.rms_norm_eps = attention_bias, rope_theta, rms_norm_eps
        self.token_ids = {**{name: number for name, (_, number) in SPECIAL_TOKENS.items()}, **(token_ids or {})}
        self.image_token_offset, self.codebook_size = image_token_offset, codebook_size
        self.vision, self.image_size, self.squash = vision, image_size, squash
        self.gen_length, self.initializer_range = gen_length, initializer_range

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
        try:
            width, heads = config["d_model"], config["n_heads"]
            kv_heads = config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads)
            stride = 2 ** (len(vision["multipliers"]) - 1) if vision else 16
            extra = config.get("disp", {})
            mask = {"mask": config["mask_token_id"]} if "mask_token_id" in config else {}
            return cls(
                # LLaDA's rule: the embeddings may have more rows than the vocabulary has words.
                vocab_size=config.get("embedding_size") or config["vocab_size"],
                hidden_size=width,
                intermediate_size=config.get("mlp_hidden_size") or config["mlp_ratio"] * width,
                num_hidden_layers=config["n_layers"],
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                attention_bias=bool(config.get("include_qkv_bias")),
                rope_theta=config.get("rope_theta", 10_000.0),
                rms_norm_eps=config.get("rms_norm_eps", 1e-5),
                token_ids={**mask, **token_ids, **extra.get("token_ids", {})},
                codebook_size=2 ** vision["code_bits"] if vision else config.get("codebook_size", 8192),
                vision=vision,
                image_size=math.isqrt(config.get("num_vq_tokens", 1024)) * stride,
                squash=extra.get("squash", False),
                gen_length=extra.get("gen_length", 512),
            )
        except KeyError as error:
            raise DispError(f"config.json: no field {error}; is this an MMaDA checkpoint?") from None


class Backbone(nn.Module):
    """The parts under the ``model.`` prefix."""

    def __init__(self, config: MMadaConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MMada(MDLM):
    """MMaDA; see `disp.models.interface.MDLM` for what each method promises.

    The image tokenizer is ``vision_tower``, frozen and in float32; what is cached of an image is its codes.
    """

    config_class = MMadaConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012  # the library's own class attribute
    vision_names = ("vision_tower",)
    # Nothing stands between the codes and the language model: "projector" training has nothing to train.
    projector_names: tuple[str, ...] = ()
    ratio_floor = MIN_RATIO
    generation_presets = GENERATION_PRESETS

    def __init__(self, config: MMadaConfig):
        super().__init__(config)
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.vision_tower = VQEncoder(**config.vision) if config.vision else None
        self.mask_token_id = config.token_ids["mask"]
        self.end_token_ids = (config.token_ids["eot"], config.token_ids["eos"])
        self.gen_length = config.gen_length
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The library's own functions leave alone what was loaded from a checkpoint.
        if isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(module.weight, 0.0, self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                initialization.zeros_(module.bias)

    @property
    def generation_defaults(self) -> dict[str, Any]:  # type: ignore[override]  # follows `gen_length`
        """The published inference script's: half as many steps as slots, in four blocks."""
        blocks = 4 if self.gen_length % 8 == 0 else 1
        return {"steps": max(self.gen_length // 2, 1), "block_length": self.gen_length // blocks}

    @property
    def mask_embedding(self) -> Tensor:
        """Float ``[d]``: the embedding of the mask token."""
        return self.model.embed_tokens.weight[self.mask_token_id]

    @property
    def grid(self) -> int:
        """Codes along a side of the image."""
        stride = self.vision_tower.stride if self.vision_tower is not None else 16
        return self.config.image_size // stride

    def lora_modules(self) -> list[str]:
        """Full names of the language model's linear layers, without the head."""
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
            features: for each image of the batch in order, its codes as `image_features` returned them; the images
                are then not opened.

        Returns:
            ``token_ids`` int64 ``[B, P]``, left-padded with -1, where each visual token stands as ``-2 - index`` of
            its image among the batch's images; and ``pixels`` uint8 ``[images, 3, S, S]`` or ``codes`` int64
            ``[images, N]``.

        Raises:
            DispError: a prompt has more placeholders than there are images, or an image cannot be read.
        """
        rows: list[list[int]] = []
        images = 0
        for query in queries:
            rows.append(self._token_ids(query, first_image=images))
            images += len(query.images)
        longest = max(len(row) for row in rows)
        token_ids = torch.full((len(rows), longest), -1)
        for index, row in enumerate(rows):
            token_ids[index, longest - len(row) :] = torch.tensor(row)
        if features:
            return {"token_ids": token_ids, "codes": torch.stack(list(features))}
        return {"token_ids": token_ids, "pixels": self.pixels([s for query in queries for s in query.images])}

    def pixels(self, sources: Sequence[ImageSource]) -> Tensor:
        """Pictures to uint8 ``[images, 3, S, S]``: the middle square, or all of it squashed (``config.squash``)."""
        size = self.config.image_size
        squares = [square_image(open_image(source), size, squash=self.config.squash) for source in sources]
        return torch.from_numpy(np.stack(squares) if squares else np.zeros((0, 3, size, size), np.uint8))

    @torch.no_grad()
    def image_features(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """The codes of each image, int64 ``[N]`` in raster order, on the CPU."""
        return [self.codes(self.pixels([source]).to(self.device))[0].cpu() for source in sources]

    @torch.no_grad()
    def codes(self, pixels: Tensor) -> Tensor:
        """uint8 ``[images, 3, H, W]`` to codes int64 ``[images, N]`` in raster order.

        Raises:
            DispError: the model was loaded without an image tokenizer.
        """
        if self.vision_tower is None:
            raise DispError(
                f"this model was loaded without its image tokenizer; put {VQ_HUB_ID}'s safetensors file into the "
                f"model's folder as {VQ_FILE} (docs/models/mmada.md shows the commands)"
            )
        dtype = self.vision_tower.conv_in.weight.dtype
        # One picture at a time: a convolution's last bits depend on the batch, and with them the sign of a number
        # near zero; and a picture takes gigabytes at full resolution.
        # The published order of operations, for the same reason.
        scaled = ((image.float() / 255 - 0.5) / 0.5 for image in pixels)
        codes = [quantize(self.vision_tower(image.to(dtype)[None])).flatten(1) for image in scaled]
        return torch.cat(codes) if codes else torch.zeros((0, self.grid**2), dtype=torch.int64, device=pixels.device)

    def _token_ids(self, query: Query, first_image: int) -> list[int]:
        """Task token, images, then the chat: MMaDA reads every image before any text."""
        named = query.prompt.count(IMAGE_PLACEHOLDER) + sum(t.prompt.count(IMAGE_PLACEHOLDER) for t in query.history)
        count = len(query.images)
        if named > count:
            raise DispError(
                f"sample {query.sample_id!r}: {named} {IMAGE_PLACEHOLDER} placeholders for {count} images; remove the "
                "surplus placeholders or add the images"
            )
        messages = [{"role": "system", "content": query.system}] if query.system else []
        for turn in query.history:
            messages.append({"role": "user", "content": turn.prompt})
            messages.append({"role": "assistant", "content": turn.response})
        messages.append({"role": "user", "content": query.prompt})
        seen = 0
        for message in messages:
            parts = message["content"].split(IMAGE_PLACEHOLDER) if message["role"] == "user" else [message["content"]]
            text = parts[0]
            for part in parts[1:]:
                # A placeholder that only says "here is the image" goes; one inside a sentence keeps the sentence whole.
                seen += 1
                inside = count > 1 and bool(text.strip() or (part.strip() and not part.startswith("\n")))
                text += f"image {seen}{part}" if inside else part.removeprefix("\n")
            message["content"] = self._plain(text)
        chat = str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        text_ids: list[int] = self.tokenizer(chat, add_special_tokens=False)["input_ids"]
        special = self.config.token_ids
        if text_ids[:1] != [special["bos"]]:
            text_ids = [special["bos"], *text_ids]
        if not count:
            return text_ids
        ids = [special["mmu"]]
        for index in range(count):
            ids += [special["soi"], *[-2 - (first_image + index)] * self.grid**2, special["eoi"]]
        return ids + text_ids

    # --- tensors through the model --------------------------------------------------------------------------------

    def embed(  # type: ignore[override]  # the family's own arguments
        self, token_ids: Tensor, pixels: Tensor | None = None, codes: Tensor | None = None
    ) -> Prefix:
        """Embed prepared inputs.

        Args:
            token_ids: int64 ``[B, P]`` as `prepare` lays it out.
            pixels: uint8 ``[images, 3, S, S]``; not needed where ``codes`` is given.
            codes: int64 ``[images, N]``.
        """
        visual_mask = token_ids < -1
        ids = token_ids
        if visual_mask.any():
            if codes is None:
                if pixels is None:
                    raise ValueError("placeholders of images need `pixels` or `codes`")
                codes = self.codes(pixels)
            # Placeholders of one image are consecutive and images are in order of appearance.
            ids = token_ids.masked_scatter(visual_mask, codes + self.config.image_token_offset)
        return self.embed_ids(ids, visual_mask, token_ids != -1)

    def embed_ids(self, token_ids: Tensor, visual_mask: Tensor, attention_mask: Tensor | None = None) -> Prefix:
        """A prefix of token ids as the model sees them, images included; needs no tokenizer.

        Args:
            token_ids: int64 ``[B, P]``; what stands at padding does not matter.
            visual_mask: bool ``[B, P]``, true at image tokens; one image's tokens are consecutive, in raster order.
            attention_mask: bool ``[B, P]``, false at (left) padding; None where there is none.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(visual_mask)
        embeds = self.model.embed_tokens(token_ids.clamp(min=0))
        return Prefix(embeds, attention_mask, visual_mask, _locations(visual_mask))

    def denoise(
        self, prefix: Prefix, response: Tensor, cache: Any = None, *, attention_bias: Tensor | None = None
    ) -> Tensor:
        """One denoising pass: int64 ``[B, L]`` to logits ``[B, L, V]``.

        Args:
            prefix: prompt and image.
            response: token ids, the mask id at open slots.
            cache: not used; MMaDA caches nothing.
            attention_bias: bool ``[B, 1, P + L, P + L]``, true where a query may see a key; None for everywhere.
        """
        length = response.shape[1]
        x = torch.cat((prefix.embeds, self.model.embed_tokens(response)), dim=1)
        valid = torch.cat((prefix.attention_mask, torch.ones_like(response, dtype=torch.bool)), dim=1)
        return self._logits(x, valid, length, attention_bias)

    def _logits(self, x: Tensor, valid: Tensor, rows: int, bias: Tensor | None = None) -> Tensor:
        """Embeddings ``[B, T, d]`` and bool ``[B, T]`` to the logits ``[B, rows, V]`` of the last positions."""
        table, mask = attention_inputs(valid, self.config.head_dim, self.config.rope_theta)
        last = mask
        if bias is not None:
            mask = bias if mask is None else bias & mask
            last = mask[:, :, x.shape[1] - rows :]
        for layer in self.model.layers[:-1]:
            x = layer(x, table, mask, x.shape[1])
        # Only these rows of the last layer are ever read; leaving out the others is exact.
        x = self.model.layers[-1](x, table, last, rows)
        return self.lm_head(self.model.norm(x))

    def _floored(self, ratio: Tensor) -> Tensor:
        return (1 - self.ratio_floor) * ratio + self.ratio_floor

    def noisy_loss(self, prefix: Prefix, clean: Tensor, ratio: Tensor, uniforms: Tensor) -> Tensor:
        """The loss of MMaDA's understanding flow: ``Σ_masked CE / p`` over the answer's length, mean over the batch.

        Every slot of the answer counts, its end-of-text padding too. Published training also counts the newline that
        ends the assistant's header; here it belongs to the prompt, as it does when an answer is decoded.

        Args:
            prefix: prompt and image.
            clean: int64 ``[B, L]``.
            ratio: float ``[B]`` in [0, 1], before the floor of 0.001.
            uniforms: float ``[B, L]``; slot j is masked where ``uniforms[j]`` is below the floored ratio.
        """
        noised = add_noise(clean, self._floored(ratio), uniforms, self.mask_token_id)
        return diffusion_loss(self.denoise(prefix, noised.ids), clean, noised)

    def sequence_loss(self, token_ids: Tensor, answer_mask: Tensor, ratio: Tensor, uniforms: Tensor) -> Tensor:
        """The same loss on whole sequences, in which each row's answer has a length of its own.

        Args:
            token_ids: int64 ``[B, T]``, images as token ids.
            answer_mask: bool ``[B, T]``, true at the answer and its padding.
            ratio: float ``[B]``, before the floor.
            uniforms: float ``[B, T]``.
        """
        p = self._floored(ratio)
        masked = (uniforms < p[:, None]) & answer_mask
        x = self.model.embed_tokens(torch.where(masked, self.mask_token_id, token_ids))
        logits = self._logits(x, torch.ones_like(answer_mask), x.shape[1])
        losses = F.cross_entropy(logits.float().transpose(1, 2), token_ids, reduction="none")  # [B, T]
        per_row = (losses * masked).sum(-1) / p / answer_mask.sum(-1).clamp(min=1)
        return per_row.mean()

    # --- published checkpoints ------------------------------------------------------------------------------------

    def official_state_dict(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The language model's weights, or those in ``state_dict``, under the published names.

        The image tokenizer is a checkpoint of its own, which no training changes.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        return {official_name(name): tensor for name, tensor in weights.items() if not name.startswith("vision_tower.")}

    def vq_state_dict(self) -> dict[str, Tensor]:
        """The image tokenizer's weights under the published names, to be written to ``vq.safetensors``."""
        tower = self.vision_tower.state_dict() if self.vision_tower is not None else {}
        return {f"encoder.{name}": tensor for name, tensor in tower.items()}


def _locations(visual_mask: Tensor) -> Tensor:
    """int64 ``[B, P, 4]`` of images that are runs of visual tokens, each a square in raster order."""
    batch, length = visual_mask.shape
    locations = torch.full((batch, length, 4), -1, device=visual_mask.device)
    before = torch.cat((torch.zeros_like(visual_mask[:, :1]), visual_mask[:, :-1]), dim=1)
    start = visual_mask & ~before
    image = start.cumsum(-1) - 1  # which run
    positions = torch.arange(length, device=visual_mask.device).expand(batch, length)
    place = positions - torch.where(start, positions, 0).cummax(-1).values
    for row in range(batch):
        runs = torch.bincount(image[row][visual_mask[row]])
        for index, size in enumerate(runs.tolist()):
            here = visual_mask[row] & (image[row] == index)
            side = math.isqrt(size)
            cells = place[row][here]
            locations[row, here] = torch.stack(
                (torch.full_like(cells, index), torch.zeros_like(cells), cells // side, cells % side), dim=-1
            )
    return locations


def official_name(name: str) -> str:
    """The published name of one of our parameters, such as ``model.transformer.wte.weight``."""
    if name.startswith(_LAYERS):
        layer, inner = name.removeprefix(_LAYERS).split(".", 1)
        module, kind = inner.rsplit(".", 1)
        official = {ours: theirs for theirs, ours in _INNER.items()}[module]
        return f"{_BLOCKS}{layer}.{official}.{kind}"
    module, kind = name.rsplit(".", 1)
    return f"{_ROOT}{({ours: theirs for theirs, ours in _OUTER.items()})[module]}.{kind}"


def our_name(name: str) -> str:
    """Our name of a published parameter; one that MMaDA does not have keeps its name."""
    if name.startswith(_BLOCKS):
        layer, _, inner = name.removeprefix(_BLOCKS).partition(".")
        module, _, kind = inner.rpartition(".")
        return f"{_LAYERS}{layer}.{_INNER[module]}.{kind}" if module in _INNER else name
    module, _, kind = name.removeprefix(_ROOT).rpartition(".")
    return f"{_OUTER[module]}.{kind}" if name.startswith(_ROOT) and module in _OUTER else name


def detect(config: Mapping[str, Any]) -> bool:
    """Whether a published ``config.json`` is MMaDA's.

    LaViDa is built on the same LLaDA config but names a vision tower; plain LLaDA has a ``model_type`` of its own.
    """
    if "model_type" in config:
        return config["model_type"] == "mmada"
    return "d_model" in config and "n_layers" in config and not any(name.startswith("mm_") for name in config)


def load_official(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    vq: str | Path | None = None,
    *,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> MMada:
    """Load a published checkpoint, or one that was saved under the published names.

    Args:
        folder: with ``config.json``, safetensors weights and, usually, tokenizer files.
        dtype: of the language model; the image tokenizer stays in float32.
        device: where to put it.
        vq: the image tokenizer's file or folder; by default ``vq.safetensors`` beside the model's weights, then
            ``showlab/magvitv2`` in the local hub cache. Without one the model answers prompts without images.
        device_map: see `disp.models.checkpoint.assemble`.
        quantization: "4bit" or "8bit" for the linear layers of the blocks.

    Raises:
        DispError: a file is missing or damaged, or weights do not fit the architecture by name or shape.
    """
    folder = Path(folder)
    published = read_json(folder / "config.json")
    tokenizer, ids = None, {}
    if (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, config=MMadaConfig(), local_files_only=True)
        ids = _special_ids(tokenizer, folder)
        if not tokenizer.chat_template:
            tokenizer.chat_template = CHAT_TEMPLATE
    source = _vq_source(folder, vq)
    tower = build_encoder(read_encoder(source), str(source)) if source else None
    config = MMadaConfig.from_official(published, tower.sizes if tower else None, **ids)
    if tokenizer is not None:
        # Image tokens start right behind the tokenizer's last one, not behind the last embedding of the text model.
        config.image_token_offset = len(tokenizer)
        if len(tokenizer) + config.codebook_size > config.vocab_size:
            raise DispError(
                f"{folder}: image tokens {len(tokenizer)} to {len(tokenizer) + config.codebook_size - 1} do not fit "
                f"into {config.vocab_size} embeddings; tokenizer, image tokenizer and weights are of different models"
            )
    model, _ = assemble(
        lambda: _without_tower(config),
        read_weights(folder),
        our_name,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
        quantized=lambda name: name.startswith(_LAYERS),
        what=str(folder),
    )
    if tower is not None:
        model.vision_tower = tower.to(model.device)
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def _without_tower(config: MMadaConfig) -> MMada:
    model = MMada(config)
    model.vision_tower = None
    return model


def _vq_source(folder: Path, vq: str | Path | None) -> Path | None:
    """Where the image tokenizer's weights are; None where they are nowhere."""
    if vq is not None:
        return Path(vq)
    if (folder / VQ_FILE).is_file():
        return folder / VQ_FILE
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # A model that came from the hub brings its tokenizer from there too; one in a folder never opens a connection.
    offline = not folder.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve())
    try:
        cached = Path(snapshot_download(VQ_HUB_ID, allow_patterns="*.safetensors", local_files_only=offline))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return None
    return cached if any(cached.glob("*.safetensors")) else None


def _special_ids(tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, int]:
    """Ids under the names of `SPECIAL_TOKENS`."""
    known, ids = tokenizer.get_vocab(), {}
    for name, (spellings, _) in SPECIAL_TOKENS.items():
        found = [known[spelling] for spelling in spellings if spelling in known]
        if not found:
            raise DispError(f"{folder}: the tokenizer has no {' or '.join(spellings)}; is it MMaDA's?")
        ids[name] = found[0]
    return ids
