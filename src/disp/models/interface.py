"""What a multimodal diffusion language model (MDLM) is, to the rest of `disp`.

Letters for tensor dimensions, here and everywhere: B batch, P prefix length, L response length, N visual tokens,
V vocabulary, d width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, initialization

from disp.data.sample import ImageSource, Query
from disp.diffusion.forward import add_noise, diffusion_loss
from disp.errors import DispError
from disp.models.parts.graph import joined
from disp.models.parts.places import raster_boxes


@dataclass(frozen=True)
class Prefix:
    """Everything that stands before the response: embedded prompt and visual tokens, left-padded.

    Attributes:
        embeds: float ``[B, P, d]``.
        attention_mask: bool ``[B, P]``, false at padding.
        visual_mask: bool ``[B, P]``, true at image-patch tokens only: not at separators, newlines or padding.
        locations: int64 ``[B, P, 4]``: image, tile, row and column of each visual token, -1 elsewhere. Tile 0 is the
            whole picture; where a family merges its other tiles into one map, that map is tile 1.
        extras: a family's own tensors, first dimension B. One whose second dimension is P says something of each
            position.
        separators: bool ``[B, P]``, true at what a family puts between visual tokens, such as newline vectors; None
            where there is nothing of the kind. Published DiSP ranks and masks these like visual tokens.
    """

    embeds: Tensor
    attention_mask: Tensor
    visual_mask: Tensor
    locations: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    separators: Tensor | None = None

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def select(self, rows: Tensor) -> Prefix:
        """The given rows; ``rows`` int64 ``[B']`` may repeat a row."""
        return replace(
            self,
            embeds=self.embeds[rows],
            attention_mask=self.attention_mask[rows],
            visual_mask=self.visual_mask[rows],
            locations=self.locations[rows],
            extras={name: tensor[rows] for name, tensor in self.extras.items()},
            separators=None if self.separators is None else self.separators[rows],
        )

    def packed(self) -> Prefix:
        """The same without the positions that nobody sees, as far as rows are as long as the longest one of them.

        Positions count the tokens that are there, unless a family numbers them, so this changes no prediction.
        """
        there = self.attention_mask
        length = int(there.sum(-1).max()) if len(self) else 0
        # Those that are seen in their order, on the right.
        order = there.int().argsort(dim=-1, stable=True)[:, there.shape[1] - length :]

        def at(tensor: Tensor) -> Tensor:
            return tensor[torch.arange(len(self), device=tensor.device)[:, None], order.to(tensor.device)]

        width = there.shape[1]
        return replace(
            self,
            embeds=at(self.embeds),
            attention_mask=at(there),
            visual_mask=at(self.visual_mask),
            locations=at(self.locations),
            extras={
                name: at(tensor) if tensor.ndim > 1 and tensor.shape[1] == width else tensor
                for name, tensor in self.extras.items()
            },
            separators=None if self.separators is None else at(self.separators),
        )

    def scored(self, separators: bool) -> Tensor:
        """Bool ``[B, P]``: the visual tokens, and if asked for the separators between them."""
        return self.visual_mask | self.separators if separators and self.separators is not None else self.visual_mask

    def with_masked(self, masked: Tensor, mask_embedding: Tensor) -> Prefix:
        """The prefix with the visual tokens of ``masked`` (bool ``[B, P]``) replaced by ``mask_embedding`` ``[d]``.

        Separators can be masked, too.

        Raises:
            ValueError: ``masked`` names a position that holds neither a visual token nor a separator.
        """
        if (masked & ~self.scored(separators=True)).any():
            raise ValueError("only visual tokens can be masked; `masked` is true at another position")
        return replace(self, embeds=torch.where(masked[..., None], self.substitutes(mask_embedding), self.embeds))

    def substitutes(self, mask_embedding: Tensor) -> Tensor:
        """What takes the place of a masked visual token, broadcastable to ``[B, P, d]``: the mask embedding ``[d]``."""
        return mask_embedding.to(self.embeds.dtype)


class Past:
    """What a denoising step keeps of the prompt for later steps; each family's own."""

    def select(self, rows: Tensor) -> Past:
        """The given rows; ``rows`` int64 ``[B']``."""
        raise NotImplementedError


class MDLM(PreTrainedModel):
    """A model that answers by denoising masked text; DiSP asks for nothing else. Families subclass it.

    ``denoise`` returns logits at response positions only, aligned so that position j predicts token j: families whose
    heads predict the next token shift inside. Which response slots are open is the caller's boolean tensor, never
    read off the embeddings.

    Attributes:
        tokenizer: the model's tokenizer.
        source: the folder that a published checkpoint came from; None where there is no published layout to keep.
        adapter: the folder of the adapter that was added to the weights, if one was.
        mask_token_id: id of the mask token.
        end_token_ids: the end of a turn, then the padding that follows it.
        answers_end_turns: whether the end of turn stands between an answer and its padding.
        banned_token_ids: ids that decoding never predicts; the mask token is banned besides.
        gen_length: response slots L that the model was made for.
        default_system: the system message of chats that have none.
        generation_defaults: decoding settings, arguments of `disp.decoding.samplers.decode_config`.
        generation_presets: the published settings of one benchmark each, by its name; the same arguments.
        learning_rate: peak of fine-tuning where none is given; None where one has to be.
        ratio_floor: the smallest mask ratio of the family's training loss: `noisy_loss` takes t in [0, 1] and masks
            with probability ``ratio_floor + (1 - ratio_floor) * t``.
        vision_names: substrings of the names of the vision tower's parameters.
        projector_names: substrings of the names of the projector's parameters.
    """

    tokenizer: PreTrainedTokenizerBase
    source: Path | None = None
    adapter: str | None = None
    mask_token_id: int
    end_token_ids: tuple[int, ...]
    answers_end_turns: bool = True
    banned_token_ids: tuple[int, ...] = ()
    gen_length: int
    default_system: str | None = None
    generation_defaults: dict[str, Any]
    generation_presets: Mapping[str, Mapping[str, Any]] = {}
    learning_rate: float | None = None
    ratio_floor: float = 0.0
    vision_names: tuple[str, ...] = ("vision_tower",)
    projector_names: tuple[str, ...] = ("mm_projector",)
    # `forward` takes the family's own inputs as keyword arguments; the library's trainer would take them for its own
    # and stop dividing the loss by the number of accumulated batches.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    main_input_name = "clean"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "denoise" in cls.__dict__ and "denoise_slots" not in cls.__dict__:
            # What the class above computes with fewer rows is no longer what `denoise` says.
            cls.denoise_slots = MDLM.denoise_slots  # type: ignore[method-assign]

    @property
    def mask_embedding(self) -> Tensor:
        """The embedding of the mask token, float ``[d]``, which also stands in for masked visual tokens.

        This one, and the next, are for families with a `disp.models.parts.language.LanguageModel` named ``model``.
        """
        weight = self.get_submodule("model.embed_tokens").weight
        assert isinstance(weight, Tensor)
        return weight[self.mask_token_id]

    @property
    def unsaid_token_ids(self) -> list[int]:
        """Ids that no answer can hold: decoding predicts neither the banned tokens nor the mask token."""
        return sorted({*self.banned_token_ids, self.mask_token_id})

    @property
    def picture_names(self) -> tuple[str, ...]:
        """Substrings of the names of the parameters that learn from nothing but pictures."""
        return (*self.vision_names, *self.projector_names)

    def lora_modules(self) -> list[str]:
        """Full names of the linear layers of the language model, which low-rank adapters are put on; not the head."""
        layers = self.get_submodule("model.layers")
        return [f"model.layers.{name}" for name, module in layers.named_modules() if isinstance(module, nn.Linear)]

    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights and no bias, for one module of a new model.

        The library's own functions leave alone what was loaded from a checkpoint.
        """
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv3d):
            initialization.normal_(module.weight, 0.0, self.config.initializer_range)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                initialization.zeros_(module.bias)

    def slots_of_pass(self, gen_length: int | None = None) -> int:
        """How many slots of a response one pass denoises, the first ones, by which answers are scored: all of them.

        Args:
            gen_length: response slots; the model's own if None.
        """
        return self.gen_length if gen_length is None else gen_length

    def settings_for(self, gen_length: int, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Decoding settings for another response length: as many steps a token, and blocks whose length divides both.

        Args:
            gen_length: response slots.
            settings: settings for the length that they name as ``gen_length``; the model's own where it is None.

        Returns:
            The settings, ``gen_length`` among them.
        """
        changed = {"gen_length": self.gen_length, **(self.generation_defaults if settings is None else settings)}
        if "steps" in changed:
            block = math.gcd(changed.get("block_length") or gen_length, gen_length)
            blocks = gen_length // block
            changed["steps"] = blocks * max(1, round(changed["steps"] * gen_length / changed["gen_length"] / blocks))
            if changed.get("block_length"):
                changed["block_length"] = block
        return {**changed, "gen_length": gen_length}

    def use_gen_length(self, gen_length: int) -> None:
        """Another response length, for training and, with the settings of `settings_for`, in decoding."""
        settings = self.settings_for(gen_length)
        self.gen_length = settings.pop("gen_length")
        self.generation_defaults = settings

    def required_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            DispError: the model has none.
        """
        if getattr(self, "tokenizer", None) is None:
            raise DispError("the model came without a tokenizer; put its files beside config.json and load it again")
        return self.tokenizer

    def prepare(self, queries: Sequence[Query], features: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Tensors for a batch of queries, on the CPU; the arguments of `embed`.

        With ``features``, what `image_features` returned for each image of the batch, no image is decoded.
        """
        raise NotImplementedError

    def image_features(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """What the vision tower makes of each image of one query, on the CPU, for use while the tower is frozen.

        One tensor an image; the first dimension may differ between images. Some families tile an only image and show
        several images small, so the images of one query go together.
        """
        raise NotImplementedError

    def token_boxes(self, places: Tensor, size: tuple[int, int], images: int) -> Tensor:
        """Where the visual tokens of one picture lie in it.

        This one is for families that resize the picture as a whole; those that cut, pad or tile it have their own.

        Args:
            places: int64 ``[n, 3]`` on the CPU, tile, row and column of all its tokens; see `Prefix.locations`.
            size: its width and height in pixels.
            images: how many pictures its sample has.

        Returns:
            float64 ``[n, 4]``: x0, y0, x1, y1 as shares of width and height. A token that sees only what was added to
            the picture has no area.
        """
        return raster_boxes(places)

    def embed(self, **inputs: Tensor) -> Prefix:
        """Embed prepared inputs; runs the vision tower and the projector."""
        raise NotImplementedError

    def denoise(self, prefix: Prefix, response: Tensor, cache: Any = None) -> Tensor:
        """One pass: response ids int64 ``[B, L]`` (mask id at open slots) to logits ``[B, L, V]`` on their device.

        ``cache`` is what `cache_prefix` returned for the same rows.
        """
        raise NotImplementedError

    def denoise_slots(
        self, prefix: Prefix, response: Tensor, slots: Tensor, past: Past | None = None, *, keep: bool = False
    ) -> tuple[Tensor, Past | None]:
        """`denoise` at some slots alone, and what it read of the prompt.

        Families that are built on a `disp.models.parts.language.LanguageModel` compute no more than that
        (`disp.models.parts.slots`). This one computes everything and keeps nothing, which is always right.

        Args:
            prefix: prompts and visual tokens, B rows.
            response: int64 ``[B, L]``, the mask id at open slots.
            slots: int64 ``[B, M]``, each row's slots.
            past: what an earlier call returned for the same rows and prefix; the prompt is then not computed again,
                as if it saw what the response was in that call. It is changed.
            keep: whether ``past`` is wanted where none is given.

        Returns:
            Logits ``[B, M, V]``, and what is kept; None where nothing is.
        """
        logits = self.denoise(prefix, response)
        return logits.gather(1, slots[..., None].expand(-1, -1, logits.shape[-1])), None

    def cache_prefix(self, prefix: Prefix) -> object:
        """What the family's published decoder computes of a prefix once; None where it has no such cache.

        Tensors of first dimension B in nested tuples, lists or dicts, or an object with ``select(rows)``, so that
        the decoder can drop rows that are finished.
        """
        return None

    def unconditional(self, prefix: Prefix) -> Prefix:
        """The prefix of classifier-free guidance's second pass: the mask embedding at every position."""
        return replace(prefix, embeds=self.mask_embedding.to(prefix.embeds.dtype).expand_as(prefix.embeds))

    def noisy_loss(self, prefix: Prefix, clean: Tensor, ratio: Tensor, uniforms: Tensor) -> Tensor:
        """The family's training loss of one response a row, a scalar.

        This one is the 1/t-weighted cross-entropy of `disp.diffusion.forward.diffusion_loss`.

        Args:
            prefix: prompts and visual tokens, B rows.
            clean: int64 ``[B, L]``, the response.
            ratio: float ``[B]``, t in [0, 1], before the family's own floor.
            uniforms: float ``[B, L]`` in [0, 1); decide which tokens are masked.
        """
        noised = add_noise(clean, ratio, uniforms, self.mask_token_id)
        return diffusion_loss(self.denoise(prefix, noised.ids), clean, noised)

    def encode_responses(self, responses: Sequence[str], length: int, *, cut: bool = False) -> Tensor:
        """Texts to int64 ``[B, length]``: tokens, the end of turn if answers have one, then padding.

        An answer that fills every slot, as one that was decoded without an end does, goes without the end of turn.
        With ``cut`` a longer one is its first tokens.

        Raises:
            DispError: a response does not fit, without ``cut``.
        """
        padding = self.end_token_ids[-1]
        end = [self.end_token_ids[0]] if self.answers_end_turns else []
        ids = torch.full((len(responses), length), padding)
        for row, text in enumerate(responses):
            tokens = self._text_ids(text)
            tokens = tokens if len(tokens) == length else [*tokens, *end]
            if cut:
                tokens = tokens[:length]
            if len(tokens) > length:
                raise DispError(
                    f"response of {len(tokens)} tokens, its end included, does not fit into {length}: {text[:80]!r}; "
                    "raise gen_length (--gen-length)"
                )
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        return ids

    def decode_responses(self, ids: Tensor) -> list[str]:
        """int64 ``[B, L]`` to texts, each cut before its first end token, without special tokens.

        Every text fits back into L slots by `encode_responses`: purified answers become training answers. Garbled
        answers may come back as more tokens than they were decoded from, and lose what does not fit.
        """
        texts = []
        for row in ids.tolist():
            end = next((index for index, token in enumerate(row) if token in self.end_token_ids), len(row))
            text = self._text_of(row[:end])
            tokens, kept = self._text_ids(text), len(row)
            while len(tokens) > len(row):
                text = self._text_of(tokens[:kept])
                tokens, kept = self._text_ids(text), kept - 1
            texts.append(text)
        return texts

    def _text_of(self, ids: list[int]) -> str:
        # Part of a character decodes to a replacement mark, which would come back as three tokens.
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return text.replace("\ufffd", "").replace("\0", "")

    def _text_ids(self, text: str) -> list[int]:
        """Token ids of a text from data."""
        return self.tokenizer(self.plain(text), add_special_tokens=False)["input_ids"]

    def plain(self, text: str) -> str:
        """Text from data, which must not smuggle in control tokens: a space breaks the strings that spell them."""
        text = text.replace("\0", "")  # families mark the places of images with it
        for token in self._control_tokens():
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _control_tokens(self) -> Iterable[str]:
        """Strings that the tokenizer reads as control tokens."""
        return self.tokenizer.get_added_vocab()

    def official_state_dict(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights, or those of ``state_dict``, under the names of the published checkpoint."""
        return dict(state_dict if state_dict is not None else self.state_dict())

    @torch.no_grad()
    def encode(self, queries: Sequence[Query]) -> Prefix:
        """`prepare`, move to the model's device, `embed`; without gradients."""
        return self.embed(**{name: tensor.to(self.device) for name, tensor in self.prepare(queries).items()})

    def forward(self, clean: Tensor, ratio: Tensor, uniforms: Tensor, **inputs: Tensor) -> Tensor:
        """`noisy_loss` after `embed`, in one call, so that wrappers for distributed training see it.

        In training mode every trained parameter has a gradient, zero where a batch shows no picture: processes that
        train together wait for each other's gradients of all of them.
        """
        prefix = self.embed(**inputs)
        if self.training and not prefix.visual_mask.any():
            unused = [
                value for name, value in self.named_parameters() if any(part in name for part in self.picture_names)
            ]
            prefix = replace(prefix, embeds=joined(prefix.embeds, [value for value in unused if value.requires_grad]))
        return self.noisy_loss(prefix, clean, ratio, uniforms)
