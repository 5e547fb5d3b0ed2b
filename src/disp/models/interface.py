"""What a multimodal diffusion language model (MDLM) is, to the rest of `disp`.

Letters for tensor dimensions, here and everywhere: B batch, P prefix length, L response length, N visual tokens,
V vocabulary, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from disp.data.sample import ImageSource, Query


@dataclass(frozen=True)
class Prefix:
    """Everything that stands before the response: embedded prompt and visual tokens, left-padded.

    Attributes:
        embeds: float ``[B, P, d]``.
        attention_mask: bool ``[B, P]``, false at padding.
        visual_mask: bool ``[B, P]``, true at image-patch tokens only: not at separators, newlines or padding.
        locations: int64 ``[B, P, 4]``: image, tile, row and column of each visual token, -1 elsewhere.
    """

    embeds: Tensor
    attention_mask: Tensor
    visual_mask: Tensor
    locations: Tensor

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def select(self, rows: Tensor) -> Prefix:
        """The given rows; ``rows`` int64 ``[B']`` may repeat a row."""
        return Prefix(self.embeds[rows], self.attention_mask[rows], self.visual_mask[rows], self.locations[rows])

    def with_masked(self, masked: Tensor, mask_embedding: Tensor) -> Prefix:
        """The prefix with the visual tokens of ``masked`` (bool ``[B, P]``) replaced by ``mask_embedding`` ``[d]``.

        Raises:
            ValueError: ``masked`` names a position that holds no visual token.
        """
        if (masked & ~self.visual_mask).any():
            raise ValueError("only visual tokens can be masked; `masked` is true at another position")
        return replace(self, embeds=torch.where(masked[..., None], mask_embedding.to(self.embeds.dtype), self.embeds))


class MDLM(PreTrainedModel):
    """A model that answers by denoising masked text; DiSP asks for nothing else. Families subclass it.

    ``denoise`` and ``forward`` return logits at response positions only, aligned so that position j predicts
    token j. Which response slots are open is the caller's boolean tensor, never read off the embeddings.

    Attributes:
        tokenizer: the model's tokenizer.
        mask_token_id: id of the mask token.
        end_token_ids: the end of a turn, then the padding that follows it.
        gen_length: response slots L that the model was made for.
        generation_defaults: decoding settings, arguments of `disp.diffusion.decode.DecodeConfig`.
    """

    tokenizer: PreTrainedTokenizerBase
    mask_token_id: int
    end_token_ids: tuple[int, ...]
    gen_length: int
    generation_defaults: dict[str, Any]

    @property
    def mask_embedding(self) -> Tensor:
        """The embedding of the mask token, float ``[d]``, which also stands in for masked visual tokens."""
        raise NotImplementedError

    def prepare(self, queries: Sequence[Query], features: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Tensors for a batch of queries, on the CPU; the arguments of `embed`.

        With ``features``, what `image_features` returned for each image of the batch, no image is opened.
        """
        raise NotImplementedError

    def image_features(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """What the vision tower makes of each image, on the CPU, to be used many times while the tower is frozen."""
        raise NotImplementedError

    def embed(self, **inputs: Tensor) -> Prefix:
        """Embed prepared inputs; runs the vision tower and the projector."""
        raise NotImplementedError

    def denoise(self, prefix: Prefix, response: Tensor) -> Tensor:
        """One pass: response ids int64 ``[B, L]`` (mask id at open slots) to logits ``[B, L, V]``."""
        raise NotImplementedError

    def encode_responses(self, responses: Sequence[str], length: int) -> Tensor:
        """Texts to int64 ``[B, length]``: the tokens, an end token, end-of-text padding. Too long is an error."""
        raise NotImplementedError

    def decode_responses(self, ids: Tensor) -> list[str]:
        """int64 ``[B, L]`` to texts, each cut before its first end token."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, queries: Sequence[Query]) -> Prefix:
        """`prepare`, move to the model's device, `embed`; without gradients."""
        return self.embed(**{name: tensor.to(self.device) for name, tensor in self.prepare(queries).items()})

    def forward(self, response: Tensor, **inputs: Tensor) -> Tensor:
        """`denoise` of `embed`, in one call, so that wrappers for distributed training see it."""
        return self.denoise(self.embed(**inputs), response)
