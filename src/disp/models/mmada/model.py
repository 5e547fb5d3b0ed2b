"""MMaDA (Gen-Verse/MMaDA-8B-*, arXiv 2505.15809): a LLaDA transformer that reads images as tokens of its vocabulary.

An image is 512×512 pixels, which a frozen tokenizer (`disp.models.mmada.vq`) turns into 1024 codes; code c is the token
``image_token_offset + c``, embedded like a word. There is no projector and nothing continuous between the pixels and
the model, so gradients are taken at the embeddings, and masking a visual token is the same as replacing its id by the
mask token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disp.data.sample import IMAGE_PLACEHOLDER, ImageSource, Query, open_image
from disp.diffusion.forward import MIN_RATIO, add_noise, diffusion_loss
from disp.errors import DispError
from disp.models.interface import MDLM, Past, Prefix
from disp.models.mmada.config import MMadaConfig
from disp.models.mmada.published import VQ_FILE, VQ_HUB_ID
from disp.models.mmada.vq import VQEncoder, quantize, square_image
from disp.models.parts.key_names import to_llada
from disp.models.parts.language import LanguageModel
from disp.models.parts.places import raster_boxes
from disp.models.parts.prompts import left_pad, messages_of, render, unnamed_images
from disp.models.parts.slots import denoise_slots


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

    def __init__(self, config: MMadaConfig):
        super().__init__(config)
        self.model = LanguageModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.vision_tower = VQEncoder(**config.vision) if config.vision else None
        self.mask_token_id = config.token_ids["mask"]
        self.end_token_ids = (config.token_ids["eot"], config.token_ids["eos"])
        self.use_gen_length(config.gen_length)
        self.post_init()

    @property
    def picture_names(self) -> tuple[str, ...]:
        """None: codes have no gradient, so that the image tokenizer learns from nothing."""
        return ()

    def settings_for(self, gen_length: int, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The published script's for a length: half as many steps as slots, in four blocks; others as usual."""
        if settings is not None:
            return super().settings_for(gen_length, settings)
        blocks = 4 if gen_length % 8 == 0 else 1
        return {"gen_length": gen_length, "steps": max(gen_length // 2, 1), "block_length": gen_length // blocks}

    @property
    def grid(self) -> int:
        """Codes along a side of the image."""
        stride = self.vision_tower.stride if self.vision_tower is not None else 16
        return self.config.image_size // stride

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
        token_ids = left_pad(rows)
        if features:
            return {"token_ids": token_ids, "codes": torch.stack(list(features))}
        return {"token_ids": token_ids, "pixels": self.pixels([s for query in queries for s in query.images])}

    def token_boxes(self, places: Tensor, size: tuple[int, int], images: int) -> Tensor:
        """See `disp.models.interface.MDLM.token_boxes`; of an oblong picture the model sees the middle square."""
        boxes = raster_boxes(places)
        if self.config.squash:
            return boxes
        whole = torch.tensor(size, dtype=torch.float64)
        shares = min(size) / whole
        return boxes * shares.repeat(2) + ((1 - shares) / 2).repeat(2)

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
        # Nor in half precision where the rest of a training step is.
        with torch.autocast(pixels.device.type, enabled=False):
            codes = [quantize(self.vision_tower(image.to(dtype)[None])).flatten(1) for image in scaled]
        return torch.cat(codes) if codes else torch.zeros((0, self.grid**2), dtype=torch.int64, device=pixels.device)

    def _token_ids(self, query: Query, first_image: int) -> list[int]:
        """Task token, images, then the chat: MMaDA reads every image before any text."""
        unnamed_images(query)  # refuses placeholders without an image
        messages, count, seen = messages_of(query), len(query.images), 0
        for message in messages:
            parts = message["content"].split(IMAGE_PLACEHOLDER) if message["role"] == "user" else [message["content"]]
            text = parts[0]
            for part in parts[1:]:
                # A placeholder that only says "here is the image" goes; one inside a sentence keeps the sentence whole.
                seen += 1
                inside = count > 1 and bool(text.strip() or (part.strip() and not part.startswith("\n")))
                text += f"image {seen}{part}" if inside else part.removeprefix("\n")
            message["content"] = self.plain(text)
        chat = render(self.required_tokenizer(), messages)
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
        x = torch.cat((prefix.embeds, self.model.embed_tokens(response)), dim=1)
        valid = torch.cat((prefix.attention_mask, torch.ones_like(response, dtype=torch.bool)), dim=1)
        hidden = self.model.hidden(x, valid, rows=response.shape[1], seen=attention_bias)
        # The head of a model spread over devices is not where the response is.
        return self.lm_head(hidden).to(response.device)

    def denoise_slots(
        self, prefix: Prefix, response: Tensor, slots: Tensor, past: Past | None = None, *, keep: bool = False
    ) -> tuple[Tensor, Past | None]:
        """See `disp.models.interface.MDLM.denoise_slots`."""
        return denoise_slots(self.model, self.lm_head, prefix, response, slots, past, keep=keep)

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
        logits = self.lm_head(self.model.hidden(x, torch.ones_like(answer_mask), rows=x.shape[1])).to(
            answer_mask.device
        )
        losses = F.cross_entropy(logits.float().transpose(1, 2), token_ids, reduction="none")  # [B, T]
        per_row = (losses * masked).sum(-1) / p / answer_mask.sum(-1).clamp(min=1)
        return per_row.mean()

    # --- published checkpoints ------------------------------------------------------------------------------------

    def official_state_dict(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The language model's weights, or those in ``state_dict``, under the published names.

        The image tokenizer is a checkpoint of its own, which no training changes.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        return {to_llada(name): tensor for name, tensor in weights.items() if not name.startswith("vision_tower.")}

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
