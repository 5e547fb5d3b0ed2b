"""Pre-train the built-in model from scratch on OpenMoji scenes: ``python -m studies.pretrain --out DIR``.

Two stages. The vision tower first learns to name the drawing under each visual token and the colour of the ground, and
to keep its place, all of which the scene generator knows; learning them from captions alone takes many times longer.
The projector and the transformer then learn to answer, on the frozen tower's features, with visual tokens masked in
half of the batches so that a masked visual token means "unknown" to the model, as it does to the large models that saw
partial images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import torch

from disp.data.scenes import COLOURS
from disp.experiments.precision import load_float32
from disp.models.builtin.model import BuiltinConfig, BuiltinModel
from disp.models.builtin.tokenizer import END_OF_TEXT, END_OF_TURN, MASK, train_tokenizer
from studies.pretraining.language import align_projector, take_words, train_language
from studies.pretraining.scenes import PRETRAINING_SEED, corpus, render_pool
from studies.pretraining.schedule import Log
from studies.pretraining.tower import VISION, extract_features, train_tower

# In one block of 32 slots a long sentence is begun in several places at once, and its parts do not always fit.
GENERATION: dict[str, Any] = {"steps": 32, "block_length": 16, "threshold": 0.97}


def main() -> None:
    """Run both stages and save the model in half precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its log")
    parser.add_argument("--scenes", type=int, default=20_000, help="size of the pool of pre-training scenes")
    parser.add_argument("--tower-steps", type=int, default=1_500)
    parser.add_argument("--tower-batch", type=int, default=64)
    parser.add_argument("--empty-scenes", type=int, default=500, help="scenes without objects besides")
    parser.add_argument("--language-steps", type=int, nargs=6, default=(150, 100, 1_100, 850, 1_600, 350))
    parser.add_argument("--language-batch", type=int, default=48)
    parser.add_argument("--device", default="cpu", help="where to train")
    parser.add_argument("--tower", type=Path, help="folder of an earlier run whose stage one is taken over")
    parser.add_argument("--language", type=Path, help="folder of an earlier run whose lessons 1 to 4 are taken over")
    options = parser.parse_args()
    torch.manual_seed(PRETRAINING_SEED)
    log = Log(options.out)

    tokenizer = train_tokenizer(corpus(), 1_200)
    vocabulary = tokenizer.get_vocab()
    config = BuiltinConfig(
        vocab_size=len(tokenizer),
        mask_token_id=vocabulary[MASK],
        end_token_ids=(vocabulary[END_OF_TURN], vocabulary[END_OF_TEXT]),
        vision=VISION,
        generation={**GENERATION, "stop": [[vocabulary[END_OF_TURN]]]},
        initializer_range=0.08,
    )
    model = BuiltinModel(config).to(options.device)
    model.tokenizer = tokenizer
    tokenizer.save_pretrained(options.out)
    log(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, on {options.device}")

    scenes, pixels, labels = render_pool(options.scenes, options.empty_scenes)
    log(f"{len(scenes)} scenes rendered")
    colours = torch.tensor([list(COLOURS).index(scene.colour) for scene in scenes])
    pixels, labels, colours = (tensor.to(options.device) for tensor in (pixels, labels, colours))
    if options.tower or options.language:
        earlier = load_float32(options.tower or options.language)
        model.model.vision_tower.load_state_dict(earlier.model.vision_tower.state_dict())
        log(f"stage one taken over from {(options.tower or options.language).name}")
    else:
        train_tower(model, pixels, labels, colours, options.tower_steps, options.tower_batch, log)
        model.save_pretrained(options.out / "stage-one")
    model.model.vision_tower.requires_grad_(False)
    features = extract_features(model, pixels)
    log("features extracted")
    steps, start = tuple(options.language_steps), 0
    if options.language:
        take_words(model, cast(BuiltinModel, load_float32(options.language)))
        start = sum(steps[:4])
        log(f"lessons 1 to 4 taken over from {options.language.name}")
    else:
        align_projector(model, features, labels, colours, 1000, log)
    train_language(model, scenes, features, labels, steps, options.language_batch, log, start=start)
    model.half().save_pretrained(options.out)
    log("saved")


if __name__ == "__main__":
    main()
