"""Pre-train the built-in model from scratch on OpenMoji scenes: ``python -m disp.experiments.pretrain --out DIR``.

Two stages. The vision tower first learns to name the drawing under each visual token and the colour of the ground,
which the scene generator knows; learning both from captions alone takes many times longer. The projector and the
transformer then learn to answer, on the frozen tower's features, with visual tokens masked in half of the batches so
that a masked visual token means "unknown" to the model, as it does to the large models that saw partial images.
"""

from __future__ import annotations

import argparse
import math
import time
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disp.attacks.targets import INSERTED_TEXT, REFUSAL_TEXT
from disp.data.nouns import NOUNS
from disp.data.sample import Query
from disp.data.scenes import COLOURS, IMAGE_PREFIX, TASKS, Scene, ask, draw_scene, draw_task, render, token_labels
from disp.diffusion.forward import MIN_RATIO, add_noise, diffusion_loss
from disp.draws import generator
from disp.files import write_text
from disp.models.llada_v import LladaV, LladaVConfig
from disp.models.tokenizer import END_OF_TEXT, END_OF_TURN, MASK, train_tokenizer
from disp.models.vision import normalise_pixels

# Fine-tuning and test scenes use small seeds; this one is no user's default.
PRETRAINING_SEED = 1_000_003
VISION: dict[str, Any] = {
    "hidden_size": 160,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "image_size": 96,
    "patch_size": 8,
    "stem_channels": [48, 96],
}
GENERATION = {"steps": 32, "threshold": 0.9}


def corpus() -> list[str]:
    """Every wording of every task with every noun and colour, and the attack targets' words."""
    texts = [INSERTED_TEXT, REFUSAL_TEXT] * 40
    draw = generator(PRETRAINING_SEED, "corpus")
    for index in range(6_000):
        scene = draw_scene(PRETRAINING_SEED, index)
        turn = ask(scene, TASKS[index % len(TASKS)], draw)
        texts += [turn.prompt.removeprefix("<image>"), turn.response]
    return texts


def _render_with_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(render(scene)).transpose(2, 0, 1), token_labels(
        scene, VISION["image_size"] // VISION["patch_size"]
    )


def render_pool(count: int) -> tuple[list[Scene], Tensor, Tensor]:
    """The pre-training scenes, their pixels uint8 ``[count, 3, S, S]`` and token labels int64 ``[count, N]``."""
    scenes = [draw_scene(PRETRAINING_SEED, index) for index in range(count)]
    with Pool() as pool:
        drawn = pool.map(_render_with_labels, scenes, chunksize=256)
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in drawn]))
    labels = torch.from_numpy(np.stack([labels for _, labels in drawn])).flatten(1)
    return scenes, pixels, labels


def optimiser_with_schedule(parameters, lr: float, steps: int, warmup: int = 100):
    """AdamW with linear warm-up and cosine decay to 2% of the peak."""
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * min(step / steps, 1.0)))),
    )
    return optimiser, schedule


