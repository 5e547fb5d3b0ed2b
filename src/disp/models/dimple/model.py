"""Dimple (rp-yu/Dimple-7B, arXiv 2505.16990): Qwen2.5-VL's vision tower in front of Dream's bidirectional transformer.

Pictures keep their aspect: they are resized to multiples of 28 pixels, and each 28-pixel square is one visual token.
Positions are three numbers a token (time, row, column), so a picture takes up as much of the position axis as its
longer side, and the response goes on after it. The head predicts the next token; `Dimple.denoise` shifts that away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from disp.data.sample import ImageSource, Query, open_image
from disp.diffusion.forward import MIN_RATIO
from disp.models.dimple.cache import PromptCache
from disp.models.dimple.config import DimpleConfig
from disp.models.dimple.images import cut_into_patches, lay_out, mrope_table, normalise_patches
from disp.models.dimple.padding import padded_lengths
from disp.models.interface import MDLM, Past, Prefix
from disp.models.parts.language import LanguageModel
from disp.models.parts.prompts import interleave, left_pad, messages_of, name_all_images, render_around_images
from disp.models.parts.slots import Inputs, denoise_slots


class Projector(nn.Module):
    """From the tower's width to the language model's; it comes after the tower's own merging layer."""

    def __init__(self, vision_width: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


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

    def __init__(self, config: DimpleConfig):
        super().__init__(config)
        self.model = LanguageModel(config)
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
        token_ids = left_pad(rows)
        attention_mask = token_ids != -1
        token_ids = token_ids.where(attention_mask, self.end_token_ids[-1])
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
        """`disp.models.dimple.images.cut_into_patches` with the model's own sizes."""
        return cut_into_patches(image, self.config.vision, self.config.processing)

    def pixel_values(self, patches: Tensor) -> Tensor:
        """`disp.models.dimple.images.normalise_patches` with the model's own sizes."""
        return normalise_patches(patches, self.config.vision, self.config.processing)

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
        messages, config = messages_of(query), self.config
        name_all_images(messages, query)
        texts = render_around_images(messages, self.required_tokenizer(), self.plain)
        ends = config.vision_start_token_id, config.vision_end_token_id
        images = [[ends[0], *[config.image_token_id] * count, ends[1]] for count in counts]
        return interleave(texts, images, self.tokenizer)

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

    def denoise_slots(
        self, prefix: Prefix, response: Tensor, slots: Tensor, past: Past | None = None, *, keep: bool = False
    ) -> tuple[Tensor, Past | None]:
        """See `disp.models.interface.MDLM.denoise_slots`."""

        def inputs(prefix: Prefix, response: Tensor) -> Inputs:
            embeds, positions = self.joined(prefix, response)
            padded = not prefix.attention_mask.all()
            mask = F.pad(prefix.attention_mask, (0, response.shape[1]), value=True)[:, None, None, :]
            return Inputs(embeds, self._table(positions), mask if padded else None)

        return denoise_slots(self.model, self.lm_head, prefix, response, slots, past, keep=keep, shift=1, inputs=inputs)

    def next_token_logits(self, prefix: Prefix, response: Tensor, cache: PromptCache | None = None) -> Tensor:
        """What the head says at the last prompt token and at each slot about the token after it, ``[B, L + 1, V]``."""
        if cache is None:
            hidden = self._response_hidden(prefix, response, torch.ones_like(response, dtype=torch.bool))
        else:
            hidden = self._cached_hidden(prefix, response, cache)
        # The head of a model spread over devices is not where the response is.
        return self.lm_head(hidden).to(response.device)

    def cache_prefix(self, prefix: Prefix) -> PromptCache:
        """A cache that the first pass fills: what it holds depends on the length of the response."""
        return PromptCache()

    def joined(self, prefix: Prefix, response: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``[B, P + L, d]`` and positions ``[B, P + L, 3]`` of prefix and response."""
        embeds = torch.cat((prefix.embeds, self.model.embed_tokens(response)), dim=1)
        positions = prefix.extras["positions"]
        seen = positions.masked_fill(~prefix.attention_mask[..., None], -1).amax((1, 2))
        following = seen[:, None] + 1 + torch.arange(response.shape[1], device=response.device)
        return embeds, torch.cat((positions, following[..., None].expand(-1, -1, 3)), dim=1)

    def _response_hidden(self, prefix: Prefix, response: Tensor, there: Tensor) -> Tensor:
        """Hidden states ``[B, L + 1, d]`` from the last prompt token on; slots are hidden where ``there`` is false."""
        embeds, positions = self.joined(prefix, response)
        valid = torch.cat((prefix.attention_mask, there), dim=1)
        return self._hidden(embeds, positions, valid, rows=response.shape[1] + 1)

    def _hidden(self, x: Tensor, positions: Tensor, valid: Tensor, *, rows: int) -> Tensor:
        """The language model without its head: ``[B, T, d]`` to the last rows' ``[B, rows, d]``."""
        table = self._table(positions)
        # Published masks let padding see itself alone; what padding sees is never read.
        mask = None if valid.all() else valid[:, None, None, :]
        return self.model.run(x, table, mask, rows=rows)

    def _cached_hidden(self, prefix: Prefix, response: Tensor, cache: PromptCache) -> Tensor:
        length = response.shape[1]
        tail = length + 1
        embeds, positions = self.joined(prefix, response)
        table = self._table(positions)
        mask = None
        if not prefix.attention_mask.all():
            mask = F.pad(prefix.attention_mask, (0, length), value=True)[:, None, None, :]
        if not cache.layers or cache.length != length:
            blank = torch.full_like(response, self.mask_token_id)
            x = cache.fill(self.model.layers, self.joined(prefix, blank)[0], table, mask, length)
            if response.equal(blank):
                return self.model.norm(x[:, -tail:])
        table = (table[0][:, :, -tail:], table[1][:, :, -tail:])
        return self.model.norm(cache.run(self.model.layers, embeds[:, -tail:], table, mask))

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
        logits = self.lm_head(hidden[masked]).float().to(targets.device)
        return F.cross_entropy(logits, targets[masked], reduction="sum") / masked.sum().clamp(min=1)

    # --- published checkpoints ------------------------------------------------------------------------------------

    def official_state_dict(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights, or those of ``state_dict``: our names are the published ones."""
        return dict(self.state_dict() if state_dict is None else state_dict)
