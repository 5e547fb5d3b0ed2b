"""LLaDA-V: what its published code computed, and what ours computes.

Each stage gets the recorded output of the vision tower. The tower is compared on its own and once end to end: its
activations are large, and what the rounding of another processor's kernels changes in them (a few 1e-5, between two
machines as between any two implementations) would otherwise be amplified by the projector and decide every other line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from models.difference import Difference
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from disp.decoding.generate import decode_with_lengths
from disp.decoding.samplers import decode_config
from disp.models.interface import Prefix
from disp.models.llada_v.loading import load_official
from disp.models.llada_v.model import IMAGE_ID, LladaV, turns_of
from disp.models.parts.llava import IGNORED
from disp.models.parts.vision import normalise_pixels
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.masking import mask_top
from disp.suspicion.saliency import saliency

CLOSE = 1e-4
LOSS = 1e-5
# Of the largest score.
DISP_SCORES = 1e-4
# The ratio of their scripts.
DISP_RATIO = 0.3
IDS = ("mask", "bos", "eos", "start_header", "end_header", "eot")
# Recorded argument of the published sampler -> ours; the two that are texts of token ids are read apart.
ARGUMENTS = {
    "gen_length": "gen_length",
    "steps": "steps",
    "block_length": "block_length",
    "cfg_scale": "cfg_scale",
    "remasking": "remasking",
    "temperature": "temperature",
}


class Recorded(dict[str, Tensor]):
    """The recorded tensors, and which of them nobody has looked at."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def close(self, name: str, ours: Tensor, tolerance: float = CLOSE) -> Iterator[Difference]:
        """The largest difference to a recorded tensor, if there is one of that name."""
        if name in self:
            yield Difference(name, largest(ours, self[name]), tolerance)

    def exact(self, name: str, ours: Tensor) -> Iterator[Difference]:
        """The number of elements that differ from a recorded tensor, if there is one of that name."""
        if name in self:
            yield Difference(name, differing(ours, self[name]), 0)


@dataclass(frozen=True)
class Picture:
    """An image and the recorded output of the tower for its tiles, if there is one."""

    image: Image.Image
    features: Tensor | None


@dataclass(frozen=True)
class Spliced:
    """One sequence of ids with the images in it, and where they lie.

    Attributes:
        prefix: the embedded sequence, one row.
        spans: first position and length, newlines included, of each image.
        places: for each id of the unspliced sequence its position, -1 for images.
    """

    prefix: Prefix
    spans: list[tuple[int, int]]
    places: list[int]


def compare(folder: Path) -> Iterator[Difference]:
    """One `Difference` for each quantity recorded in the folder."""
    meta = json.loads((folder / "meta.json").read_text())
    model = load_official(folder, token_ids={name: meta["ids"][name] for name in IDS if name in meta["ids"]})
    if "banned_in_generation" in meta["ids"]:
        model.banned_token_ids = tuple(meta["ids"]["banned_in_generation"])
    io = Recorded(load_file(folder / "io.safetensors"))
    names = sorted((name for name in io if "uint8" in name), key=_natural)
    pixels = [array for name in names for array in (io[name] if io[name].ndim == 4 else io[name][None])]
    pictures = [Image.fromarray(array.numpy()) for array in pixels]
    with torch.no_grad():
        yield from _tower(model, io, pictures)
        images = _with_features(model, io, pictures)
        prompt = splice(model, _replaced(io["prompt_ids"][0], meta), images)
        yield from _lengths(meta, io, prompt)
        yield from io.close("prompt_embeds", prompt.prefix.embeds)
        yield from _logits(model, io, meta, prompt)
        if images and "response_logits" in io:
            yield from _end_to_end(model, io, meta, images)
        for name, settings in meta.get("generate", {}).items():
            unknown = settings.keys() - {*ARGUMENTS, "stopping_criteria", "generation_suffix"}
            if unknown:
                io.read.add(f"gen_{name}")
                yield Difference(f"gen_{name}: unknown arguments {', '.join(sorted(unknown))}", torch.inf, 0)
            else:
                yield from io.exact(f"gen_{name}", generated(model, prompt.prefix, settings))
        yield from _visual_masked(model, io, meta, prompt)
    yield from _gradient(model, io, meta, prompt)
    yield from _losses(model, io, meta, images)
    if (folder / "disp.safetensors").is_file():
        yield from published_disp(model, Recorded(load_file(folder / "disp.safetensors")), meta, prompt)
    unread = sorted(io.keys() - io.read)
    yield Difference(f"recorded tensors that nothing compares: {', '.join(unread) or 'none'}", len(unread), 0)


