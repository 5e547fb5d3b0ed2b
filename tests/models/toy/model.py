"""A toy of a multimodal diffusion language model: a picture is shrunk to a few pixels, and each pixel is a token."""

from __future__ import annotations

import numpy as np
import torch
from PIL.Image import Resampling
from torch import nn

from disp.data.sample import open_image
from disp.models.interface import MDLM, Prefix
from disp.models.parts.config import LanguageConfig
from disp.models.parts.language import LanguageModel
from disp.models.parts.places import token_locations
from disp.models.parts.prompts import prompt_rows


class ToyConfig(LanguageConfig):
    model_type = "toy"

    def __init__(self, *, side: int = 8, gen_length: int = 24, **sizes):
        super().__init__(**sizes)
        self.side, self.gen_length = side, gen_length


class Toy(MDLM):
    config_class = ToyConfig
    base_model_prefix = "model"
    vision_names = ()  # there is no tower

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.model = LanguageModel(config)
        self.mm_projector = nn.Linear(3, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mask_token_id, self.end_token_ids = 0, (1, 2)
        self.gen_length, self.generation_defaults = config.gen_length, {"steps": config.gen_length}
        self.post_init()

    def image_features(self, sources):
        size = (self.config.side, self.config.side)
        pixels = [np.asarray(open_image(source).resize(size, Resampling.BOX), np.float32) / 255 for source in sources]
        return [torch.from_numpy(each).flatten(0, 1) for each in pixels]

    def prepare(self, queries, features=None):
        features = features or self.image_features([source for query in queries for source in query.images])
        token_ids = prompt_rows(self, queries, self.config.side**2)
        return {"token_ids": token_ids, "features": torch.cat([torch.zeros(0, 3), *features])}

    def embed(self, token_ids, features):
        visual_mask = token_ids < -1
        words = self.model.embed_tokens(token_ids.clamp(min=0))
        embeds = words.masked_scatter(visual_mask[..., None], self.mm_projector(features.to(self.dtype)))
        grids = token_ids.new_full((len(features) // self.config.side**2, 2), self.config.side)
        return Prefix(embeds, token_ids != -1, visual_mask, token_locations(token_ids, grids))

    def denoise(self, prefix, response, cache=None):
        hidden = self.model.after(prefix.embeds, prefix.attention_mask, response)
        return self.lm_head(hidden).to(response.device)
