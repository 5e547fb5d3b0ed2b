"""The library's own DiffusionGemma as a reference."""

from __future__ import annotations

import torch
from transformers import DiffusionGemmaForBlockDiffusion, LogitsProcessor, LogitsProcessorList
from transformers.models.diffusion_gemma import generation_diffusion_gemma as native_generation

from disp.data.sample import Query
from disp.decoding.canvas import draw_tokens
from disp.draws import generator
from disp.models.diffusion_gemma.images import patch_positions
from disp.models.diffusion_gemma.model import DiffusionGemma

CANVAS = 6
WINDOW = 8


def library_twin(model: DiffusionGemma, folder) -> DiffusionGemmaForBlockDiffusion:
    """The library's own class with the weights that our model saved, read by their published names."""
    model.save_pretrained(folder)
    twin, report = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return twin.eval()


def native_inputs(model: DiffusionGemma, query: Query) -> dict[str, torch.Tensor]:
    """The arguments of the library's ``generate``, for one query."""
    inputs = model.prepare([query])
    ids = inputs["token_ids"]
    visual = ids < -1
    result = {
        "input_ids": ids.masked_fill(visual, model.config.image_token_id),
        "mm_token_type_ids": visual.long(),
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
    }
    if query.images:
        result["pixel_values"] = inputs["pixels"] / 255
        result["image_position_ids"] = patch_positions(inputs["grids"], 3, inputs["pixels"].shape[1])
    return result


def native_logits(native, inputs: dict, canvas: torch.Tensor, **kwargs) -> torch.Tensor:
    """The library's forward pass, with the attention masks that its ``generate`` uses."""
    inputs = dict(inputs)
    types, valid = inputs.pop("mm_token_type_ids"), inputs.pop("attention_mask")
    masks = native.model.encoder.create_masks_for_generate(
        config=native.config,
        inputs_embeds=torch.empty(*valid.shape, 0),
        attention_mask=valid,
        past_key_values=None,
        position_ids=None,
        mm_token_type_ids=types,
    )
    return native(**inputs, attention_mask=masks, decoder_input_ids=canvas, **kwargs).logits


def random_canvas(model: DiffusionGemma, seed: int, length: int = CANVAS) -> torch.Tensor:
    return torch.randint(model.mask_token_id, (1, length), generator=torch.Generator().manual_seed(seed))


class _Ban(LogitsProcessor):
    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids, scores, cur_step):
        scores[..., self.token] = -torch.inf
        return scores


def library_decode(native, model, query, key, length, sampling, steps, monkeypatch):
    """The library's own ``generate``, with our random numbers in place of its own."""
    canvases = iter(range(0, 1000, CANVAS))
    state = {}

    def initial(self, batch_size, device):
        return torch.from_numpy(state["draw"].integers(0, model.vocab_size, CANVAS))[None]

    def multinomial(probabilities, num_samples):
        return draw_tokens(probabilities[None], torch.from_numpy(state["draw"].random(CANVAS))[None]).T

    prepare = native._prepare_denoiser_inputs

    def prepare_denoiser_inputs(**kwargs):
        state["draw"] = generator(3, "canvas", key, next(canvases))
        return prepare(**kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(native_generation.EntropyBoundSampler, "initialize_canvas", initial)
        patch.setattr(native_generation.torch, "multinomial", multinomial)
        patch.setattr(native, "_prepare_denoiser_inputs", prepare_denoiser_inputs)
        inputs = native_inputs(model, query)
        output = native.generate(
            **inputs,
            logits_processor=LogitsProcessorList([_Ban(model.mask_token_id)]),
            max_new_tokens=length,
            max_denoising_steps=steps,
            sampler_config=native_generation.EntropyBoundSamplerConfig(sampling.entropy_bound),
            t_min=sampling.t_min,
            t_max=sampling.t_max,
            stability_threshold=sampling.stability_threshold,
            confidence_threshold=sampling.confidence_threshold,
            eos_token_id=list(model.end_token_ids),
            pad_token_id=model.end_token_ids[-1],
            disable_compile=True,
        )
    ids = output.sequences[0, inputs["input_ids"].shape[1] :]
    passes = (ids != model.end_token_ids[-1]).sum() / output.tokens_per_forward[0]
    padded = torch.full((length,), model.end_token_ids[-1])
    padded[: len(ids)] = ids
    return padded, round(float(passes))