def largest(ours: Tensor, recorded: Tensor) -> float:
    """The largest absolute difference; infinite where the shapes differ."""
    if ours.shape != recorded.shape:
        return torch.inf
    return float((ours - recorded).abs().max()) if ours.numel() else 0.0


def differing(ours: Tensor, recorded: Tensor) -> float:
    """How many elements differ; all of them where the shapes do."""
    return float((ours != recorded).sum()) if ours.shape == recorded.shape else float(max(recorded.numel(), 1))


def splice(model: LladaV, ids: Tensor, images: Sequence[Picture]) -> Spliced:
    """Embed ids int64 ``[T]`` with -200 at the images, and find where the images went."""
    images = images[: int((ids == IMAGE_ID).sum())]
    features = [image.features for image in images if image.features is not None]
    prefix = model.splice(ids, [image.image for image in images], torch.cat(features) if features else None)
    owner = prefix.locations[0, :, 0].tolist()
    spans, places, position = [], [], 0
    for token in ids.tolist():
        if token != IMAGE_ID:
            places.append(position)
            position += 1
            continue
        # An image ends with a newline, so its last visual token is the one before its end.
        last = max(place for place, image in enumerate(owner) if image == len(spans))
        spans.append((position, last + 2 - position))
        places.append(-1)
        position = last + 2
    assert position == prefix.embeds.shape[1]
    return Spliced(prefix, spans, places)


def spread(ids: Tensor, spliced: Spliced, fill: int) -> Tensor:
    """Values of the unspliced sequence at their positions in the spliced one, ``fill`` at images: ``[1, P]``."""
    out = torch.full((spliced.prefix.embeds.shape[1],), fill)
    for value, place in zip(ids.tolist(), spliced.places, strict=True):
        if place >= 0:
            out[place] = value
    return out[None]


def generated(model: LladaV, prefix: Prefix, settings: dict[str, Any]) -> Tensor:
    """Decode with the recorded arguments of the published sampler: the ids that it returns, int64 ``[1, n]``."""
    settings = dict(settings)
    stop = settings.pop("stopping_criteria", None) or []
    suffix = settings.pop("generation_suffix", None) or ""
    # The published sampler may predict the mask token, which a model with random weights does.
    config = decode_config(
        **{ARGUMENTS[name]: value for name, value in settings.items()},
        stop=tuple(tuple(int(token) for token in text.split()) for text in stop),
        suffix=tuple(int(token) for token in suffix.split()),
        ban_mask=False,
    )
    decoded = decode_with_lengths(model, prefix, config, keys=["0"])
    return decoded.ids[:, : int(decoded.lengths[0])]


def _natural(name: str) -> tuple[int, str]:
    """Sorts image_2 before image_10."""
    return len(name), name


def _replaced(ids: Tensor, meta: dict[str, Any]) -> Tensor:
    return ids.masked_fill(ids == meta["ids"].get("image_placeholder", IMAGE_ID), IMAGE_ID)


def _tower(model: LladaV, io: Recorded, images: list[Image.Image]) -> Iterator[Difference]:
    if not images:
        return
    pixels = normalise_pixels(torch.cat(model.tiles(images)))
    yield from io.exact("pixel_values", pixels)
    features = model.model.vision_tower(pixels)
    yield from io.close("tower_features", features)
    if "tower_features" in io:
        features = io["tower_features"]
    yield from io.close("projected_features", model.model.mm_projector(features))


def _with_features(model: LladaV, io: Recorded, images: list[Image.Image]) -> list[Picture]:
    counts = [len(tiles) for tiles in model.tiles(images)] if images else []
    if "tower_features" not in io or len(io["tower_features"]) != sum(counts):
        return [Picture(image, None) for image in images]
    return [Picture(image, part) for image, part in zip(images, io["tower_features"].split(counts), strict=True)]


def _end_to_end(model: LladaV, io: Recorded, meta: dict[str, Any], images: list[Picture]) -> Iterator[Difference]:
    """Logits from pixels, without a recorded value on the way, relative to the largest logit."""
    prompt = splice(model, _replaced(io["prompt_ids"][0], meta), [Picture(each.image, None) for each in images])
    recorded = io["response_logits"]
    logits = model.denoise(prompt.prefix, torch.full((1, recorded.shape[1]), model.mask_token_id))
    yield Difference("response_logits, from pixels", largest(logits, recorded) / float(recorded.abs().max()), CLOSE)


