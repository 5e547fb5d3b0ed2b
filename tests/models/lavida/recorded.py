"""LaViDa, on LLaDA and on Dream: what its published code computed, and what ours computes.

Each stage gets the recorded output of the vision tower, for the reason that `models.llada_v.recorded` gives; the
logits are compared once more from pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from models.difference import Difference
from models.llada_v.recorded import CLOSE, LOSS, Picture, Recorded, Spliced, largest, splice, spread
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from disp.decoding.config import DecodeConfig
from disp.decoding.generate import decode
from disp.decoding.samplers import decode_config
from disp.decoding.schedule import commit_schedule
from disp.models.checkpoint import read_weights
from disp.models.lavida.loading import load_official
from disp.models.lavida.masks import complementary_pair
from disp.models.lavida.model import Lavida, pool_tiles
from disp.models.parts.vision import normalise_pixels

IGNORED, IMAGE_ID = -100, -200
# The published spelling of our name.
REMASKING = {"entrophy": "entropy"}
# Token of fill-in-the-middle training; folders shorten it as they do all ids, and do not name it.
FILL = 126085


def compare(folder: Path) -> Iterator[Difference]:
    """One `Difference` for each quantity recorded in the folder."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    io = Recorded(load_file(folder / "io.safetensors"))
    model = load_for_comparison(folder, meta)
    yield _keys(folder, model)
    names = [name for name, tensor in io.items() if name.startswith("image") and tensor.dtype == torch.uint8]
    # By length first, so that a second image comes before a tenth.
    images = [Image.fromarray(io[name].numpy()) for name in sorted(names, key=lambda name: (len(name), name))]
    with torch.no_grad():
        yield from _visual_tokens(model, io, images)
        pictures = _with_features(model, io, images)
        ids = _placed(io["prompt_ids"][0], meta)
        prompt = splice(model, ids, pictures)
        yield from _lengths(meta, prompt)
        yield from io.close("prompt_embeds", prompt.prefix.embeds)
        yield from _logits(model, io, meta, prompt)
        yield from _from_pixels(model, io, splice(model, ids, [Picture(image, None) for image in images]))
        for name, arguments in meta.get("generate", {}).items():
            yield from _decoding(model, io, name, arguments, prompt)
    yield from _gradient(model, io, meta, prompt)
    yield from _schedules(meta)
    if "train_ids" in io:
        yield from _training(model, io, meta, pictures)
    unread = sorted(io.keys() - io.read)
    yield Difference(f"recorded tensors that nothing compares: {', '.join(unread) or 'none'}", len(unread), 0)


def load_for_comparison(folder: Path, meta: Mapping[str, Any]) -> Lavida:
    """The folder's model in float32, with the ids that the folder names."""
    ids = {name: meta["ids"][name] for name in ("mask", "eos", "eot", "fill") if name in meta["ids"]}
    if meta["ids"]["mask"] < 1000:
        ids = {"fill": FILL % 1000, **ids}
    return load_official(folder, token_ids=ids)


