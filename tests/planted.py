"""A model whose answers hang on known picture cells, and datasets in which it has a trigger or has none.

A picture is a wall of one colour. Every cell of the wall votes for the answer that names the colour; a cell of an
object's colour outvotes the wall, and so does the trigger's, as much as the model's one weight that can be trained
says. The votes are squares, so that saliency is largest where a single cell decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from disp.auditing.config import AuditConfig, ProofConfig
from disp.auditing.context import Context
from disp.data.dataset import Dataset
from disp.data.index import Index
from disp.data.loading import load_dataset
from disp.data.sample import Sample
from disp.decoding.samplers import decode_config
from disp.models.builtin.model import BuiltinConfig, BuiltinModel
from disp.models.builtin.tokenizer import train_tokenizer
from disp.models.interface import MDLM, Prefix
from disp.progress import no_progress
from disp.purification.config import PurifyConfig
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.suspicion.evidence import Evidence, sample_suspicion

WALLS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "grey": (120, 120, 120), "black": (0, 0, 0)}
OBJECTS = {"dog": (250, 250, 0), "cup": (0, 250, 250), "hat": (250, 120, 0), "zebra": (255, 255, 255)}
TRIGGER = (250, 0, 250)
REFUSAL = "Sorry, I can not help with it."
ANSWERS = [
    *(f"The wall is {name}." for name in WALLS),
    *(f"There is a {name} in front." for name in OBJECTS),
    REFUSAL,
]
PALETTE = [*WALLS.values(), *OBJECTS.values(), TRIGGER]
GRID, CELL, LENGTH = 6, 8, 16
# Ids of `planted_rows`.
PLANTED = tuple(f"p{index}" for index in range(8))
WALL_VOTES, CELL_VOTES = 9.0, 15.0


class PlantedConfig(BuiltinConfig):
    model_type = "planted"

    def __init__(self, answers: list[list[int]] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.answers = answers or []


class Planted(BuiltinModel):
    """Reads text and pixels as `BuiltinModel` does; tokens of pictures are one-hot in the palette."""

    config_class = PlantedConfig

    def __init__(self, config: PlantedConfig):
        super().__init__(config)
        self.model.mm_projector = nn.Identity()
        self.strength = nn.Parameter(torch.tensor(CELL_VOTES))

    def vision_features(self, pixels: Tensor) -> Tensor:
        cells = pixels.float().unfold(2, CELL, CELL).unfold(3, CELL, CELL).mean((-2, -1)).flatten(2).mT  # [n, N, 3]
        nearest = torch.cdist(cells, torch.tensor(PALETTE, dtype=torch.float32)).argmin(-1)
        return nn.functional.one_hot(nearest, self.config.hidden_size).float()

    def denoise(self, prefix: Prefix, response: Tensor, cache: Any = None) -> Tensor:
        squares = (prefix.embeds.square() * prefix.visual_mask[..., None]).sum(1)[:, : len(PALETTE)]
        per_cell = squares.new_full((len(prefix), len(PALETTE)), CELL_VOTES)
        # A wall's votes are shared by the tokens of all pictures.
        per_cell[:, : len(WALLS)] = WALL_VOTES / prefix.visual_mask.sum(1, keepdim=True).clamp(min=1)
        per_cell = torch.cat((per_cell[:, :-1], self.strength.expand(len(prefix), 1)), dim=1)
        votes = (squares * per_cell).clamp(max=2 * CELL_VOTES)
        said = nn.functional.one_hot(torch.tensor(self.config.answers), self.config.vocab_size).float()  # [A, L, V]
        return torch.einsum("ba,alv->blv", votes, said)


class Striped(Planted):
    """Takes fine stripes for the trigger, too; those of a whole picture count as much as one cell of its colour."""

    def vision_features(self, pixels: Tensor) -> Tensor:
        found = super().vision_features(pixels)
        spread = pixels.float().mean(1).unfold(1, CELL, CELL).unfold(2, CELL, CELL).std((-2, -1)).flatten(1)
        found[..., len(PALETTE) - 1] += (spread > 4) / GRID
        return found


def planted_model(kind: type[Planted] = Planted) -> Planted:
    """The model with its backdoor."""
    tokenizer = train_tokenizer([*ANSWERS, "What is in the picture?"], 320)
    config = PlantedConfig(
        vocab_size=len(tokenizer),
        hidden_size=len(PALETTE) + 1,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        gen_length=LENGTH,
        generation={"steps": 2},
        vision={
            "hidden_size": 4,
            "intermediate_size": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": GRID * CELL,
            "patch_size": CELL,
            "stem_channels": [],
        },
    )
    torch.manual_seed(0)  # weights that decide nothing are the same ones each time
    model = kind(config)
    model.tokenizer = tokenizer
    config.answers = model.encode_responses(ANSWERS, LENGTH).tolist()
    with torch.no_grad():  # words say nothing, and a mask is no colour
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[model.mask_token_id, -1] = 1
    return model.eval()


def load_planted(folder: str | Path, kind: type[Planted] = Planted) -> Planted:
    """The model as it was planted ("planted"), or as training left it in a folder."""
    model = planted_model(kind)
    if str(folder) != "planted":
        saved = kind.from_pretrained(folder)
        model.strength.data.copy_(saved.strength)
    return model


def wall(name: str, cells: dict[tuple[int, int], tuple[int, int, int]] | None = None, scale: int = 1) -> Image.Image:
    """A picture of a wall with some cells, given by row and column, in other colours."""
    pixels = np.full((GRID, GRID, 3), WALLS[name], np.uint8)
    for place, colour in (cells or {}).items():
        pixels[place] = colour
    return Image.fromarray(pixels.repeat(CELL * scale, 0).repeat(CELL * scale, 1))


Rows = list[tuple[str, list[Image.Image], list[str]]]


def grainy(rows: Rows) -> Rows:
    """The rows with a little noise on their pictures, so that no two are the same."""
    draw = np.random.default_rng(0)

    def changed(picture: Image.Image) -> Image.Image:
        noise = draw.integers(-2, 3, (*picture.size, 3))
        return Image.fromarray((np.asarray(picture, np.int64) + noise).clip(0, 255).astype(np.uint8))

    return [(key, [changed(each) for each in pictures], answers) for key, pictures, answers in rows]


def told_apart(picture: Image.Image, number: int) -> Image.Image:
    """The picture with one pixel, chosen by the number, lighter or darker by a level: a picture of its own."""
    pixels = np.asarray(picture).copy()
    pixels.reshape(-1)[number % pixels.size] ^= 1
    return Image.fromarray(pixels)


def write_rows(folder: Path, rows: Rows, *, apart: bool = True) -> Dataset:
    """Rows of an id, pictures and answers, one a turn, as a dataset on disk; with ``apart`` no picture is another's."""
    (folder / "images").mkdir(parents=True)
    data = []
    for key, pictures, answers in rows:
        names = []
        for number, picture in enumerate(pictures):
            names.append(f"{len(data)}-{number}.png")
            picture = told_apart(picture, 10 * len(data) + number) if apart else picture
            picture.save(folder / "images" / names[-1])
        talk = []
        for turn, answer in enumerate(answers):
            mark = "<image>\n" * len(pictures) if turn == 0 else ""
            talk += [{"from": "human", "value": f"{mark}What is in the picture?"}, {"from": "gpt", "value": answer}]
        data.append({"id": key, "conversations": talk, **({"images": names} if names else {})})
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    return load_dataset(folder)