def _lengths(meta: dict[str, Any], io: Recorded, prompt: Spliced) -> Iterator[Difference]:
    found = {
        "prompt_embeds_len": prompt.prefix.embeds.shape[1],
        "visual_start": prompt.spans[0][0] if prompt.spans else None,
        "num_visual_tokens": sum(length for _, length in prompt.spans),
    }
    several = {
        "visual_start": [start for start, _ in prompt.spans],
        "num_visual_tokens": [length for _, length in prompt.spans],
    }
    for name, value in found.items():
        if meta.get(name) is not None:
            yield Difference(name, float(meta[name] not in (value, several.get(name))), 0)


def _logits(model: LladaV, io: Recorded, meta: dict[str, Any], prompt: Spliced) -> Iterator[Difference]:
    length = _slots(io, meta)
    response = torch.full((1, length), model.mask_token_id)
    prefix = prompt.prefix
    x = torch.cat((prefix.embeds, model.model.embed_tokens(response)), dim=1)
    yield from io.close(
        "response_hidden", model.model.hidden(x, torch.ones(x.shape[:2], dtype=torch.bool), rows=length)
    )
    logits = model.denoise(prefix, response)
    yield from io.close("response_logits", logits)
    if "slot0_top_token" in meta:
        yield Difference("slot0_top_token", float(int(logits[0, 0].argmax()) != meta["slot0_top_token"]), 0)


def _slots(io: Recorded, meta: dict[str, Any]) -> int:
    return io["response_logits"].shape[1] if "response_logits" in io else 8


def _visual_masked(model: LladaV, io: Recorded, meta: dict[str, Any], prompt: Spliced) -> Iterator[Difference]:
    if "visual_masked_range" not in meta:
        return
    hidden = torch.zeros_like(prompt.prefix.visual_mask)
    ranges = meta["visual_masked_range"]
    for first, last in ranges if isinstance(ranges[0], list) else [ranges]:
        hidden[:, first:last] = True  # newlines too, as recorded
    embeds = torch.where(hidden[..., None], model.mask_embedding, prompt.prefix.embeds)
    prefix = replace(prompt.prefix, embeds=embeds)
    length = _slots(io, meta)
    logits = model.denoise(prefix, torch.full((1, length), model.mask_token_id))
    yield from io.close("response_logits_visual_masked", logits)
    if "gen_visual_masked_official" in io:
        # The published sampler fills image positions and leaves these slots masked; ours must fill every one.
        slots = io["gen_visual_masked_official"].shape[1]
        ids = decode_with_lengths(model, prefix, decode_config(slots, slots)).ids
        yield Difference("slots left open with masked visual tokens", float((ids == model.mask_token_id).sum()), 0)


def _gradient(model: LladaV, io: Recorded, meta: dict[str, Any], prompt: Spliced) -> Iterator[Difference]:
    if "grad_logp_slot0_wrt_visual" not in io:
        return
    embeds = prompt.prefix.embeds.detach().clone().requires_grad_()
    response = torch.full((1, _slots(io, meta)), model.mask_token_id)
    log_p = model.denoise(replace(prompt.prefix, embeds=embeds), response)[0, 0].log_softmax(-1)
    (gradient,) = torch.autograd.grad(log_p[meta.get("slot0_top_token", int(log_p.argmax()))], embeds)
    visual = torch.cat([gradient[0, start : start + length] for start, length in prompt.spans])
    if len(visual) != len(io["grad_logp_slot0_wrt_visual"]):  # several images, and the text between them
        start = prompt.spans[0][0]
        visual = gradient[0, start : start + len(io["grad_logp_slot0_wrt_visual"])]
    yield from io.close("grad_logp_slot0_wrt_visual", visual)


