"""DiffusionGemma: a causal encoder reads prompt and picture, a bidirectional decoder denoises a canvas of tokens.

The network is the one of `transformers`; this module makes an MDLM of it. Two things differ from masked diffusion:

- There is no mask token: an open slot holds a uniformly random token. The rest of `disp` marks open slots with
  ``mask_token_id``, here the id of the image placeholder, which stands in no answer; `DiffusionGemma.denoise` puts
  fixed random tokens in its place.
- There is no mask embedding: what stands in for a masked visual token is a choice, ``visual_substitute``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    Cache,
    DiffusionGemmaConfig,
    DiffusionGemmaModel,
    DiffusionGemmaTextConfig,
    DynamicCache,
    Gemma4VisionConfig,
)

from disp.data.sample import ImageSource, Query, open_image
from disp.diffusion.canvas import CanvasSampling
from disp.draws import generator
from disp.errors import DispError
from disp.models.checkpoint import read_json, weight_files
from disp.models.interface import MDLM, Prefix

IMAGE_PLACEHOLDER = "<image>"
SUBSTITUTES = ("mean", "random", "zero")

# For checkpoints without a template of their own; the published one agrees with it on text and pictures.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '\n\n<|image|>\n\n' }}{% else %}{{ part.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


class DiffusionGemmaMDLMConfig(DiffusionGemmaConfig):
    """The published config and what `disp` adds to it; `transformers` reads it as its own and ignores the rest.

    Attributes:
        visual_substitute: what stands in for a masked visual token: the mean of the visual tokens of its own image
            ("mean"), the embeddings of random tokens, the noise that the model was trained with ("random"), or
            nothing ("zero").
        noise_seed: seed of the random tokens that fill open slots and, with "random", masked visual tokens.
        end_of_turn_token_id: the token ``<turn|>``.
        end_ids: further ids that end an answer.
        max_visual_tokens: visual tokens of an image at most; its size follows from it.
        sampling: arguments of `disp.diffusion.canvas.CanvasSampling` that differ from its defaults.
        denoising_steps: of one canvas, at most.
        gen_length: slots of a response; None for the whole canvas.
    """

    # The published ones, which are never None here.
    boi_token_id: int = 255_999
    eoi_token_id: int = 258_882
    image_token_id: int = 258_880
    canvas_length: int = 256

    visual_substitute: Literal["mean", "random", "zero"] = "mean"
    noise_seed: int = 0
    end_of_turn_token_id: int = 106
    end_ids: list[int] | None = None
    max_visual_tokens: int = 280
    sampling: dict[str, Any] | None = None
    denoising_steps: int = 48
    gen_length: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.visual_substitute not in SUBSTITUTES:
            raise DispError(f"visual_substitute must be one of {', '.join(SUBSTITUTES)}, got {self.visual_substitute}")
        if self.gen_length is None:
            self.gen_length = self.canvas_length
        if not 1 <= self.gen_length <= self.canvas_length:
            raise DispError(f"gen_length must be from 1 to the canvas of {self.canvas_length}, got {self.gen_length}")

    @classmethod
    def from_official(
        cls,
        config: dict[str, Any],
        vision: dict[str, Any] | None = None,
        generation: dict[str, Any] | None = None,
        images: dict[str, Any] | None = None,
    ) -> DiffusionGemmaMDLMConfig:
        """From the published files.

        Args:
            config: ``config.json``. Where it holds fields of this class, or a section ``"disp"`` of them, these come
                before those of the other files.
            vision: replaces the config's own ``vision_config``, if given.
            generation: ``generation_config.json``, for the sampler.
            images: the settings of the image processor, for the number of visual tokens.
        """
        fields = {**config, **config.get("disp", {})}
        fields.pop("disp", None)
        if vision is not None:
            fields["vision_config"] = vision
        generation = generation or {}
        names = ("t_min", "t_max", "stability_threshold", "confidence_threshold")
        sampling = {name: generation[name] for name in names if generation.get(name) is not None}
        sampling |= {name: value for name, value in (generation.get("sampler_config") or {}).items() if name[0] != "_"}
        if not fields.get("sampling"):
            fields["sampling"] = sampling
        if generation.get("max_denoising_steps"):
            fields.setdefault("denoising_steps", generation["max_denoising_steps"])
        if images and images.get("max_soft_tokens"):
            fields.setdefault("max_visual_tokens", images["max_soft_tokens"])
        if not fields.get("end_ids"):
            ends = generation.get("eos_token_id") or fields.get("eos_token_id")
            ends = ends or (fields.get("text_config") or {}).get("eos_token_id") or []
            fields["end_ids"] = [ends] if isinstance(ends, int) else list(ends)
        return cls.from_dict(fields)


@dataclass(frozen=True)
class GemmaPrefix(Prefix):
    """A prefix that brings along what stands in for its masked visual tokens: ``extras["substitutes"]`` ``[B, P, d]``.

    They are taken from the unmasked picture when it is embedded, so masking in several rounds gives what masking at
    once does.
    """

    def substitutes(self, mask_embedding: Tensor) -> Tensor:
        """What takes the place of each visual token, ``[B, P, d]``; ``mask_embedding`` is not needed."""
        return self.extras["substitutes"].to(self.embeds.dtype)

    def with_masked(self, masked: Tensor, mask_embedding: Tensor) -> GemmaPrefix:
        """The prefix with the visual tokens of ``masked`` (bool ``[B, P]``) replaced by their substitutes.

        Raises:
            ValueError: ``masked`` names a position that holds no visual token.
        """
        if (masked & ~self.visual_mask).any():
            raise ValueError("only visual tokens can be masked; `masked` is true at another position")
        return replace(self, embeds=torch.where(masked[..., None], self.substitutes(mask_embedding), self.embeds))


@dataclass(frozen=True)
class EncodedPrefix:
    """What the decoder reads of a prompt, and of canvases finished before: the encoder's keys and values.

    Attributes:
        past_key_values: the encoder's cache. The decoder reads it and never writes.
        attention_mask: bool ``[B, P]``, false at padding.
    """

    past_key_values: Cache
    attention_mask: Tensor

    def select(self, rows: Tensor) -> EncodedPrefix:
        """The given rows, in a cache of their own; ``rows`` int64 ``[B']`` may repeat a row."""
        cache: Any = copy.copy(self.past_key_values)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        return EncodedPrefix(cache, self.attention_mask[rows])


class DiffusionGemma(MDLM):
    """DiffusionGemma as an MDLM; see `disp.models.interface.MDLM` for what each method promises.

    Encoder and decoder share their weights (except one scalar a layer); here they share the modules that hold them,
    so that an adapter put on a layer acts in both, and is merged into the shared weight once.
    """

    config_class = DiffusionGemmaMDLMConfig
    config: DiffusionGemmaMDLMConfig
    base_model_prefix = "model"
    vision_names = ("vision_tower",)
    projector_names = ("embed_vision",)
    ratio_floor = 1e-3
    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}  # noqa: RUF012
    _no_split_modules = ["DiffusionGemmaDecoderTextLayer", "DiffusionGemmaEncoderTextLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: DiffusionGemmaMDLMConfig):
        super().__init__(config)
        text = self._text
        self.model = DiffusionGemmaModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self._share_layers()
        self.mask_token_id = config.image_token_id
        end_of_turn, padding = config.end_of_turn_token_id, text.pad_token_id or 0
        others = [token for token in config.end_ids or () if token not in (end_of_turn, padding)]
        self.end_token_ids = (end_of_turn, *others, padding)
        self.gen_length = config.gen_length or config.canvas_length  # the config has filled it in
        self.generation_defaults = {"sampler": "canvas", "steps": config.denoising_steps}
        self.sampling = CanvasSampling(**(config.sampling or {}))
        self._controls: tuple[Any, list[str]] | None = None
        self.post_init()

    def _share_layers(self) -> None:
        for encoder, decoder in zip(self.model.encoder.language_model.layers, self.model.decoder.layers, strict=True):
            encoder.mlp = decoder.mlp
            # The attention modules differ in how they use the cache, not in what they hold. One table of children for
            # both: whatever replaces a projection in one of them, such as an adapter, replaces it in the other.
            encoder.self_attn._modules = decoder.self_attn._modules

    @property
    def _text(self) -> DiffusionGemmaTextConfig:
        return cast(DiffusionGemmaTextConfig, self.config.text_config)

    @property
    def _vision(self) -> Gemma4VisionConfig:
        return cast(Gemma4VisionConfig, self.config.vision_config)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._text.vocab_size

    @property
    def mask_embedding(self) -> Tensor:
        """Float ``[d]``: the mean word embedding, which is the expected embedding of a random token; zero for "zero".

        Visual tokens are masked with their own substitutes instead, see `GemmaPrefix`.
        """
        embedding = self.model.decoder.embed_tokens
        if self.config.visual_substitute == "zero":
            return torch.zeros_like(embedding.weight[0])
        return embedding.weight.mean(0) * embedding.embed_scale.to(embedding.weight.dtype)

    def lora_modules(self) -> list[str]:
        """Full names of the linear layers of attention, dense MLPs and self-conditioning.

        The experts are left out, their weights being 3-D tensors rather than linear layers, and so is the router.
        Layers that encoder and decoder share go by their names in the encoder, where they come first; PEFT finds them
        so, and warns of missing ones in the decoder when it loads an adapter, which are the same modules.
        """
        parts = (".self_attn.", ".mlp.", ".self_conditioning.")
        return [
            name
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear) and "vision_tower" not in name and any(part in name for part in parts)
        ]

    def official_state_dict(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights, or those of ``state_dict``, under the published names: tied ones once."""
        weights = self.state_dict() if state_dict is None else state_dict
        return {name: value for name, value in weights.items() if name not in self.all_tied_weights_keys}

    # --- text and pixels to tensors -------------------------------------------------------------------------------

    def prepare(self, queries: Sequence[Query], features: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Tokenize and load a batch of queries.

        Args:
            queries: the batch.
            features: for each image of the batch in order, what `image_features` returned for it; the images are
                then not opened and the tower is not run again.

        Returns:
            ``token_ids`` int64 ``[B, P]``, left-padded with -1, where each visual token stands as ``-2 - index`` of
            its image among the batch's images; ``grids`` int64 ``[images, 2]``, rows and columns of visual tokens;
            and ``pixels`` uint8 ``[images, patches, 3 p²]`` or ``features`` float ``[N, d_vision]`` of all images.

        Raises:
            DispError: a prompt has more placeholders than there are images, or an image cannot be read.
        """
        inputs: dict[str, Tensor] = {}
        if features:
            inputs["grids"] = torch.tensor([each.shape[:2] for each in features])
            inputs["features"] = torch.cat([each.flatten(0, 1) for each in features])
        else:
            inputs = self.pixels([source for query in queries for source in query.images])
        counts = inputs["grids"].prod(-1).tolist()
        rows: list[list[int]] = []
        images = 0
        for query in queries:
            rows.append(self._token_ids(query, images, counts))
            images += len(query.images)
        return {"token_ids": left_pad(rows), **inputs}

    def pixels(self, sources: Sequence[ImageSource]) -> dict[str, Tensor]:
        """``pixels`` uint8 ``[images, patches, 3 p²]``, zero behind an image's last patch, and ``grids`` of images."""
        vision = self._vision
        patches = [
            image_patches(
                open_image(source), vision.patch_size, vision.pooling_kernel_size, self.config.max_visual_tokens
            )
            for source in sources
        ]
        longest = max((len(each) for each, _ in patches), default=0)
        pixels = np.zeros((len(patches), longest, 3 * vision.patch_size**2), np.uint8)
        for index, (each, _) in enumerate(patches):
            pixels[index, : len(each)] = each
        grids = torch.tensor([grid for _, grid in patches], dtype=torch.int64).reshape(-1, 2)
        return {"pixels": torch.from_numpy(pixels), "grids": grids}

    @torch.no_grad()
    def image_features(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """The tower's output for each image, float ``[rows, columns, d_vision]``, on the CPU."""
        inputs = self.pixels(sources)
        if not len(sources):
            return []
        features = self._vision_features(inputs["pixels"].to(self.device), inputs["grids"].to(self.device)).cpu()
        grids = inputs["grids"].tolist()
        parts = features.split([rows * columns for rows, columns in grids])
        return [part.unflatten(0, tuple(grid)).clone() for part, grid in zip(parts, grids, strict=True)]

    def _token_ids(self, query: Query, first_image: int, counts: Sequence[int]) -> list[int]:
        config = self.config
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
        user[0]["content"] = f"{IMAGE_PLACEHOLDER}\n" * missing + user[0]["content"]
        conversation: Any = [
            {"role": message["role"], "content": self._content(message["content"], message["role"] == "user")}
            for message in messages
        ]
        rendered = self.tokenizer.apply_chat_template(
            conversation,
            chat_template=None if self.tokenizer.chat_template else CHAT_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
        image_token = str(self.tokenizer.convert_ids_to_tokens(config.image_token_id))
        chunks = str(rendered).split(image_token)
        if len(chunks) != len(query.images) + 1:
            raise DispError(
                f"the chat template writes {len(chunks) - 1} {image_token} for {len(query.images)} images; use the "
                "template of the published checkpoint"
            )
        ids: list[int] = []
        for index, chunk in enumerate(chunks):
            if index:
                image = first_image + index - 1
                ids += [config.boi_token_id, *[-2 - image] * counts[image], config.eoi_token_id]
            ids += self.tokenizer(chunk, add_special_tokens=False)["input_ids"]
        return ids

    def _content(self, text: str, may_hold_images: bool) -> str | list[dict[str, str]]:
        """A message as the template wants it: a text, or texts and pictures in order."""
        if not may_hold_images or IMAGE_PLACEHOLDER not in text:
            return self._plain(text)
        parts: list[dict[str, str]] = []
        for index, chunk in enumerate(text.split(IMAGE_PLACEHOLDER)):
            if index:
                parts.append({"type": "image"})
            if chunk.strip():
                parts.append({"type": "text", "text": self._plain(chunk)})
        return parts

    def _control_tokens(self) -> list[str]:
        # Gemma's tokenizer has thousands of added tokens, among them blank lines and HTML tags, which are text: only
        # those marked special count, and those that this module itself relies on.
        if self._controls is None or self._controls[0] is not self.tokenizer:
            config = self.config
            ids = {config.boi_token_id, config.eoi_token_id, config.image_token_id, *self.end_token_ids}
            tokens = {str(each) for each in self.tokenizer.added_tokens_decoder.values() if each.special}
            tokens |= {str(self.tokenizer.convert_ids_to_tokens(token)) for token in ids} | {"<|turn>"}
            self._controls = self.tokenizer, sorted(tokens - {""})
        return self._controls[1]

    # --- tensors to logits ----------------------------------------------------------------------------------------

    def _vision_features(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """uint8 ``[images, patches, 3 p²]`` to the tower's features ``[N, d_vision]`` of all images in order."""
        positions = patch_positions(grids, self._vision.pooling_kernel_size, pixels.shape[1])
        return self.model.encoder.vision_tower(
            pixel_values=(pixels.to(torch.float32) / 255), pixel_position_ids=positions
        ).last_hidden_state

    def embed(  # type: ignore[override]  # the family's own arguments
        self, token_ids: Tensor, grids: Tensor, pixels: Tensor | None = None, features: Tensor | None = None
    ) -> GemmaPrefix:
        """Embed prepared inputs.

        Args:
            token_ids: int64 ``[B, P]`` as `prepare` lays it out.
            grids: int64 ``[images, 2]``, rows and columns of each image's visual tokens.
            pixels: uint8 ``[images, patches, 3 p²]``; not needed where ``features`` is given.
            features: float ``[N, d_vision]``, the tower's output for the same images.
        """
        visual_mask = token_ids < -1
        embeds = self.model.decoder.embed_tokens(token_ids.clamp(min=0))
        locations = torch.full((*token_ids.shape, 4), -1, device=token_ids.device)
        image = -2 - token_ids[visual_mask]
        if visual_mask.any():
            if features is None:
                if pixels is None:
                    raise ValueError("visual tokens need `pixels` or `features`")
                features = self._vision_features(pixels, grids)
            tokens = self.model.encoder.embed_vision(features.to(self.dtype))  # [N, d]
            # Visual tokens of one image are consecutive and images are in order of appearance.
            embeds = embeds.masked_scatter(visual_mask[..., None], tokens.to(embeds.dtype))
            counts = grids.prod(-1)
            place = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
            rows, columns = visual_mask.nonzero()[:, 0], grids[image, 1]
            first = torch.full((len(token_ids),), len(grids), device=image.device)
            first.scatter_reduce_(0, rows, image, "amin")
            locations[visual_mask] = torch.stack(
                (image - first[rows], torch.zeros_like(place), place // columns, place % columns), dim=-1
            )
        extras = {"substitutes": self._substitutes(embeds.detach(), visual_mask, image)}
        return GemmaPrefix(embeds, token_ids != -1, visual_mask, locations, extras)

    @torch.no_grad()
    def _substitutes(self, embeds: Tensor, visual_mask: Tensor, image: Tensor) -> Tensor:
        """What stands in for each masked visual token, ``[B, P, d]``; ``image`` int64 ``[N]`` numbers the images."""
        substitutes = torch.zeros_like(embeds)
        if self.config.visual_substitute == "mean" and len(image):
            tokens = embeds[visual_mask].to(torch.promote_types(embeds.dtype, torch.float32))
            sums = tokens.new_zeros(int(image.max()) + 1, tokens.shape[-1]).index_add_(0, image, tokens)
            means = sums / image.bincount(minlength=len(sums)).clamp(min=1)[:, None]
            substitutes[visual_mask] = means[image].to(embeds.dtype)
        elif self.config.visual_substitute == "random" and len(image):
            ordinal = (visual_mask.cumsum(-1) - 1)[visual_mask]
            ids = self._random_ids("visual substitute", int(ordinal.max()) + 1).to(image.device)
            substitutes[visual_mask] = self.model.decoder.embed_tokens(ids[ordinal]).to(embeds.dtype)
        return substitutes

    def _random_ids(self, purpose: str, count: int) -> Tensor:
        """Uniformly random ids, int64 ``[count]``; a longer draw begins with the shorter one."""
        uniforms = generator(self.config.noise_seed, purpose).random(count)
        return torch.from_numpy((uniforms * self.vocab_size).astype(np.int64))

    def cache_prefix(self, prefix: Prefix) -> EncodedPrefix:
        """Run the encoder; exact, the decoder reads nothing else of a prompt."""
        valid = prefix.attention_mask
        positions = (valid.long().cumsum(-1) - 1).clamp(min=0)
        return self._encode(prefix.embeds, valid, positions, DynamicCache(config=self._text), prefix)

    def append(self, encoded: EncodedPrefix, ids: Tensor) -> EncodedPrefix:
        """The prompt continued by finished canvases, ids int64 ``[B, L]``; ``encoded`` stays as it is."""
        valid = F.pad(encoded.attention_mask, (0, ids.shape[1]), value=True)
        positions = valid.long().cumsum(-1)[:, -ids.shape[1] :] - 1
        cache = encoded.select(torch.arange(len(ids), device=ids.device)).past_key_values
        return self._encode(self.model.decoder.embed_tokens(ids), valid, positions, cache)

    def _encode(
        self, embeds: Tensor, valid: Tensor, positions: Tensor, cache: Cache, prefix: Prefix | None = None
    ) -> EncodedPrefix:
        # A plain forward pass of the library drops the mask that lets the tokens of a picture see each other, as
        # they do in generation: it has to be made here.
        visual = prefix.visual_mask.long() if prefix is not None else torch.zeros_like(positions)
        masks = self.model.encoder.create_masks_for_generate(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=valid,
            past_key_values=cache,
            position_ids=positions,
            mm_token_type_ids=visual,
        )
        output = self.model.encoder(
            inputs_embeds=embeds, attention_mask=masks, position_ids=positions, past_key_values=cache
        )
        return EncodedPrefix(output.past_key_values, valid)

    def denoise(self, prefix: Prefix, response: Tensor, cache: EncodedPrefix | None = None) -> Tensor:
        """One denoising pass: int64 ``[B, L]`` to logits ``[B, L, V]``, without self-conditioning.

        Slots that hold ``mask_token_id`` are open. They get random tokens, which depend on the slot and on the
        config's ``noise_seed`` alone: the result is that of one draw of the noise.

        Raises:
            DispError: the response is longer than a canvas.
        """
        noise = self._random_ids("canvas", response.shape[1]).to(response.device)
        canvas = torch.where(response == self.mask_token_id, noise, response)
        return self.denoise_canvas(self.cache_prefix(prefix) if cache is None else cache, canvas)

    def denoise_canvas(
        self,
        encoded: EncodedPrefix,
        canvas: Tensor,
        self_conditioning: Tensor | None = None,
        conditioned: Tensor | None = None,
    ) -> Tensor:
        """One pass of the decoder: ids int64 ``[B, L]``, taken as they are, to logits ``[B, L, V]``.

        Args:
            encoded: B rows of prompts.
            canvas: the ids.
            self_conditioning: float ``[B, L, V]``, the logits of the pass before; None for the first pass, which is
                not the same as zeros.
            conditioned: bool ``[B]``, the rows that ``self_conditioning`` is used for; None for all.

        Raises:
            DispError: the canvas is longer than the model's.
        """
        length = canvas.shape[1]
        if length > self.config.canvas_length:
            raise DispError(
                f"{length} response slots are more than the canvas of this model holds ({self.config.canvas_length}); "
                "lower gen_length, or decode with the sampler 'canvas', which takes several canvases"
            )
        ends = encoded.attention_mask.sum(-1, keepdim=True)
        hidden = self.model.decoder(
            decoder_input_ids=canvas,
            past_key_values=encoded.past_key_values,
            self_conditioning_logits=self_conditioning,
            self_conditioning_mask=conditioned,
            decoder_attention_mask=F.pad(encoded.attention_mask, (0, length), value=True),
            decoder_position_ids=ends + torch.arange(length, device=canvas.device),
        ).last_hidden_state
        logits = self.lm_head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        cap = self._text.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def noisy_loss(self, prefix: Prefix, clean: Tensor, ratio: Tensor, uniforms: Tensor) -> Tensor:
        """Cross-entropy of the clean token at every slot of the canvas, replaced or not, unweighted; a scalar.

        Each token is replaced by a uniformly random one with probability ``t = 1e-3 + (1 - 1e-3) ratio``. In half of
        the rows the logits of a first pass, which has no gradient, condition the second one. Both the random ids and
        the choice of rows are read off the digits of the arguments that decide nothing else, so the loss is a
        function of its arguments. The published recipe's autoregressive loss of the encoder is left out: the
        encoder's text weights are the decoder's, and the diffusion loss reaches the projector through them.

        Args:
            prefix: prompts and visual tokens, B rows.
            clean: int64 ``[B, L]``, padding included.
            ratio: float ``[B]`` in [0, 1].
            uniforms: float ``[B, L]`` in [0, 1).
        """
        # 1. Noise. Given u < t, u/t is uniform in [0, 1).
        ratio = self.ratio_floor + (1 - self.ratio_floor) * ratio[:, None]
        random = (uniforms / ratio * self.vocab_size).long().clamp(max=self.vocab_size - 1)
        canvas = torch.where(uniforms < ratio, random, clean)
        # 2. Self-conditioning where the sixteenth binary digit of t is one.
        conditioned = (ratio[:, 0] * 2**16).long() % 2 == 1
        encoded, first = self.cache_prefix(prefix), None
        if conditioned.any():
            with torch.no_grad():
                first = self.denoise_canvas(encoded, canvas)
        # 3. The loss.
        logits = self.denoise_canvas(encoded, canvas, first, None if first is None else conditioned)
        return F.cross_entropy(logits.flatten(0, 1), clean.flatten())


def left_pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids to int64 ``[B, P]``, padded with -1 on the left."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), -1)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row, dtype=torch.int64)
    return ids


def token_grid(width: int, height: int, side: int, max_tokens: int) -> tuple[int, int]:
    """Rows and columns of visual tokens of a picture: as many as its shape allows, scaled up too.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        side: of a visual token, in pixels.
        max_tokens: rows times columns at most.
    """
    scale = math.sqrt(max_tokens * side**2 / (width * height))
    rows, columns = math.floor(scale * height / side), math.floor(scale * width / side)
    if rows == 0:
        return 1, max(1, min(width // height, max_tokens))
    if columns == 0:
        return max(1, min(height // width, max_tokens)), 1
    return rows, columns


def image_patches(image: Image.Image, patch: int, pooling: int, max_tokens: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture, resized to a whole number of visual tokens, in patches.

    Args:
        image: in RGB.
        patch: side of a patch, in pixels.
        pooling: patches along a side of a visual token.
        max_tokens: visual tokens at most.

    Returns:
        uint8 ``[patches, 3 p²]`` in raster order, each patch row by row with its channels last, and the rows and
        columns of visual tokens.
    """
    rows, columns = token_grid(image.width, image.height, patch * pooling, max_tokens)
    size = (columns * patch * pooling, rows * patch * pooling)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.uint8).reshape(rows * pooling, patch, columns * pooling, patch, 3)
    return array.transpose(0, 2, 1, 3, 4).reshape(-1, 3 * patch**2), (rows, columns)


def patch_positions(grids: Tensor, pooling: int, count: int) -> Tensor:
    """Column and row of each patch, int64 ``[images, count, 2]``, -1 behind an image's last patch.

    Args:
        grids: int64 ``[images, 2]``, rows and columns of visual tokens.
        pooling: patches along a side of a visual token.
        count: patches a picture, padding included.
    """
    place = torch.arange(count, device=grids.device).expand(len(grids), count)
    columns = grids[:, 1:] * pooling
    positions = torch.stack((place % columns, place // columns), dim=-1)
    return positions.masked_fill((place >= grids.prod(-1, keepdim=True) * pooling**2)[..., None], -1)


def detect(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is of this family."""
    return config.get("model_type") == DiffusionGemmaMDLMConfig.model_type


def load_official(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> DiffusionGemma:
    """Load a published checkpoint, or one that was saved by `disp`, which uses the published names.

    Args:
        folder: with ``config.json``, safetensors weights and, usually, tokenizer files.
        dtype: of the weights.
        device: where to put it, unless ``device_map`` is given.
        device_map: as `transformers` takes it. A layer of the encoder and the decoder's layer of the same number hold
            the same weights, so they have to go to the same device.
        quantization: None; nine tenths of the weights are 3-D tensors of experts, which bitsandbytes leaves alone.

    Raises:
        DispError: a file is missing or damaged, weights do not fit the architecture by name or shape, or
            ``quantization`` is asked for.
    """
    folder = Path(folder)
    if quantization is not None:
        raise DispError(
            f"{folder}: DiffusionGemma cannot be quantized here: most of its weights are fused experts, which "
            "bitsandbytes does not quantize; load it in bfloat16, over several devices with device_map if need be"
        )
    files = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
    found = {name: read_json(folder / name) for name in files if (folder / name).is_file()}
    images = found.get("preprocessor_config.json") or found.get("processor_config.json", {}).get("image_processor")
    config = DiffusionGemmaMDLMConfig.from_official(
        read_json(folder / "config.json"), None, found.get("generation_config.json"), images
    )
    stored = stored_names(folder)
    try:
        loaded: Any = DiffusionGemma.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=device_map,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below
        )
    except (OSError, SafetensorError) as error:
        raise DispError(f"{folder}: the weights cannot be read ({error}); download the checkpoint again") from None
    model, report = loaded
    # The library's own lists leave out weights that share a module, so names are compared here.
    expected = model.official_state_dict().keys()
    problems = [
        f"{len(names)} {kind} ({', '.join(sorted(names)[:8])})"
        for kind, names in (
            ("missing keys", expected - stored),
            ("surplus keys", stored - expected - model.all_tied_weights_keys.keys()),
            ("wrong shapes", {str(each) for each in report["mismatched_keys"]}),
        )
        if names
    ]
    if problems:
        raise DispError(f"{folder}: the weights do not fit the config: {'; '.join(problems)}")
    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        model.tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
    return (model if device_map is not None else model.to(device)).eval()


def stored_names(folder: Path) -> set[str]:
    """The key names in a checkpoint's weight files.

    Raises:
        DispError: a file is missing or damaged.
    """
    names: set[str] = set()
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names |= set(file.keys())
        except (SafetensorError, OSError) as error:
            raise DispError(f"{path} is no readable safetensors file ({error}); download it again") from None
    return names
