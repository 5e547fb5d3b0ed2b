"""Published LLaDA-V checkpoints (GSAI-ML/LLaDA-V, arXiv 2505.16933).

Vision tower, projector and bidirectional transformer; pictures of any resolution as tiles, a newline vector after each
row of visual tokens, Llama's role headers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from disp.data.sample import ImageSource, Query, image_size, open_image
from disp.diffusion.forward import MIN_RATIO
from disp.errors import DispError
from disp.models.interface import MDLM, Past, Prefix
from disp.models.llada_v.config import LladaVConfig
from disp.models.llada_v.published import SYSTEM
from disp.models.llada_v.splice import splice_images
from disp.models.parts.anyres import Merged, grid_of, merge_tiles, pad_to_square, single_tile, tile_image, token_boxes
from disp.models.parts.key_names import to_llava
from disp.models.parts.language import LanguageModel
from disp.models.parts.llava import IGNORED
from disp.models.parts.prompts import prompt_rows
from disp.models.parts.slots import denoise, denoise_slots, supervised_slots
from disp.models.parts.vision import VisionTower, normalise_pixels, projector

IMAGE_ID = -200


class LlavaLanguageModel(LanguageModel):
    """The parts under the ``model.`` prefix of a checkpoint."""

    def __init__(self, config: LladaVConfig):
        super().__init__(config)
        self.vision_tower = VisionTower(**config.vision)
        self.mm_projector = projector(config.vision["hidden_size"], config.hidden_size)
        self.image_newline = nn.Parameter(torch.zeros(config.hidden_size))


class LladaV(MDLM):
    """A published LLaDA-V; see `disp.models.interface.MDLM` for what each method promises.

    Attributes:
        unused_weights: what the checkpoint holds and the model never reads, to be written back with it.
    """

    config_class = LladaVConfig
    config: LladaVConfig
    base_model_prefix = "model"
    ratio_floor = MIN_RATIO
    default_system = SYSTEM
    _no_split_modules = ["Block", "TowerBlock"]  # noqa: RUF012  # the library's own class attribute

    def __init__(self, config: LladaVConfig):
        super().__init__(config)
        self.model = LlavaLanguageModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        ids = config.token_ids
        self.mask_token_id, self.end_token_ids = ids["mask"], (ids["eot"], ids["eos"])
        # The end of text is banned too: only the end of turn ends an answer.
        self.banned_token_ids = tuple(ids[name] for name in ("eos", "bos", "start_header", "end_header"))
        self.gen_length, self.generation_defaults = config.gen_length, dict(config.generation)
        self.generation_defaults.setdefault("stop", ((ids["eot"],),))
        self.unused_weights: dict[str, Tensor] = {}
        self.post_init()

    @property
    def picture_names(self) -> tuple[str, ...]:
        """Those of the tower and the projector, and the newline vector."""
        return (*super().picture_names, "image_newline")

    # --- text and pixels to tensors -------------------------------------------------------------------------------

    def prepare(self, queries: Sequence[Query], features: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Tokenize and tile a batch of queries.

        Returns:
            ``token_ids`` int64 ``[B, P']``, left-padded with -1, where image i of the batch stands as ``-2 - i``;
            ``sizes`` int64 ``[images, 2]``, width and height, or 0 where an image shares its query with others and is
            one padded tile; and for all tiles of all images ``pixels`` uint8 ``[tiles, 3, S, S]``, or ``features``
            float ``[tiles, N, d_vision]``.
        """
        inputs = {"token_ids": prompt_rows(self, queries, 1, image_first=True)}
        sizes = [
            image_size(source) if len(query.images) == 1 else (0, 0) for query in queries for source in query.images
        ]
        inputs["sizes"] = torch.tensor(sizes, dtype=torch.int64).view(-1, 2)
        if features:
            return {**inputs, "features": torch.cat(list(features))}
        return {**inputs, "pixels": _joined([tile for query in queries for tile in self.tiles(query.images)], self)}

    def tiles(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """uint8 ``[tiles, 3, S, S]`` of each image of one query."""
        size = self.model.vision_tower.image_size
        if len(sources) == 1:
            return [tile_image(open_image(sources[0]), self.config.candidates, size)]
        return [pad_to_square(open_image(source), size) for source in sources]

    @torch.no_grad()
    def image_features(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """The tower's output float ``[tiles, N, d_vision]`` for each image of one query, on the CPU."""
        return [self.vision_features(tiles.to(self.device)).cpu() for tiles in self.tiles(sources)]

    def token_boxes(self, places: Tensor, size: tuple[int, int], images: int) -> Tensor:
        """See `disp.models.interface.MDLM.token_boxes`; an only picture is tiled, several are padded to squares."""
        tile = self.model.vision_tower.image_size
        side = int(places[places[:, 0] == 0, 1].max()) + 1  # of the base tile
        return token_boxes(
            places,
            size,
            grid_of(size, self.config.candidates, tile) if images == 1 else None,
            tile=tile,
            side=side,
            max_ratio_sq=self.config.max_ratio_sq,
            covered=self._covered(side),
        )

    def _covered(self, side: int) -> float:
        """The part of a tile's side that its ``side`` tokens see."""
        tower = self.model.vision_tower
        return tower.grid * self.config.vision["patch_size"] / tower.image_size

    # --- tensors to logits ----------------------------------------------------------------------------------------

    def embed(  # type: ignore[override]  # the inputs' names are the family's own
        self,
        token_ids: Tensor,
        sizes: Tensor | None = None,
        pixels: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Prefix:
        """Embed prepared inputs; the arguments are the values that `prepare` returns."""
        images: list[Merged] = []
        if sizes is not None and len(sizes):
            if features is None:
                if pixels is None:
                    raise ValueError("placeholders of images need `pixels` or `features`")
                features = self.vision_features(pixels)
            images = self._merged(self.model.mm_projector(features.to(self.dtype)), sizes.tolist())
        return splice_images(token_ids, self.model.embed_tokens(token_ids.clamp(min=0)), images)

    def vision_features(self, pixels: Tensor) -> Tensor:
        """uint8 pixels ``[tiles, 3, S, S]`` to the tower's features ``[tiles, N, d_vision]``."""
        return self.model.vision_tower(normalise_pixels(pixels).to(self.dtype))

    def splice(self, prompt_ids: Tensor, images: Sequence[Image.Image], features: Tensor | None = None) -> Prefix:
        """A prefix of one row from ids int64 ``[P']`` with -200 at each of the images, as the published code has it.

        With ``features``, the tower's output float ``[tiles, N, d_vision]`` for all tiles, the tower is not run.

        Raises:
            DispError: the number of placeholders is not that of the images.
        """
        places = (prompt_ids == IMAGE_ID).nonzero()[:, 0]
        if len(places) != len(images):
            raise DispError(f"{len(places)} image placeholders ({IMAGE_ID}) in the ids for {len(images)} images")
        token_ids = prompt_ids.clone()
        token_ids[places] = -2 - torch.arange(len(images))
        sizes = [image.size if len(images) == 1 else (0, 0) for image in images]
        table = torch.tensor(sizes, dtype=torch.int64).view(-1, 2).to(self.device)
        if features is not None:
            return self.embed(token_ids[None].to(self.device), table, features=features)
        pixels = _joined(self.tiles(list(images)), self).to(self.device)
        return self.embed(token_ids[None].to(self.device), table, pixels)

    def _merged(self, tokens: Tensor, sizes: Sequence[Sequence[int]]) -> list[Merged]:
        """Projected tiles of all images ``[tiles, N, d]`` to each image's tokens."""
        side, newline = self.model.vision_tower.image_size, self.model.image_newline.to(tokens.device)
        images, first = [], 0
        for width, height in sizes:
            if not width:
                images.append(single_tile(tokens[first], newline))
                first += 1
                continue
            grid = grid_of((width, height), self.config.candidates, side)
            count = 1 + grid[0] * grid[1]
            tiles = tokens[first : first + count]
            images.append(merge_tiles(tiles, (width, height), grid, newline, self.config.max_ratio_sq))
            first += count
        return images

    def denoise(self, prefix: Prefix, response: Tensor, cache: Any = None) -> Tensor:
        """One denoising pass: int64 ``[B, L]`` to logits ``[B, L, V]``."""
        return denoise(self.model, self.lm_head, prefix, response)

    def denoise_slots(
        self, prefix: Prefix, response: Tensor, slots: Tensor, past: Past | None = None, *, keep: bool = False
    ) -> tuple[Tensor, Past | None]:
        """See `disp.models.interface.MDLM.denoise_slots`."""
        return denoise_slots(self.model, self.lm_head, prefix, response, slots, past, keep=keep)

    # --- training -------------------------------------------------------------------------------------------------

    def noisy_loss(self, prefix: Prefix, clean: Tensor, ratio: Tensor, uniforms: Tensor) -> Tensor:
        """`sequence_loss` with the response supervised, its end of turn included and the padding after it left out."""
        present = supervised_slots(clean, self.end_token_ids)
        before = torch.full(prefix.attention_mask.shape, IGNORED, device=clean.device)
        return self.sequence_loss(
            torch.cat((prefix.embeds, self.model.embed_tokens(clean)), dim=1),
            torch.cat((before, clean.where(present, IGNORED)), dim=1),
            ratio,
            torch.cat((torch.ones(before.shape, device=clean.device), uniforms.float()), dim=1),
            torch.cat((prefix.attention_mask, present), dim=1),
        )

    def sequence_loss(
        self,
        embeds: Tensor,
        labels: Tensor,
        ratio: Tensor,
        uniforms: Tensor,
        attention_mask: Tensor | None = None,
        *,
        conversation_mask: bool = False,
    ) -> Tensor:
        """The published training loss on whole sequences.

        Each supervised token is masked with probability p = (1 - 0.001) t + 0.001; the loss is the cross-entropy of
        the masked ones over p, summed, over the number of supervised tokens of the row, averaged over rows.

        Args:
            embeds: float ``[B, T, d]``, prompts, images and answers.
            labels: int64 ``[B, T]``, -100 where nothing is supervised. The published labels supervise every special
                token of system and user turns as well.
            ratio: float ``[B]``, t.
            uniforms: float ``[B, T]``.
            attention_mask: bool ``[B, T]``, false at padding; None for no padding.
            conversation_mask: let a turn see itself and earlier turns only, see `turns_of`.
        """
        # 1. Which tokens are masked.
        supervised = labels != IGNORED
        probability = ((1 - MIN_RATIO) * ratio.float() + MIN_RATIO)[:, None].expand_as(uniforms)
        masked = supervised & (uniforms < probability)
        noisy = torch.where(masked[..., None], self.mask_embedding.to(embeds.dtype), embeds)
        # 2. Who sees whom.
        valid = torch.ones_like(supervised) if attention_mask is None else attention_mask
        mask = None
        if conversation_mask:
            turns = turns_of(labels, self.config.token_ids["start_header"])
            mask = (turns[:, None, :] <= turns[:, :, None])[:, None]
        # 3. Logits of the masked tokens only: with a large vocabulary the others' would take most of the memory.
        hidden = self.model.hidden(noisy, valid, rows=noisy.shape[1], seen=mask).to(labels.device)
        logits = self.lm_head(hidden[masked]).float().to(labels.device)
        losses = F.cross_entropy(logits, labels[masked], reduction="none") / probability[masked]
        # 4. By row.
        counts = supervised.sum(-1, keepdim=True).clamp(min=1).expand_as(masked)[masked]
        return (losses / counts).sum() / len(labels)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def official_state_dict(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights, or those of ``state_dict``, under the published names."""
        weights = self.state_dict() if state_dict is None else state_dict
        return {to_llava(name): tensor for name, tensor in weights.items()} | self.unused_weights


def _joined(tiles: Sequence[Tensor], model: LladaV) -> Tensor:
    """uint8 ``[tiles, 3, S, S]`` of all images."""
    size = model.model.vision_tower.image_size
    return torch.cat(list(tiles)) if tiles else torch.zeros((0, 3, size, size), dtype=torch.uint8)


def turns_of(labels: Tensor, start_header: int) -> Tensor:
    """The number of the turn that each token belongs to, int64 ``[B, T]``, read off published labels.

    System message and first exchange are turn 0; each user message after an assistant's begins the next one. A message
    begins with a supervised start header, and is the assistant's if the role that follows is supervised too.
    """
    begins = labels == start_header
    assistant = begins & (F.pad(labels[:, 1:], (0, 1), value=IGNORED) != IGNORED)
    turns = torch.zeros_like(labels)
    for row in range(len(labels)):
        turn, answered = 0, False
        starts = begins[row].nonzero()[:, 0].tolist()
        for start in starts:
            if assistant[row, start]:
                answered = True
            elif answered:
                turn, answered = turn + 1, False
            turns[row, start:] = turn
    return turns