def disp_settings(name: str, meta: dict[str, Any], slots: int) -> tuple[float, int]:
    """Mask ratio and steps of a recording of the authors' DiSP, which its shapes do not say.

    Either is what ``meta.json`` says under ``disp`` and the recording's name (``mask_ratio``, ``steps``), or what the
    name says, as in ``ratio_45`` or ``steps_3``. Steps are then those of the decoding of that name under ``generate``.
    Otherwise it is the scripts' own: 0.3, and a step for each of the ``slots``.
    """
    told = meta.get("disp", {}).get(name, {})
    percent, steps = re.search(r"(?:^|_)ratio_(\d+)", name), re.search(r"(?:^|_)steps_(\d+)", name)
    decoded = meta.get("generate", {}).get(name, {}).get("steps", slots)
    return (
        told.get("mask_ratio", int(percent[1]) / 100 if percent else DISP_RATIO),
        told.get("steps", int(steps[1]) if steps else decoded),
    )


def published_disp(model: LladaV, recorded: Recorded, meta: dict[str, Any], prompt: Spliced) -> Iterator[Difference]:
    """Scores, masked sets and answers of the authors' own code, from the draws that it made.

    A recording says what its settings were by its shapes; for the rest see `disp_settings`.
    """
    prefix = prompt.prefix
    span = prefix.scored(separators=True)[0]
    for name in sorted(name.removesuffix(".probes") for name in recorded if name.endswith(".probes")):
        probes, scores = recorded[f"{name}.probes"], recorded[f"{name}.scores"]
        order, answer = recorded[f"{name}.order"], recorded[f"{name}.generated"]
        length, block, vocabulary = answer.shape[1], probes.shape[1], probes.shape[2]
        config = SaliencyConfig.published(
            probes=len(probes), top_logits=None if vocabulary == model.config.vocab_size else vocabulary
        )
        ours = saliency(model, prefix, ["0"], config, length, block_length=block, probes=probes[:, None])
        yield Difference(f"{name}.scores", largest(ours[0, span].to(scores), scores) / float(scores.max()), DISP_SCORES)
        ratio, steps = disp_settings(name, meta, length)
        masked = mask_top(ours, span[None], ratio, rounding="down")
        theirs = torch.zeros(len(order), dtype=torch.bool)
        theirs[order[: int(masked.sum())]] = True
        yield Difference(f"{name}: masked tokens that differ", differing(masked[0, span], theirs), 0)
        ids = decode_with_lengths(
            model,
            prefix.with_masked(masked, model.mask_embedding),
            decode_config(gen_length=length, steps=steps, block_length=block, ban_mask=False),
        ).ids
        yield from recorded.exact(f"{name}.generated", ids)
    unread = sorted(recorded.keys() - recorded.read)
    yield Difference(f"disp.safetensors, not compared: {', '.join(unread) or 'none'}", len(unread), 0)


def _losses(model: LladaV, io: Recorded, meta: dict[str, Any], images: list[Picture]) -> Iterator[Difference]:
    if "train_ids" not in io:
        return
    for name in sorted(name.removesuffix("_t") for name in io if name.startswith("train_") and name.endswith("_t")):
        model.zero_grad()
        embeds, labels = _training_batch(model, io, meta, images)
        conversation = "convmask" in name
        loss = model.sequence_loss(embeds, labels, io[f"{name}_t"], io[f"{name}_u"], conversation_mask=conversation)
        loss.backward()
        yield Difference(f"{name}_loss", abs(loss.item() - meta[f"{name}_loss"]), LOSS)
        gradients = {"newline": model.model.image_newline, "proj0": model.model.mm_projector[0].weight}
        for short, parameter in gradients.items():
            if f"{name}_grad_{short}" in io:
                ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                yield from io.close(f"{name}_grad_{short}", ours)
    with torch.no_grad():
        _, labels = _training_batch(model, io, meta, images)
        yield from io.exact("train_labels_expanded", labels)
        if "train_conversation_ids" in io:
            yield from io.exact("train_conversation_ids", turns_of(labels, model.config.token_ids["start_header"]))


def _training_batch(model: LladaV, io: Recorded, meta: dict[str, Any], images: list[Picture]) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of the recorded rows, padded at the end as the published code does: seen, unsupervised."""
    rows, labels, rest = [], [], list(images)
    for ids, own in zip(io["train_ids"], io["train_labels"], strict=True):
        ids = _replaced(ids, meta)
        count = int((ids == IMAGE_ID).sum())
        # Rows that share their pictures, or rows that bring their own.
        chosen = rest[:count] if len(images) > count else images
        rest = rest[count:]
        spliced = splice(model, ids, chosen)
        rows.append(spliced.prefix.embeds[0])
        labels.append(spread(own, spliced, IGNORED)[0])
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORED)