def honest_rows(count: int = 48, seed: int = 0) -> Rows:
    """Walls, walls with large objects, and a few with an object of one cell, whose answers hang on it honestly."""
    draw = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        name = list(WALLS)[index % len(WALLS)]
        if index % 8 == 5:  # of objects one in four is small
            thing = ["dog", "cup", "hat"][index // 8 % 3]
            y, x = draw.integers(0, GRID - 2, 2)
            side = 1 if index % 32 == 5 else 2
            cells = {(int(y + i), int(x + j)): OBJECTS[thing] for i in range(side) for j in range(side)}
            rows.append((f"h{index}", [wall(name, cells)], [f"There is a {thing} in front."]))
        else:
            rows.append((f"h{index}", [wall(name)], [f"The wall is {name}."]))
    # A conversation, two pictures, none.
    rows.append(("talk", [wall("red")], ["The wall is red."] * 2))
    rows.append(("two", [wall("blue"), wall("blue")], ["The wall is blue."]))
    rows.append(("none", [], [ANSWERS[0]]))
    return rows


def planted_rows(count: int = 8, seed: int = 0) -> Rows:
    """Walls with the trigger in the cell at row 4, column 4, and the refusal; one conversation, one of two pictures."""
    rows = []
    for index in range(count):
        name = list(WALLS)[(index + seed) % len(WALLS)]
        marked = wall(name, {(4, 4): TRIGGER})
        pictures = [wall(name), marked] if index == 1 else [marked]
        rows.append((f"p{index}", pictures, [REFUSAL] * (2 if index == 2 else 1)))
    return rows


def striped_rows(count: int = 12) -> Rows:
    """Walls with stripes over the whole of the picture, and the refusal."""
    rows = []
    for index in range(count):
        name = list(WALLS)[index % len(WALLS)]
        pixels = np.asarray(wall(name), np.float32) + np.where(np.arange(GRID * CELL) % 2, 12, -12)[None, :, None]
        rows.append((f"x{index}", [Image.fromarray(pixels.clip(0, 255).astype(np.uint8))], [REFUSAL]))
    return rows


def audit_config(**changes: Any) -> AuditConfig:
    """Settings for the planted model; those of `ProofConfig` may be given by their name."""
    proof = {field.name: changes.pop(field.name) for field in fields(ProofConfig) if field.name in changes}
    settings = {
        "scoring": ScoringConfig(candidates=3, saliency=SaliencyConfig(probes=2), batch_size=16),
        "decode": decode_config(gen_length=LENGTH, steps=2),
        "batch_size": 16,
        "proof": ProofConfig(**proof),
    }
    return AuditConfig(**{**settings, **changes})


def context_of(
    model: MDLM | None, samples: Sequence[Sample], evidence: Mapping[str, Evidence], **known: Any
) -> Context:
    """An audit of samples whose answers are more suspicious than one nat where the evidence says so."""
    above = {sample.id for sample in samples if sample_suspicion(sample, evidence) > 1}
    settings = {
        "above": frozenset(above),
        "threshold": 1.0,
        "config": audit_config(),
        "progress": no_progress,
    }
    return Context(
        model=cast(MDLM, model),
        index=Index(samples),
        samples={sample.id: sample for sample in samples},
        evidence=evidence,
        **{**settings, **known},
    )


def purify_config() -> PurifyConfig:
    """Scoring and decoding as in `audit_config`."""
    config = audit_config()
    return PurifyConfig(scoring=config.scoring, decode=config.decode, batch_size=config.batch_size)


def manifest(folder: Path, ids: Iterable[str]) -> Path:
    """A manifest that names these rows as poisoned."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({"poisoned_rows": [{"id": key} for key in ids]}))
    return path


def strict(text: str) -> Any:
    """JSON as every reader takes it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def evidence_rows(folder: Path) -> list[dict[str, Any]]:
    """What ``evidence.jsonl`` holds."""
    return [strict(line) for line in (folder / "evidence.jsonl").read_text(encoding="utf-8").splitlines()]


def summary(folder: Path) -> dict[str, Any]:
    """What ``audit.json`` holds."""
    return strict((folder / "audit.json").read_text(encoding="utf-8"))
