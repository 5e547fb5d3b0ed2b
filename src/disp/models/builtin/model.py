"""The LLaDA-V arrangement: vision tower, projector, bidirectional transformer. The built-in model is a small one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from disp.data.sample import ImageSource, Query, open_image
from disp.errors import DispError
from disp.models.interface import Prefix
from disp.models.parts.backbone import Backbone as LanguageBackbone
from disp.models.parts.backbone import BackboneConfig, BackboneMDLM
from disp.models.parts.prompts import (
    IMAGE_PLACEHOLDER,
    interleave,
    left_pad,
    messages_of,
    name_all_images,
    render_around_images,
)
from disp.models.parts.transformer import attention_inputs
from disp.models.parts.vision import VisionTower, normalise_pixels, projector


class LladaVConfig(BackboneConfig):
    """Sizes of a model in the LLaDA-V arrangement.

    ``vision`` holds the arguments of `VisionTower`; ``generation`` the decoding defaults (arguments of
    `disp.decoding.samplers.decode_config`); ``sizes`` are those of `BackboneConfig`.
    """

    model_type = "disp_llada_v"

    def __init__(
        self,
        mask_token_id: int = 0,
        end_token_ids: Sequence[int] = (1, 2),
        vision: dict[str, Any] | None = None,
        gen_length: int = 32,
        generation: dict[str, Any] | None = None,
        **sizes: Any,
    ):
        super().__init__(**sizes)
        self.mask_token_id, self.end_token_ids = mask_token_id, list(end_token_ids)
        self.vision = vision or {}
        self.gen_length, self.generation = gen_length, generation or {}


class Backbone(LanguageBackbone):
    """The parts under the ``model.`` prefix of a checkpoint."""

    def __init__(self, config: LladaVConfig):
        super().__init__(config)
        self.vision_tower = VisionTower(**config.vision)
        self.mm_projector = projector(config.vision["hidden_size"], config.hidden_size)


class LladaV(BackboneMDLM):
    """An MDLM in the LLaDA-V arrangement; see `disp.models.interface.MDLM` for what each method promises."""

    config_class: type[LladaVConfig] = LladaVConfig
    backbone_class: type[Backbone] = Backbone
    base_model_prefix = "model"
    # Whether a query's only image is moved to the beginning of its message.
    image_first = False
    _no_split_modules = ["Block", "TowerBlock"]  # noqa: RUF012  # the library's own class attribute

    def __init__(self, config: LladaVConfig):
        super().__init__(config)
        self.model = self.backbone_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mask_token_id = config.mask_token_id
        self.end_token_ids = tuple(config.end_token_ids)
        self.gen_length, self.generation_defaults = config.gen_length, dict(config.generation)
        self.post_init()

    # --- text and pixels to tensors -------------------------------------------------------------------------------

    def prepare(self, queries: Sequence[Query], features: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Tokenize and load a batch of queries.

        Args:
            queries: the batch.
            features: for each image of the batch in order, what `image_features` returned for it; the images are
                then not opened and the tower is not run again.

        Returns:
            ``token_ids`` int64 ``[B, P]``, left-padded with -1, where each visual token stands as ``-2 - index`` of
            its image among the batch's images; and ``pixels`` uint8 ``[images, 3, S, S]``, or ``features`` float
            ``[images, N, d_vision]``.
        """
        token_ids = self._prepare_text(queries)
        if features:
            return {"token_ids": token_ids, "features": torch.stack(list(features))}
        return {"token_ids": token_ids, "pixels": self._prepare_images([s for q in queries for s in q.images])}

    def _prepare_images(self, sources: Sequence[ImageSource]) -> Tensor:
        size = self.model.vision_tower.image_size
        pixels = [self._pixels(open_image(source)) for source in sources]
        return torch.from_numpy(np.stack(pixels) if pixels else np.zeros((0, 3, size, size), np.uint8))

    @torch.no_grad()
    def image_features(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """The tower's output for each image, on the CPU, in the form that `prepare` takes."""
        return list(self._vision_features(self._prepare_images(sources).to(self.device)).cpu())

    def _prepare_text(self, queries: Sequence[Query]) -> Tensor:
        if getattr(self, "tokenizer", None) is None:
            raise DispError("the model came without a tokenizer; put its files beside config.json and load it again")
        rows: list[list[int]] = []
        images = 0
        for query in queries:
            rows.append(self._token_ids(query, first_image=images))
            images += len(query.images)
        return left_pad(rows)

    def _token_ids(self, query: Query, first_image: int) -> list[int]:
        messages = messages_of(replace(query, system=query.system or self.default_system))
        name_all_images(messages, query, "\n")
        if self.image_first and len(query.images) == 1:
            user = [message for message in messages if message["role"] == "user"]
            holder = next(message for message in user if IMAGE_PLACEHOLDER in message["content"])
            holder["content"] = f"{IMAGE_PLACEHOLDER}\n" + holder["content"].replace(IMAGE_PLACEHOLDER, "").strip()
        texts = render_around_images(messages, self.tokenizer, self._plain)
        images = [[-2 - (first_image + index)] * self._slots_an_image for index in range(len(query.images))]
        return interleave(texts, images, self.tokenizer)

    @property
    def _slots_an_image(self) -> int:
        """How often an image's placeholder stands in ``token_ids``."""
        return self.model.vision_tower.grid**2

    def _pixels(self, image: Image.Image) -> np.ndarray:
        size = self.model.vision_tower.image_size
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)

    # --- tensors to logits ----------------------------------------------------------------------------------------

    def _vision_features(self, pixels: Tensor) -> Tensor:
        """uint8 pixels ``[images, 3, S, S]`` to the tower's features ``[images, N, d_vision]``."""
        return self.model.vision_tower(normalise_pixels(pixels).to(self.dtype))

    def embed(  # type: ignore[override]  # the inputs' names are the family's own
        self, token_ids: Tensor, pixels: Tensor | None = None, features: Tensor | None = None
    ) -> Prefix:
        """Embed prepared inputs.

        Args:
            token_ids: int64 ``[B, P]`` as `prepare` lays it out.
            pixels: uint8 ``[images, 3, S, S]``; not needed where ``features`` is given.
            features: the tower's output for the same images, to run the tower only once.
        """
        visual_mask = token_ids < -1
        embeds = self.model.embed_tokens(token_ids.clamp(min=0))
        locations = torch.full((*token_ids.shape, 4), -1, device=token_ids.device)
        if visual_mask.any():
            if features is None:
                if pixels is None:
                    raise ValueError("placeholders of images need `pixels` or `features`")
                features = self._vision_features(pixels)
            grid = self.model.vision_tower.grid
            tokens = self.model.mm_projector(features).flatten(0, 1)  # [images * N, d]
            # Placeholders of one image are consecutive and images are in order of appearance.
            embeds = embeds.masked_scatter(visual_mask[..., None], tokens.to(embeds.dtype))
            place = torch.arange(grid * grid, device=token_ids.device).repeat(features.shape[0])
            image = -2 - token_ids[visual_mask]
            rows = visual_mask.nonzero()[:, 0]
            first = torch.full((token_ids.shape[0],), features.shape[0], device=token_ids.device)
            first.scatter_reduce_(0, rows, image, "amin")
            locations[visual_mask] = torch.stack(
                (image - first[rows], torch.zeros_like(place), place // grid, place % grid), dim=-1
            )
        return Prefix(embeds, token_ids != -1, visual_mask, locations)

    def denoise(self, prefix: Prefix, response: Tensor, cache: Any = None) -> Tensor:
        """One denoising pass: int64 ``[B, L]`` to logits ``[B, L, V]``."""
        batch, length = response.shape
        x = torch.cat((prefix.embeds, self.model.embed_tokens(response)), dim=1)
        valid = torch.cat((prefix.attention_mask, prefix.attention_mask.new_ones(batch, length)), dim=1)
        # Only the response's rows of the last layer are ever read; leaving out the others is exact.
        # The head of a model spread over devices is not where the response is.
        return self.lm_head(self._hidden(x, valid, rows=length)).to(response.device)

    def _hidden(self, x: Tensor, valid: Tensor, *, rows: int, mask: Tensor | None = None) -> Tensor:
        """The language model without its head: ``[B, T, d]`` to the last rows' ``[B, rows, d]``.

        Args:
            x: embedded tokens.
            valid: bool ``[B, T]``, false at padding.
            rows: how many of the last positions are wanted.
            mask: bool ``[B, 1, T, T]``, which query sees which key, besides padding; None for all.
        """
        table, padding = attention_inputs(valid, self.config.head_dim, self.config.rope_theta)
        if mask is not None:
            padding = mask if padding is None else padding & mask
        for layer in self.model.layers[:-1]:
            x = layer(x, table, padding, x.shape[1])
        if mask is not None and padding is not None:
            padding = padding[:, :, x.shape[1] - rows :]
        return self.model.norm(self.model.layers[-1](x, table, padding, rows))