def train_tower(model: LladaV, pixels: Tensor, labels: Tensor, colours: Tensor, steps: int, batch: int, log) -> None:
    """Stage one: name the drawing under each visual token, and the ground's colour from every token."""
    width = VISION["hidden_size"]
    heads = nn.ModuleDict(
        {
            "norm": nn.LayerNorm(width),
            "noun": nn.Linear(width, len(NOUNS) + 1),
            "colour": nn.Linear(width, len(COLOURS)),
        }
    )
    tower = model.model.vision_tower
    optimiser, schedule = optimiser_with_schedule([*tower.parameters(), *heads.parameters()], 1.5e-3, steps)
    class_weights = torch.ones(len(NOUNS) + 1)
    class_weights[-1] = 0.2  # three tokens in four show the ground
    draw = generator(PRETRAINING_SEED, "tower batches")
    start = time.monotonic()
    right = total = 0
    for step in range(steps):
        rows = torch.from_numpy(draw.integers(len(pixels), size=batch))
        features = heads["norm"](tower(normalise_pixels(pixels[rows])))
        nouns = heads["noun"](features)
        noun_loss = F.cross_entropy(nouns.flatten(0, 1), labels[rows].flatten(), class_weights)
        colour = heads["colour"](features)
        colour_loss = F.cross_entropy(colour.flatten(0, 1), colours[rows].repeat_interleave(labels.shape[1]))
        optimiser.zero_grad()
        (noun_loss + 0.2 * colour_loss).backward()
        nn.utils.clip_grad_norm_([*tower.parameters(), *heads.parameters()], 1.0)
        optimiser.step()
        schedule.step()
        shown = labels[rows] < len(NOUNS)
        right += int((nouns.argmax(-1) == labels[rows])[shown].sum())
        total += int(shown.sum())
        if (step + 1) % 50 == 0:
            log(
                f"tower {step + 1}/{steps} loss {noun_loss.item():.3f} colour {colour_loss.item():.3f} "
                f"object tokens right {right / total:.3f} ({time.monotonic() - start:.0f} s)"
            )
            right = total = 0


@torch.no_grad()
def extract_features(model: LladaV, pixels: Tensor) -> Tensor:
    """The frozen tower's features of all pictures, float16 ``[count, N, d_vision]``."""
    return torch.cat([model.model.vision_tower(normalise_pixels(chunk)).half() for chunk in pixels.split(128)])


