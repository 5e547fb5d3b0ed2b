"""The built-in model: LLaDA-V's vision tower, projector and bidirectional transformer, small, for small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from disp.data.sample import ImageSource, Query, open_image
from disp.diffusion.forward import add_noise
from disp.models.interface import MDLM, Past, Prefix
from disp.models.parts.config import LanguageConfig
from disp.models.parts.language import LanguageModel
from disp.models.parts.places import token_locations
from disp.models.parts.prompts import prompt_rows
from disp.models.parts.slots import denoise, denoise_slots, supervised_slots
from disp.models.parts.vision import VisionTower, normalise_pixels, projector


class BuiltinConfig(LanguageConfig):
    """Sizes of a built-in model.

    ``vision`` holds the arguments of `VisionTower`; ``generation`` the decoding defaults (arguments of
    `disp.decoding.samplers.decode_config`); ``sizes`` are those of `LanguageConfig`.
    """

    model_type = "disp_llada_v"

    def __init__(
        self,
        *,
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


class BuiltinLanguageModel(LanguageModel):
    """The parts under the ``model.`` prefix of a checkpoint."""

    def __init__(self, config: BuiltinConfig):
        super().__init__(config)
        self.vision_tower = VisionTower(**config.vision)
        self.mm_projector = projector(config.vision["hidden_size"], config.hidden_size)


class BuiltinModel(MDLM):
    """A small MDLM in LLaDA-V's arrangement; see `disp.models.interface.MDLM` for what each method promises.

    Pictures are resized to the square that the tower takes, and become one visual token a patch.
    """

    config_class = BuiltinConfig
    config: BuiltinConfig
    base_model_prefix = "model"
    learning_rate = 1e-3
    _no_split_modules = ["Block", "TowerBlock"]  # noqa: RUF012  # the library's own class attribute

    def __init__(self, config: BuiltinConfig):
        super().__init__(config)
        self.model = BuiltinLanguageModel(config)
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
        token_ids = prompt_rows(self, queries, self.model.vision_tower.grid**2)
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
        return list(self.vision_features(self._prepare_images(sources).to(self.device)).cpu())

    def _pixels(self, image: Image.Image) -> np.ndarray:
        size = self.model.vision_tower.image_size
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)

    # --- tensors to logits ----------------------------------------------------------------------------------------

    def vision_features(self, pixels: Tensor) -> Tensor:
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
        grids = token_ids.new_zeros((0, 2))
        if visual_mask.any():
            if features is None:
                if pixels is None:
                    raise ValueError("placeholders of images need `pixels` or `features`")
                features = self.vision_features(pixels)
            tokens = self.model.mm_projector(features).flatten(0, 1)  # [images * N, d]
            # Placeholders of one image are consecutive and images are in order of appearance.
            embeds = embeds.masked_scatter(visual_mask[..., None], tokens.to(embeds.dtype))
            grids = token_ids.new_full((len(features), 2), self.model.vision_tower.grid)
        return Prefix(embeds, token_ids != -1, visual_mask, token_locations(token_ids, grids))

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
        """LLaDA-V's loss: of the answer and its end of turn, over their number, averaged over rows.

        The padding behind them is noised, as the model finds it when it answers, and not learnt: averaged over all
        slots it would be most of the loss.
        """
        noised = add_noise(clean, ratio, uniforms, self.mask_token_id)
        supervised = supervised_slots(clean, self.end_token_ids)
        losses = F.cross_entropy(self.denoise(prefix, noised.ids).float().transpose(1, 2), clean, reduction="none")
        weights = noised.masked * supervised / ratio[:, None]
        return ((losses * weights).sum(-1) / supervised.sum(-1)).mean()
