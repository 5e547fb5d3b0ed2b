"""Dimple: what its published code computed, and what ours computes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from models.difference import Difference
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from disp.decoding.generate import decode
from disp.decoding.samplers import decode_config
from disp.models.checkpoint import read_weights
from disp.models.dimple.images import lay_out
from disp.models.dimple.loading import load_official
from disp.models.dimple.model import Dimple
from disp.models.interface import Prefix

CLOSE, LOSS = 1e-4, 1e-5
# Recorded argument of the published sampler -> ours. What is not passed comes from transformers 4's model defaults.
ARGUMENTS = {
    "max_new_tokens": "gen_length",
    "decoding_pipeline": "sampler",
    "steps": "steps",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "alg": "algorithm",
    "alg_temp": "algorithm_temperature",
    "alg_p_threshold": "confidence_threshold",
    "use_cache": "prefix_cache",
}
INPUTS = {
    *("prompt_ids", "image_grid_thw", "attention_mask", "train_ids", "train_t", "train_u"),
    *("train_attention_mask", "train_mask_locations", "train_labels"),
}


def compare(folder: Path) -> Iterator[Difference]:
    """One `Difference` for each quantity recorded in the folder."""
    model = load_official(folder)
    meta = json.loads((folder / "meta.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    io = load_file(folder / "io.safetensors")
    grids = io["image_grid_thw"][:, 1:] // model.config.vision["spatial_merge_size"]
    done = set(INPUTS)
    yield _keys(folder, model)
    with torch.no_grad():
        # 1. Pixels to projected features.
        if "image_uint8_hwc" in io:
            patches, _ = model.patches(Image.fromarray(io["image_uint8_hwc"].numpy()))
            yield Difference(
                "pixel_values", _apart(model.pixel_values(torch.from_numpy(patches)), io["pixel_values"]), 0
            )
        features = model.vision_features(io["pixel_values"], grids)
        yield Difference("visual_out", _apart(features, io["visual_out"]), CLOSE)
        # From the recorded output: rounding in the tower comes out of the projector several times as large.
        yield Difference("projected", _apart(model.img_projector(io["visual_out"]), io["projected"]), CLOSE)
        done |= {"image_uint8_hwc", "pixel_values", "visual_out", "projected"}

        # 2. Positions.
        attention_mask = io.get("attention_mask", torch.ones_like(io["prompt_ids"])).bool()
        prefix = model.embed(io["prompt_ids"], attention_mask, grids, features=features)
        yield from _positions(model, prefix, io, grids)
        done |= {"position_ids", "rope_deltas", "full_position_ids"}

        # 3. Logits of an answer of all masks.
        recorded = io["logits_last_R_plus_1"]
        blank = torch.full((len(prefix), recorded.shape[1] - 1), model.mask_token_id)
        yield Difference("logits_last_R_plus_1", _apart(model.next_token_logits(prefix, blank), recorded), CLOSE)
        first = model.next_token_logits(prefix, blank, model.cache_prefix(prefix))
        yield Difference("logits_last_R_plus_1 (first pass with a cache)", _apart(first, recorded), CLOSE)
        done.add("logits_last_R_plus_1")

        # 4. Decoding.
        for name, settings in meta.get("generate", {}).items():
            yield Difference(
                f"gen_{name}",
                _differing(generate(model, prefix, settings, config, io[f"gen_{name}"]), io[f"gen_{name}"]),
                0,
            )
            done.add(f"gen_{name}")

        # 5. Loss.
        if "train_loss" in meta:
            yield from _losses(model, io, meta["train_loss"], features, grids)
    if "grad_logp_slot0_wrt_visual" in io:
        yield _gradient(model, prefix, blank, io["grad_logp_slot0_wrt_visual"], meta)
        done.add("grad_logp_slot0_wrt_visual")
    for name in sorted(io.keys() - done):
        yield Difference(f"{name} (no comparison for it)", math.inf, 0)


def generate(
    model: Dimple, prefix: Prefix, settings: Mapping[str, Any], config: Mapping[str, Any], like: Tensor
) -> Tensor:
    """Decode with recorded arguments of the published sampler; an unknown one is an error."""
    settings = {"max_new_tokens": like.shape[1], "decoding_pipeline": "dim", "alg": "origin", "steps": 512, **settings}
    settings.setdefault("temperature", config.get("temperature", 1.0))
    settings.setdefault("top_p", config.get("top_p"))
    settings.setdefault("top_k", config.get("top_k", 50))
    original = settings.pop("use_original_confidence", True)
    arguments = {ARGUMENTS[name]: value for name, value in settings.items()}
    # To the published code 0 and null are both "off".
    for name in ("confidence_threshold", "top_p", "top_k"):
        arguments[name] = arguments.get(name) or None
    arguments["algorithm_temperature"] = arguments.get("algorithm_temperature") or 0.0
    original = original and arguments["sampler"] == "dim"
    decoding = decode_config(**arguments, ban_mask=False, original_confidence=original)
    return decode(model, prefix, decoding, keys=[str(row) for row in range(len(prefix))])


def _keys(folder: Path, model: Dimple) -> Difference:
    """The checkpoint, written back: the same keys and the same numbers."""
    stored, ours = dict(read_weights(folder)), model.official_state_dict()
    differing = sum(not stored[name].equal(ours[name]) for name in ours.keys() & stored.keys())
    return Difference("model.safetensors, written back", len(ours.keys() ^ stored.keys()) + differing, 0)


def _positions(model: Dimple, prefix: Prefix, io: dict[str, Tensor], grids: Tensor) -> Iterator[Difference]:
    """Recorded as [3, B, T]: of the prompt alone, and with masks behind it."""
    positions = prefix.extras["positions"]
    yield Difference("position_ids", _differing(positions.permute(2, 0, 1), io["position_ids"]), 0)
    if "rope_deltas" in io:
        deltas = positions.amax((1, 2)) + 1 - positions.shape[1]
        yield Difference("rope_deltas", _differing(deltas[:, None], io["rope_deltas"]), 0)
    if "full_position_ids" in io:
        recorded = io["full_position_ids"]
        blank = torch.full((len(prefix), recorded.shape[2] - positions.shape[1]), model.mask_token_id)
        _, ours = model.joined(prefix, blank)
        yield Difference("full_position_ids", _differing(ours.permute(2, 0, 1), recorded), 0)
        # The masks are text to the rule: one pass over prompt and answer says the same.
        ids = torch.cat((io["prompt_ids"], blank), dim=1)
        there = torch.cat((prefix.attention_mask, torch.ones_like(blank, dtype=torch.bool)), dim=1)
        whole, _ = lay_out(ids, there, grids, model.config.image_token_id)
        yield Difference("full_position_ids (at once)", _differing(whole.permute(2, 0, 1), recorded), 0)


def _losses(
    model: Dimple, io: dict[str, Tensor], recorded: float, features: Tensor, grids: Tensor
) -> Iterator[Difference]:
    ids = io["train_ids"]
    there = io.get("train_attention_mask", torch.ones_like(ids)).bool()
    if "train_mask_locations" in io:
        answers = io["train_mask_locations"].bool()
    elif "train_labels" in io:
        answers = io["train_labels"] != -100
    else:
        answers = torch.arange(ids.shape[1]).expand_as(ids) >= io["prompt_ids"].shape[1]
    rows = len(ids) // len(io["prompt_ids"])
    prefix = model.embed(ids, there, grids.repeat(rows, 1), features=features.repeat(rows, 1))
    # Recorded is the mask ratio itself, or the t that it comes from.
    losses = [
        float(model.sequence_loss(prefix, ids, answers, ratio, io["train_u"]))
        for ratio in (io["train_t"], (io["train_t"] - model.ratio_floor) / (1 - model.ratio_floor))
    ]
    yield Difference("train_loss", min(abs(loss - recorded) for loss in losses), LOSS)


def _gradient(model: Dimple, prefix: Prefix, blank: Tensor, recorded: Tensor, meta: Mapping[str, Any]) -> Difference:
    embeds = prefix.embeds.clone().requires_grad_()
    inputs = Prefix(embeds, prefix.attention_mask, prefix.visual_mask, prefix.locations, prefix.extras)
    scores = model.denoise(inputs, blank)[0, 0].float().log_softmax(-1)
    scores[meta.get("slot0_top_token", int(scores.argmax()))].backward()
    return Difference("grad_logp_slot0_wrt_visual", _apart(embeds.grad[prefix.visual_mask], recorded), CLOSE)


def _apart(ours: Tensor, recorded: Tensor) -> float:
    return float((ours - recorded).abs().max()) if ours.shape == recorded.shape else math.inf


def _differing(ours: Tensor, recorded: Tensor) -> int:
    return int((ours != recorded).sum()) if ours.shape == recorded.shape else max(ours.numel(), recorded.numel())
