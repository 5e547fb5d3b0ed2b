"""MMaDA: what its published code computed, and what ours computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from models.difference import Difference
from safetensors.torch import load_file
from torch import Tensor

from disp.decoding.config import DecodeConfig
from disp.decoding.generate import decode
from disp.decoding.samplers import decode_config
from disp.models.interface import Prefix
from disp.models.mmada.loading import load_official
from disp.models.mmada.model import MMada
from disp.models.mmada.vq import quantize

CLOSE = 1e-4
LOSS = 1e-5
# Recorded argument of the published sampler -> ours.
ARGUMENTS = {
    "max_new_tokens": "gen_length",
    "steps": "steps",
    "block_length": "block_length",
    "cfg_scale": "cfg_scale",
    "remasking": "remasking",
    "temperature": "temperature",
}


def compare(folder: Path) -> Iterator[Difference]:
    """One `Difference` for each quantity recorded in the folder."""
    model = load_official(folder)
    meta = json.loads((folder / "meta.json").read_text())
    io = Recorded(load_file(folder / "io.safetensors"))
    prompt_ids = io["prompt_ids"]
    visual_mask = image_positions(prompt_ids.shape, meta["image_range"])
    with torch.no_grad():
        prefix = model.embed_ids(prompt_ids, visual_mask)
        yield from _image_tokenizer(model, io)
        yield from _logits(model, prefix, io)
        for name, settings in meta.get("generate", {}).items():
            yield Difference(
                f"gen_{name}", differing(decode(model, prefix, published_settings(settings)), io[f"gen_{name}"]), 0
            )
        if "masked_image_full_output_official" in io:
            yield from _masked_image(model, io["masked_image_full_output_official"], prompt_ids, visual_mask, meta)
        if "train_loss" in meta:
            yield from _losses(model, io, prompt_ids, visual_mask, meta["train_loss"])
    if "grad_logp_slot0_wrt_visual" in io:
        gradient = slot0_gradient(model, prompt_ids, visual_mask, io["response_logits"].shape[1])
        yield Difference("grad_logp_slot0_wrt_visual", largest(gradient, io["grad_logp_slot0_wrt_visual"]), CLOSE)
    yield Difference(f"not compared: {io.unread() or 'nothing'}", len(io.unread()), 0)


class Recorded(dict[str, Tensor]):
    """The recorded tensors, and which of them nobody has looked at."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def unread(self) -> list[str]:
        return sorted(self.keys() - self.read)


def slot0_gradient(model: MMada, prompt_ids: Tensor, visual_mask: Tensor, length: int) -> Tensor:
    """Of log p(slot 0's likeliest token), all slots open, with respect to each visual token's embedding.

    Returns:
        Float ``[N, d]``, row after row of the batch.
    """
    prefix = model.embed_ids(prompt_ids, visual_mask)
    embeds = prefix.embeds.detach().requires_grad_()
    response = torch.full((len(prefix), length), model.mask_token_id)
    log_p = model.denoise(replace(prefix, embeds=embeds), response)[:, 0].log_softmax(-1)
    (gradient,) = torch.autograd.grad(log_p.max(-1).values.sum(), embeds)
    return gradient[visual_mask]


def image_positions(shape: torch.Size, image_range: list) -> Tensor:
    """bool ``[B, P]``, true in the recorded range of image tokens, or in each of several."""
    ranges = image_range if isinstance(image_range[0], list) else [image_range]
    mask = torch.zeros(shape, dtype=torch.bool)
    for first, last in ranges:
        mask[:, first:last] = True
    return mask


def published_settings(settings: dict[str, Any]) -> DecodeConfig:
    """Recorded arguments of the published sampler as ours; an unknown one is an error.

    The published sampler may predict the mask token, which a model with random weights does.
    """
    return decode_config(**{ARGUMENTS[name]: value for name, value in settings.items()}, ban_mask=False)


def _image_tokenizer(model: MMada, io: dict[str, Tensor]) -> Iterator[Difference]:
    if "vq_pixels" not in io:
        return
    assert model.vision_tower is not None, "vq.safetensors is missing"
    latent = model.vision_tower(io["vq_pixels"])
    yield Difference("vq_latent", largest(latent, io["vq_latent"]), CLOSE)
    yield Difference("vq_codes", differing(quantize(latent).flatten(1), io["vq_codes"]), 0)


