"""Published LLaDA-V checkpoints (GSAI-ML/LLaDA-V, arXiv 2505.16933).

The same arrangement as the built-in model, with what the published one adds to it: pictures of any resolution as
tiles, a newline vector after each row of visual tokens, Llama's role headers, its own training loss and key names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from disp.data.sample import ImageSource, Query, image_size, open_image
from disp.diffusion.forward import MIN_RATIO
from disp.errors import DispError
from disp.models.builtin.model import Backbone, LladaV
from disp.models.checkpoint import assemble, read_json, read_weights
from disp.models.interface import Prefix
from disp.models.llada_v.config import LladaVOfficialConfig
from disp.models.llada_v.published import CHAT_TEMPLATE, SPECIAL_TOKENS, SYSTEM, detect
from disp.models.llada_v.splice import splice_images
from disp.models.parts.anyres import Merged, grid_of, merge_tiles, pad_to_square, single_tile, tile_image, token_boxes
from disp.models.parts.key_names import TOWER, from_llava, to_llava

__all__ = [
    "IGNORED",
    "IMAGE_ID",
    "SPECIAL_TOKENS",
    "SYSTEM",
    "LladaVOfficial",
    "LladaVOfficialConfig",
    "detect",
    "load_official",
    "turns_of",
]

IGNORED = -100
IMAGE_ID = -200


class OfficialBackbone(Backbone):
    """The parts under the ``model.`` prefix: the built-in model's and the newline vector."""

    def __init__(self, config: LladaVOfficialConfig):
        super().__init__(config)
        self.image_newline = nn.Parameter(torch.zeros(config.hidden_size))