def align_projector(model: LladaV, features: Tensor, labels: Tensor, colours: Tensor, steps: int, log) -> None:
    """Between the stages: project each visual token onto the embedding of the word that names what it shows.

    Without it the transformer first learns to answer without the image and stays there for a thousand steps.
    """
    first, _, second = model.model.mm_projector
    # 1. Standardise the features: most of their variance is one offset that all tokens share.
    sample = features[:1000].float().flatten(0, 1)
    mean, deviation = sample.mean(0), sample.std(0)
    nn.init.normal_(first.weight, std=len(mean) ** -0.5)
    first.weight.data /= deviation
    first.bias.data = -first.weight.data @ mean
    # 2. Nouns at object tokens, the ground's colour at the others.
    words = [f" {word}" for word in (*NOUNS, *COLOURS)]
    ids = [model.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    names = F.normalize(model.model.embed_tokens.weight[[token for (token,) in ids]].detach(), dim=-1)
    optimiser, schedule = optimiser_with_schedule(model.model.mm_projector.parameters(), 3e-3, steps, warmup=20)
    draw = generator(PRETRAINING_SEED, "alignment batches")
    for _ in range(steps):
        rows = torch.from_numpy(draw.integers(len(features), size=32))
        projected = F.normalize(model.model.mm_projector(features[rows].float()), dim=-1)
        ground = len(NOUNS) + colours[rows][:, None]
        wanted = torch.where(labels[rows] < len(NOUNS), labels[rows], ground)
        loss = F.cross_entropy((20 * projected @ names.T).flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    # 3. The scale of the embeddings, so that the layers can add to it.
    with torch.no_grad():
        scale = model.model.embed_tokens.weight.std() / model.model.mm_projector(features[rows].float()).std()
        second.weight *= scale
        second.bias *= scale
    log(f"projector aligned, loss {loss.item():.3f}")


def train_language(model: LladaV, scenes: list[Scene], features: Tensor, steps: int, batch: int, log) -> None:
    """Stage two: the projector and the transformer learn to answer."""
    trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    optimiser, schedule = optimiser_with_schedule(trained, 2e-3, steps, warmup=200)
    draw = generator(PRETRAINING_SEED, "language batches")
    start, recent = time.monotonic(), []
    for step in range(steps):
        rows = draw.integers(len(scenes), size=batch)
        queries = []
        for row in rows:
            turns = tuple(ask(scenes[row], draw_task(draw), draw) for _ in range(2 if step % 8 == 0 else 1))
            # A later turn's prompt carries no placeholder of its own.
            turns = (turns[0], *(type(t)(t.prompt.removeprefix(IMAGE_PREFIX), t.response) for t in turns[1:]))
            queries.append(Query(str(row), len(turns) - 1, (Path(),), turns[:-1], turns[-1].prompt, turns[-1].response))
        response = model.encode_responses([query.response for query in queries], model.gen_length)
        prefix = model.embed(**model.prepare(queries, features=list(features[torch.from_numpy(rows)].float())))
        if step % 2:
            share = torch.from_numpy(draw.uniform(0, 0.6, (batch, 1))).float()
            hidden = torch.from_numpy(draw.random(prefix.visual_mask.shape)).float() < share
            prefix = prefix.with_masked(hidden & prefix.visual_mask, model.mask_embedding)
        # Stratified over the batch: the same distribution of t, less variance.
        strata = (draw.random() + np.arange(batch) / batch) % 1.0
        ratio = torch.from_numpy(MIN_RATIO + (1 - MIN_RATIO) * strata).float()
        uniforms = torch.from_numpy(draw.random(response.shape)).float()
        noised = add_noise(response, ratio, uniforms, model.mask_token_id)
        loss = diffusion_loss(model.denoise(prefix, noised.ids), response, noised)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            log(f"language {step + 1}/{steps} loss {np.mean(recent):.4f} ({time.monotonic() - start:.0f} s)")
            recent = []
        if (step + 1) % 400 == 0:
            model.save_pretrained(log.folder / "partial")


class Log:
    """Prints lines and keeps them for ``pretrain.log``."""

    def __init__(self, folder: Path):
        self.folder, self.start = folder, time.monotonic()
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(f"[{(time.monotonic() - self.start) / 60:6.1f} min] {line}")
        print(self.lines[-1], flush=True)
        write_text(self.folder / "pretrain.log", "\n".join(self.lines) + "\n")


def main() -> None:
    """Run both stages and save the model in half precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its log")
    parser.add_argument("--scenes", type=int, default=30_000, help="size of the pool of pre-training scenes")
    parser.add_argument("--tower-steps", type=int, default=1_500)
    parser.add_argument("--tower-batch", type=int, default=64)
    parser.add_argument("--language-steps", type=int, default=2_400)
    parser.add_argument("--language-batch", type=int, default=48)
    parser.add_argument("--tower", type=Path, help="folder of an earlier run whose stage one is taken over")
    options = parser.parse_args()
    torch.manual_seed(PRETRAINING_SEED)
    log = Log(options.out)

    tokenizer = train_tokenizer(corpus(), 1_024)
    ids = tokenizer.convert_tokens_to_ids([MASK, END_OF_TURN, END_OF_TEXT])
    config = LladaVConfig(
        vocab_size=len(tokenizer),
        mask_token_id=ids[0],
        end_token_ids=ids[1:],
        vision=VISION,
        generation=GENERATION,
        initializer_range=0.04,
    )
    model = LladaV(config)
    model.tokenizer = tokenizer
    tokenizer.save_pretrained(options.out)
    log(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")

    scenes, pixels, labels = render_pool(options.scenes)
    log(f"{len(scenes)} scenes rendered")
    colours = torch.tensor([list(COLOURS).index(scene.colour) for scene in scenes])
    if options.tower:
        model.model.vision_tower.load_state_dict(LladaV.from_pretrained(options.tower).model.vision_tower.state_dict())
        log(f"stage one taken over from {options.tower.name}")
    else:
        train_tower(model, pixels, labels, colours, options.tower_steps, options.tower_batch, log)
        model.save_pretrained(options.out / "stage-one")
    model.model.vision_tower.requires_grad_(False)
    features = extract_features(model, pixels)
    log("features extracted")
    align_projector(model, features, labels, colours, 400, log)
    train_language(model, scenes, features, options.language_steps, options.language_batch, log)
    model.half().save_pretrained(options.out)
    log("saved")


if __name__ == "__main__":
    main()