def _logits(model: MMada, prefix: Prefix, io: dict[str, Tensor]) -> Iterator[Difference]:
    response = torch.full(io["response_logits"].shape[:2], model.mask_token_id)
    yield Difference("response_logits", largest(model.denoise(prefix, response), io["response_logits"]), CLOSE)
    if "response_logits_bias" in io:
        # Recorded with what stands before the image hidden from everyone, as left padding is.
        hidden = int(prefix.visual_mask[0].nonzero()[0])
        length = prefix.embeds.shape[1] + response.shape[1]
        bias = torch.ones(len(prefix), 1, length, length, dtype=torch.bool)
        bias[..., :hidden] = False
        logits = model.denoise(prefix, response, attention_bias=bias)
        yield Difference("response_logits_bias", largest(logits, io["response_logits_bias"]), CLOSE)


def _losses(
    model: MMada, io: dict[str, Tensor], prompt_ids: Tensor, visual_mask: Tensor, recorded: float
) -> Iterator[Difference]:
    ids, ratio, uniforms, start = io["train_ids"], io["train_t"], io["train_u"], prompt_ids.shape[1]
    answer = torch.arange(ids.shape[1]).expand(ids.shape) >= start
    loss = model.sequence_loss(ids, answer, ratio, uniforms)
    yield Difference("train_loss", abs(float(loss) - recorded), LOSS)
    # The loss that training calls: the same answer as the response to the same prompt.
    prefix = model.embed_ids(ids[:, :start], visual_mask.expand(len(ids), -1))
    loss = model.noisy_loss(prefix, ids[:, start:], ratio, uniforms[:, start:])
    yield Difference("train_loss (noisy_loss)", abs(float(loss) - recorded), LOSS)


def _masked_image(
    model: MMada, official: Tensor, prompt_ids: Tensor, visual_mask: Tensor, meta: dict[str, Any]
) -> Iterator[Difference]:
    """With masked image tokens the published sampler fills those and leaves slots of the answer open; ours answers."""
    prompt_length = prompt_ids.shape[1]
    length = official.shape[1] - prompt_length
    masked = visual_mask & (official[:, :prompt_length] != prompt_ids)
    # What was put back by chance is masked too: the recorded positions are consecutive.
    masked = visual_mask & (masked.cumsum(-1) > 0) & (masked.flip(-1).cumsum(-1).flip(-1) > 0)
    prefix = model.embed_ids(prompt_ids, visual_mask).with_masked(masked, model.mask_embedding)
    replaced = model.embed_ids(torch.where(masked, model.mask_token_id, prompt_ids), visual_mask)
    yield Difference("masked embeddings = replaced ids", largest(prefix.embeds, replaced.embeds), 0)
    # Which settings were recorded is not written down: one token a step, or one of the other runs'.
    runs = [{"max_new_tokens": length, "steps": length, "block_length": length}]
    runs += [s for s in meta["generate"].values() if s["max_new_tokens"] == length and set(s) == set(runs[0])]
    open_slots, unlike = 0, []
    for settings in runs:
        tokens = decode(model, prefix, replace(published_settings(settings), ban_mask=True))
        open_slots += int((tokens == model.mask_token_id).sum())
        unlike.append(differing(published_sampler(model, prompt_ids, masked, settings), official))
    yield Difference("masked image: open slots after decoding", open_slots, 0)
    yield Difference("masked_image_full_output_official, by the published rule", min(unlike), 0)


def published_sampler(model: MMada, prompt_ids: Tensor, masked: Tensor, settings: dict[str, Any]) -> Tensor:
    """The published greedy sampler's rule, fault included: whatever holds the mask id, image or answer, is a candidate.

    Returns:
        int64 ``[B, P + L]``: the prompt, with image positions that were filled, and the answer.
    """
    length, block, mask_id = settings["max_new_tokens"], settings["block_length"], model.mask_token_id
    steps = settings["steps"] // (length // block)
    rows = []
    for prompt, hidden in zip(prompt_ids, masked, strict=True):
        ids = torch.cat((torch.where(hidden, mask_id, prompt), torch.full((length,), mask_id)))
        for end in range(len(prompt) + block, len(prompt) + length + 1, block):
            owed = int((ids[end - block : end] == mask_id).sum())
            for step in range(steps):
                nothing = model.embed_ids(ids[None, :0], torch.zeros((1, 0), dtype=torch.bool))
                confidence, tokens = model.denoise(nothing, ids[None])[0].double().softmax(-1).max(-1)
                is_open = ids == mask_id
                confidence[~is_open] = -torch.inf
                confidence[end:] = -torch.inf
                chosen = confidence.topk(owed // steps + (step < owed % steps)).indices
                ids[chosen] = torch.where(is_open, tokens, ids)[chosen]
        rows.append(ids)
    return torch.stack(rows)


def largest(ours: Tensor, recorded: Tensor) -> float:
    return float((ours - recorded).abs().max()) if ours.shape == recorded.shape else float("inf")


def differing(ours: Tensor, recorded: Tensor) -> int:
    return int((ours != recorded).sum()) if ours.shape == recorded.shape else max(ours.numel(), recorded.numel())