def published_settings(model: Lavida, arguments: Mapping[str, Any]) -> DecodeConfig:
    """The recorded arguments of the published ``generate`` as ours."""
    length, ratio = arguments["max_new_tokens"], arguments.get("step_ratio")
    common = {
        "gen_length": length,
        "temperature": float(arguments.get("temperature") or 0.0),
        "schedule": arguments.get("schedule"),
        "schedule_shift": (arguments.get("schedule_kwargs") or {}).get("shift", 3.0),
        "prefix_cache": bool(arguments.get("prefix_lm")),
        # The published samplers may predict the mask token, which a model with random weights does.
        "ban_mask": False,
    }
    if model.config.variant == "dream":
        return decode_config(
            **common,
            sampler="dream",
            steps=min(arguments.get("steps", 512), length),
            algorithm=arguments.get("alg", "entropy"),
            algorithm_temperature=arguments.get("alg_temp") or 0.0,
            step_ratio=ratio,
            top_k=arguments.get("top_k", 50),  # set by version 4 of the transformers library, for all its models
            top_p=arguments.get("top_p"),
        )
    block = arguments.get("block_length", 128)
    # The argument `steps` is ignored by the published code, which starts from a step a token.
    steps = block
    if arguments.get("step_per_block"):
        steps = min(arguments["step_per_block"], block)
    if ratio:
        steps = int(block * ratio)
    remasking = arguments.get("remasking", "low_confidence")
    return decode_config(
        **common,
        steps=steps * (length // block),
        block_length=block,
        remasking=REMASKING.get(remasking, remasking),
    )


def _placed(ids: Tensor, meta: Mapping[str, Any]) -> Tensor:
    """The ids with our placeholder for an image."""
    return ids.masked_fill(ids == meta["ids"].get("image_placeholder", IMAGE_ID), IMAGE_ID)


def _keys(folder: Path, model: Lavida) -> Difference:
    """The checkpoint, written back: the same keys and the same numbers."""
    stored, ours = dict(read_weights(folder)), model.official_state_dict()
    differing = sum(not torch.equal(stored[name], ours[name]) for name in ours.keys() & stored.keys())
    return Difference("model.safetensors, written back", len(ours.keys() ^ stored.keys()) + differing, 0)


def _visual_tokens(model: Lavida, io: Recorded, images: Sequence[Image.Image]) -> Iterator[Difference]:
    if not images:
        return
    pixels = normalise_pixels(torch.cat(model.tiles(images)))
    if "pixel_values" in io:
        recorded = io["pixel_values"].flatten(0, -4)
        yield Difference("pixel_values", _differing(pixels, recorded), 0)
    features = model.model.vision_tower(pixels)
    yield from io.close("tower_features", features)
    if "tower_features" in io:
        features = io["tower_features"]
    tokens = model.model.mm_projector(features)
    yield from io.close("projected_features", tokens)
    yield from io.close("pooled_features", pool_tiles(tokens, model.config.pooling))


def _with_features(model: Lavida, io: Recorded, images: Sequence[Image.Image]) -> list[Picture]:
    """The images with the recorded output of the tower for their tiles."""
    counts = [len(tiles) for tiles in model.tiles(images)] if images else []
    if "tower_features" not in io or len(io["tower_features"]) != sum(counts):
        return [Picture(image, None) for image in images]
    return [Picture(image, part) for image, part in zip(images, io["tower_features"].split(counts), strict=True)]


def _lengths(meta: Mapping[str, Any], prompt: Spliced) -> Iterator[Difference]:
    starts, lengths = zip(*prompt.spans, strict=True) if prompt.spans else ((), ())
    # Several images may be recorded one by one or as a sum.
    ours = {
        "visual_start": (starts[0] if starts else None, list(starts)),
        "num_visual_tokens": (sum(lengths), list(lengths)),
    }
    for name, values in ours.items():
        if meta.get(name) is not None:
            yield Difference(name, float(meta[name] not in values), 0)


def _logits(model: Lavida, io: Recorded, meta: Mapping[str, Any], prompt: Spliced) -> Iterator[Difference]:
    if "response_logits_raw" not in io:
        return
    recorded = io["response_logits_raw"]
    response = _open_slots(model, io)
    yield from io.close("response_logits_raw", model.unaligned_logits(prompt.prefix, response))
    slot0 = model.denoise(prompt.prefix, response)[:, 0]
    if "slot0_logits_row_from_end" in meta:
        row = recorded[:, meta["slot0_logits_row_from_end"]]
        yield Difference("response_logits_raw, the row of slot 0", largest(slot0, row), CLOSE)
    if "slot0_top_token" in meta:
        yield Difference("slot0_top_token", float(int(slot0.argmax()) != meta["slot0_top_token"]), 0)


def _from_pixels(model: Lavida, io: Recorded, prompt: Spliced) -> Iterator[Difference]:
    """Logits without a recorded value on the way, relative to the largest one."""
    if "response_logits_raw" in io:
        recorded = io["response_logits_raw"]
        ours = model.unaligned_logits(prompt.prefix, _open_slots(model, io))
        yield Difference(
            "response_logits_raw, from pixels", largest(ours, recorded) / float(recorded.abs().max()), CLOSE
        )


def _open_slots(model: Lavida, io: Recorded) -> Tensor:
    # The recorded rows begin with the last prompt position.
    length = io["response_logits_raw"].shape[1] - 1 if "response_logits_raw" in io else 8
    return torch.full((1, length), model.mask_token_id)


def _decoding(
    model: Lavida, io: Recorded, name: str, arguments: Mapping[str, Any], prompt: Spliced
) -> Iterator[Difference]:
    config = published_settings(model, arguments)
    ids = decode(model, prompt.prefix, config)
    yield from io.exact(f"gen_{name}", ids)
    if "full_output_length" in arguments:
        # Without a prefix cache, published code returns a zero for each prompt token before the answer.
        length = ids.shape[1] + (0 if config.prefix_cache else prompt.prefix.embeds.shape[1])
        yield Difference(f"gen_{name}, full_output_length", float(length != arguments["full_output_length"]), 0)


def _gradient(model: Lavida, io: Recorded, meta: Mapping[str, Any], prompt: Spliced) -> Iterator[Difference]:
    if "grad_logp_slot0_wrt_visual" not in io:
        return
    embeds = prompt.prefix.embeds.detach().clone().requires_grad_()
    log_p = model.denoise(replace(prompt.prefix, embeds=embeds), _open_slots(model, io))[0, 0].log_softmax(-1)
    (gradient,) = torch.autograd.grad(log_p[meta.get("slot0_top_token", int(log_p.argmax()))], embeds)
    visual = torch.cat([gradient[0, start : start + length] for start, length in prompt.spans])
    yield from io.close("grad_logp_slot0_wrt_visual", visual)


def _schedules(meta: Mapping[str, Any]) -> Iterator[Difference]:
    for name, counts in meta.get("schedule_counts", {}).items():
        parts = re.fullmatch(r"n(\d+)_steps(\d+)_(\w+)_([\d.]+)", name)
        assert parts is not None, name
        slots, steps, schedule, shift = parts.groups()
        ours = commit_schedule(int(slots), int(steps), None if schedule == "None" else schedule, float(shift))
        yield Difference(f"schedule_counts {name}", _differing(torch.tensor(ours), torch.tensor(counts)), 0)


def _training(
    model: Lavida, io: Recorded, meta: Mapping[str, Any], pictures: Sequence[Picture]
) -> Iterator[Difference]:
    model.zero_grad()
    embeds, labels = _training_batch(model, io, meta, pictures)
    ratio, uniforms = io["train_t"], io["train_u"]
    masked, targets = complementary_pair(labels, ratio, uniforms, model.config.token_ids.get("fill"))
    yield from io.exact("train_masked_doubled", masked)
    yield from io.exact("train_labels_doubled", targets)
    loss = model.sequence_loss(embeds, labels, ratio, uniforms)
    yield Difference("train_loss", abs(loss.item() - meta["train_loss"]), LOSS)
    loss.backward()
    for name, parameter in (("newline", model.model.image_newline), ("proj0", model.model.mm_projector[0].weight)):
        if f"train_grad_{name}" in io:
            assert isinstance(parameter.grad, Tensor)
            yield from io.close(f"train_grad_{name}", parameter.grad)


def _training_batch(
    model: Lavida, io: Recorded, meta: Mapping[str, Any], pictures: Sequence[Picture]
) -> tuple[Tensor, Tensor]:
    """Embeddings and labels as the published code has them: every end of text is a target, rows end in zero vectors."""
    rows, labels, rest = [], [], list(pictures)
    eos = model.config.token_ids["eos"]
    for recorded, own in zip(io["train_ids"], io["train_labels"], strict=True):
        ids = _placed(recorded, meta)
        count = int((ids == IMAGE_ID).sum())
        # Rows that share their pictures, or rows that bring their own.
        chosen = rest[:count] if len(pictures) > count else list(pictures)
        rest = rest[count:]
        spliced = splice(model, ids, chosen)
        rows.append(spliced.prefix.embeds[0])
        labels.append(spread(torch.where(ids == eos, eos, own), spliced, IGNORED)[0])
    return pad_sequence(rows, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=IGNORED)


def _differing(ours: Tensor, recorded: Tensor) -> float:
    """How many elements differ; infinite where the shapes do."""
    return float((ours != recorded).sum()) if ours.shape == recorded.shape else float("inf")