class LladaVOfficial(LladaV):
    """A published LLaDA-V; see `disp.models.interface.MDLM` for what each method promises.

    Attributes:
        unused_weights: what the checkpoint holds and the model never reads, to be written back with it.
    """

    config_class = LladaVOfficialConfig
    backbone_class = OfficialBackbone
    config: LladaVOfficialConfig
    default_system = SYSTEM
    image_first = True
    ratio_floor = MIN_RATIO

    def __init__(self, config: LladaVOfficialConfig):
        super().__init__(config)
        ids = config.token_ids
        # The end of text is banned too: only the end of turn ends an answer.
        self.banned_token_ids = tuple(ids[name] for name in ("eos", "bos", "start_header", "end_header"))
        self.generation_defaults.setdefault("stop", ((ids["eot"],),))
        self.unused_weights: dict[str, Tensor] = {}

    # --- text and pixels to tensors -------------------------------------------------------------------------------

    def prepare(self, queries: Sequence[Query], features: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Tokenize and tile a batch of queries.

        Returns:
            ``token_ids`` int64 ``[B, P']``, left-padded with -1, where image i of the batch stands as ``-2 - i``;
            ``sizes`` int64 ``[images, 2]``, width and height, or 0 where an image shares its query with others and is
            one padded tile; and for all tiles of all images ``pixels`` uint8 ``[tiles, 3, S, S]``, or ``features``
            float ``[tiles, N, d_vision]``.
        """
        inputs = {"token_ids": self._prepare_text(queries)}
        sizes = [
            image_size(source) if len(query.images) == 1 else (0, 0) for query in queries for source in query.images
        ]
        inputs["sizes"] = torch.tensor(sizes, dtype=torch.int64).view(-1, 2)
        if features:
            return {**inputs, "features": torch.cat(list(features))}
        return {**inputs, "pixels": _joined([tile for query in queries for tile in self._tiles(query.images)], self)}

    def _tiles(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """uint8 ``[tiles, 3, S, S]`` of each image of one query."""
        size = self.model.vision_tower.image_size
        if len(sources) == 1:
            return [tile_image(open_image(sources[0]), self.config.candidates, size)]
        return [pad_to_square(open_image(source), size) for source in sources]

    @torch.no_grad()
    def image_features(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """The tower's output float ``[tiles, N, d_vision]`` for each image of one query, on the CPU."""
        return [self._vision_features(tiles.to(self.device)).cpu() for tiles in self._tiles(sources)]

    @property
    def _slots_an_image(self) -> int:
        return 1

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
                features = self._vision_features(pixels)
            images = self._merged(self.model.mm_projector(features.to(self.dtype)), sizes.tolist())
        return splice_images(token_ids, self.model.embed_tokens(token_ids.clamp(min=0)), images)

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
        pixels = _joined(self._tiles(list(images)), self).to(self.device)
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

    # --- training -------------------------------------------------------------------------------------------------

    def noisy_loss(self, prefix: Prefix, clean: Tensor, ratio: Tensor, uniforms: Tensor) -> Tensor:
        """`sequence_loss` with the response supervised, its end of turn included and the padding after it left out."""
        eot, padding = self.end_token_ids
        ended = (clean == eot).cumsum(1) - (clean == eot).long()  # turns that ended before each token
        present = (ended == 0) | (clean != padding)
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
        hidden = self._hidden(noisy, valid, rows=noisy.shape[1], mask=mask).to(labels.device)
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


def _joined(tiles: Sequence[Tensor], model: LladaVOfficial) -> Tensor:
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


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """``config.json``, and ``vision_config.json`` or None."""
    return read_json(folder / "config.json"), read_vision_config(folder)


def read_vision_config(folder: Path | None) -> dict[str, Any] | None:
    """``vision_config.json`` of a folder, None where there is none."""
    file = None if folder is None else folder / "vision_config.json"
    return read_json(file) if file is not None and file.is_file() else None


def assemble_llava(
    make: Callable[[], LladaVOfficial],
    folder: Path,
    key_map: Callable[[str], str],
    tower_layers: int,
    tokenizer: PreTrainedTokenizerBase | None,
    **placing: Any,
) -> Any:
    """Build a model with LLaVA's modules from a checkpoint, and give it its tokenizer.

    Args:
        make: makes the model.
        folder: the checkpoint.
        key_map: see `disp.models.checkpoint.assemble`.
        tower_layers: layers of the vision tower that are used.
        tokenizer: the tokenizer, or None.
        placing: ``dtype``, ``device``, ``device_map`` and ``quantization``, see `disp.models.checkpoint.assemble`.
    """
    model, unused = assemble(
        make,
        read_weights(folder),
        key_map,
        quantized=lambda name: name.startswith("model.layers."),
        # Never read: the norm and the pooling head behind the tower, and its last layer where it was kept.
        ignore=(rf"{re.escape(TOWER)}(post_layernorm|head|encoder\.layers\.{tower_layers})\..*",),
        what=str(folder),
        **placing,
    )
    model.unused_weights = unused
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def load_official(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    token_ids: Mapping[str, int] | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> LladaVOfficial:
    """Load a published checkpoint, or one of the same layout.

    Args:
        folder: config.json, safetensors and, where it is to read texts, the tokenizer's files; vision_config.json
            where the tower is not SigLIP-so400m.
        dtype: of the weights.
        device: where they go.
        token_ids: ids under the names of `SPECIAL_TOKENS` that differ from the published ones; needed only where the
            folder has neither a tokenizer nor these ids in its config.
        device_map: see `disp.models.checkpoint.assemble`.
        quantization: see `disp.models.checkpoint.assemble`; of the language model's layers.

    Raises:
        DispError: the config is not that of a LLaDA-V, or keys are missing or surplus.
    """
    config, vision = read_configs(folder)
    tokenizer = None
    found: dict[str, int] = {}
    if (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, config=LladaVOfficialConfig(), local_files_only=True)
        known = tokenizer.get_vocab()
        found = {name: known[token] for name, (token, _) in SPECIAL_TOKENS.items() if token in known}
        if not tokenizer.chat_template:
            tokenizer.chat_template = CHAT_TEMPLATE
    own = config.get("disp", {}).get("token_ids", {})
    sizes = LladaVOfficialConfig.from_official(config, vision, **{**found, **own, **(token_ids or {})})
    return assemble_llava(
        lambda: LladaVOfficial(sizes),
        folder,
        from_llava,
        sizes.vision["num_hidden_layers"],
        tokenizer,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
    )
