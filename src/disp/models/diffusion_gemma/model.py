"""DiffusionGemma: a causal encoder reads prompt and picture, a bidirectional decoder denoises a canvas of tokens.

The network is the one of `transformers`; this module makes an MDLM of it. Two things differ from masked diffusion:

- There is no mask token: an open slot holds a uniformly random token. The rest of `disp` marks open slots with
  ``mask_token_id``, here the id of the image placeholder, which stands in no answer; `DiffusionGemma.denoise` puts
  fixed random tokens in its place.
- There is no mask embedding: what stands in for a masked visual token is a choice, ``visual_substitute``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Cache,
    DiffusionGemmaModel,
    DiffusionGemmaTextConfig,
    DynamicCache,
    Gemma4VisionConfig,
    PreTrainedModel,
)

from disp.data.sample import ImageSource, Query
from disp.draws import generator
from disp.errors import DispError
from disp.models.canvas import CanvasSampling
from disp.models.diffusion_gemma.chat import control_tokens, prompt_ids
from disp.models.diffusion_gemma.config import DiffusionGemmaMDLMConfig
from disp.models.diffusion_gemma.images import load_patches, patch_positions
from disp.models.diffusion_gemma.prefix import EncodedPrefix, GemmaPrefix, image_means
from disp.models.interface import MDLM, Prefix
from disp.models.parts.places import token_locations
from disp.models.parts.prompts import left_pad


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

    # The library's own.
    _init_weights = PreTrainedModel._init_weights

    def slots_of_pass(self, gen_length: int | None = None) -> int:
        """The first canvas of a response."""
        return min(super().slots_of_pass(gen_length), self.canvas_length)

    def settings_for(self, gen_length: int, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same for every length: a canvas is denoised in so many steps, however long the response is."""
        return {**(self.generation_defaults if settings is None else settings), "gen_length": gen_length}

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
    def canvas_length(self) -> int:
        """Slots of the largest canvas."""
        return self.config.canvas_length

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
        images = [[-2 - index] * count for index, count in enumerate(counts)]
        rows: list[list[int]] = []
        first = 0
        for query in queries:
            own = images[first : first + len(query.images)]
            rows.append(prompt_ids(query, own, self.config, self.required_tokenizer(), self.plain))
            first += len(query.images)
        return {"token_ids": left_pad(rows), **inputs}

    def pixels(self, sources: Sequence[ImageSource]) -> dict[str, Tensor]:
        """``pixels`` uint8 ``[images, patches, 3 p²]``, zero behind an image's last patch, and ``grids`` of images."""
        vision = self._vision
        return load_patches(sources, vision.patch_size, vision.pooling_kernel_size, self.config.max_visual_tokens)

    @torch.no_grad()
    def image_features(self, sources: Sequence[ImageSource]) -> list[Tensor]:
        """The tower's output for each image, float ``[rows, columns, d_vision]``, on the CPU."""
        inputs = self.pixels(sources)
        if not len(sources):
            return []
        features = self.vision_features(inputs["pixels"].to(self.device), inputs["grids"].to(self.device)).cpu()
        grids = inputs["grids"].tolist()
        parts = features.split([rows * columns for rows, columns in grids])
        return [part.unflatten(0, tuple(grid)).clone() for part, grid in zip(parts, grids, strict=True)]

    def _control_tokens(self) -> list[str]:
        if self._controls is None or self._controls[0] is not self.tokenizer:
            self._controls = self.tokenizer, control_tokens(self.config, self.tokenizer, self.end_token_ids)
        return self._controls[1]

    # --- tensors to logits ----------------------------------------------------------------------------------------

    def vision_features(self, pixels: Tensor, grids: Tensor) -> Tensor:
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
        image = -2 - token_ids[visual_mask]
        if visual_mask.any():
            if features is None:
                if pixels is None:
                    raise ValueError("visual tokens need `pixels` or `features`")
                features = self.vision_features(pixels, grids)
            tokens = self.model.encoder.embed_vision(features.to(self.dtype))  # [N, d]
            # Visual tokens of one image are consecutive and images are in order of appearance.
            embeds = embeds.masked_scatter(visual_mask[..., None], tokens.to(embeds.dtype))
        extras = {"substitutes": self._substitutes(embeds.detach(), visual_mask, image)}
        return GemmaPrefix(embeds, token_ids != -1, visual_mask, token_locations(token_ids, grids), extras)

    @torch.no_grad()
    def _substitutes(self, embeds: Tensor, visual_mask: Tensor, image: Tensor) -> Tensor:
        """What stands in for each masked visual token, ``[B, P, d]``; ``image`` int64 ``[N]`` numbers the images."""
        substitutes = torch.zeros_like(embeds)
        if self.config.visual_substitute == "mean" and len(image):
            substitutes[visual_mask] = image_means(embeds[visual_mask], image)
        elif self.config.visual_substitute == "random" and len(image):
            ordinal = (visual_mask.cumsum(-1) - 1)[visual_mask]
            ids = self.random_ids("visual substitute", int(ordinal.max()) + 1).to(image.device)
            substitutes[visual_mask] = self.model.decoder.embed_tokens(ids[ordinal]).to(embeds.dtype)
        return substitutes

    def random_ids(self, purpose: str, count: int) -> Tensor:
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
        noise = self.random_ids("canvas", response.shape[1]).to(response.device)
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
        # The head of a model spread over devices is not where the canvas is.
        logits = self.lm_head(hidden).to(canvas.device)
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
