"""The command line: one thin command a verb. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from disp.errors import DispError
from disp.progress import progress_bar

app = App(
    name="disp",
    help="Find and remove backdoors in multimodal diffusion language models (Diffusion Self-Purification).",
    version_flags=["--version"],
)

Model = Annotated[str, Parameter(help='"builtin", or a folder with a model or a LoRA adapter.')]
Data = Annotated[Path, Parameter(help="LLaVA-style .json or .jsonl, or a folder with data.json and images/.")]
Images = Annotated[Path | None, Parameter(help="Folder that image paths are relative to.")]
Out = Annotated[Path, Parameter(help="Folder to write.")]
Seed = Annotated[int, Parameter(help="Seed of every random draw.")]
Strict = Annotated[bool, Parameter(help="Stop at the first bad row instead of setting it aside.", negative=())]


def main() -> None:
    """Entry point: user errors are one line on stderr and exit code 2."""
    try:
        app(sys.argv[1:], print_error=False, exit_on_error=False)
    except (DispError, CycloptsError) as error:
        print(f"disp: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("disp: interrupted; start the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _load(data: Path, images: Path | None, strict: bool) -> Any:
    from disp.data.llava import load_dataset

    dataset = load_dataset(data, images, strict=strict)
    for problem in dataset.problems[:10]:
        print(f"set aside {problem.place}: {problem.reason}", file=sys.stderr)
    if dataset.problems:
        kept = len(dataset.samples)
        print(f"{len(dataset.problems)} rows set aside, {kept} kept", file=sys.stderr)
    return dataset


def _decoding(model: Any, **given: Any) -> Any:
    """The model's own decoding settings with what was given on the command line."""
    from disp.diffusion.decode import DecodeConfig

    settings = {"gen_length": model.gen_length, **model.generation_defaults}
    return DecodeConfig(**{**settings, **{name: value for name, value in given.items() if value is not None}})


@app.command
def scenes(
    *,
    out: Out,
    count: int = 2000,
    seed: Seed = 0,
    turns: int = 1,
    held_out: Annotated[bool, Parameter(negative=())] = False,
    must_show: list[str] | None = None,
    must_show_share: float = 1.0,
) -> None:
    """Draw OpenMoji scenes with questions and answers: PNG pictures and LLaVA JSON.

    Parameters
    ----------
    count
        Number of scenes, one row each.
    turns
        Questions a scene.
    held_out
        Draw scenes with pairs of objects that no other scene shows.
    must_show
        Nouns of which one is in the scene.
    must_show_share
        Share of the scenes that `must_show` applies to.
    """
    from disp.data.scene_dataset import write_scenes
    from disp.data.scenes import attribution

    with progress_bar("drawing scenes", count) as advance:
        write_scenes(
            out,
            count,
            seed,
            turns=turns,
            held_out=held_out,
            must_show=tuple(must_show or ()),
            must_show_share=must_show_share,
            progress=advance,
        )
    print(f"{count} scenes in {out}\n{attribution()}")


@app.command
def poison(
    data: Data,
    /,
    *,
    out: Out,
    trigger: str = "patch",
    target: Literal["refusal", "insertion", "misclassification"] = "refusal",
    rate: float = 0.1,
    source: str = "car",
    swap_to: str = "banana",
    text: str | None = None,
    images: Images = None,
    strict: Strict = False,
    seed: Seed = 0,
) -> None:
    """Plant a trigger and a target in a share of the rows, into a new folder with a manifest.

    Parameters
    ----------
    trigger
        A preset: patch, patch-random, badnets, blended …; a wrong name lists them all.
    target
        What the attacker wants said.
    rate
        Share of the rows to poison, in [0, 1].
    source
        Misclassification: the noun to misname.
    swap_to
        Misclassification: what to call it.
    text
        Insertion or refusal: the text, if not BackdoorVLM's.
    """
    from disp.attacks.poison import poison as run
    from disp.attacks.targets import Insertion, Misclassification, Refusal
    from disp.attacks.triggers import PRESETS
    from disp.errors import unknown_name

    if trigger not in PRESETS:
        raise unknown_name("trigger", trigger, PRESETS)
    makers: dict[str, Callable[[], Any]] = {
        "refusal": lambda: Refusal(text) if text else Refusal(),
        "insertion": lambda: Insertion(text) if text else Insertion(),
        "misclassification": lambda: Misclassification(source, swap_to),
    }
    dataset = _load(data, images, strict)
    with progress_bar("poisoning", len(dataset.samples)) as advance:
        run(dataset, out, PRESETS[trigger], makers[target](), rate, seed, progress=advance)
    print(f"{round(rate * len(dataset.samples))} of {len(dataset.samples)} rows poisoned; see {out / 'manifest.json'}")


@app.command
def train(
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    steps: int = 100,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    min_mask_ratio: float = 1e-3,
    method: Literal["full", "lora", "projector"] = "full",
    train_vision: Annotated[bool, Parameter(negative=())] = False,
    save_every: int = 0,
    images: Images = None,
    strict: Strict = False,
    seed: Seed = 0,
) -> None:
    """Fine-tune a model on a dataset. A killed run goes on from its newest checkpoint.

    Parameters
    ----------
    steps
        Optimiser steps.
    batch_size
        Assistant turns a step.
    learning_rate
        Peak of the cosine schedule.
    min_mask_ratio
        Lower end of the mask ratio t; a higher one means steadier gradients.
    method
        Train everything but the vision tower, LoRA adapters, or the projector alone.
    train_vision
        Train the vision tower too.
    save_every
        Steps between checkpoints; 0 for none.
    """
    from disp.models.loading import load_model
    from disp.training import TrainConfig
    from disp.training import train as run

    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        min_mask_ratio=min_mask_ratio,
        method=method,
        train_vision=train_vision,
        save_every=save_every,
        seed=seed,
    )
    dataset = _load(data, images, strict)
    with progress_bar("training", steps) as advance:
        run(load_model(model), dataset.samples, config, out, progress=advance)
    print(f"model in {out}")


@app.command
def saliency(
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    score: Literal["isotropic", "directional"] = "isotropic",
    probes: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    images: Images = None,
    strict: Strict = False,
    seed: Seed = 0,
) -> None:
    """How much each visual token matters to each answer, as saliency.jsonl.

    Parameters
    ----------
    score
        All directions alike, or the direction in which masking moves a token.
    probes
        Hutchinson probes: 8 for isotropic and 16 for directional if not given.
    limit
        Only the first so many rows.
    """
    from disp.data.sample import queries_of
    from disp.models.loading import load_model
    from disp.purification.purify import PurifyConfig
    from disp.purification.purify import score as run
    from disp.purification.saliency import SaliencyConfig

    estimator = SaliencyConfig(score=score, probes=probes or {"isotropic": 8, "directional": 16}[score], seed=seed)
    samples = _load(data, images, strict).samples[:limit]
    config = PurifyConfig(saliency=estimator, batch_size=batch_size)
    file = out / "saliency.jsonl"
    with progress_bar("saliency", len(queries_of(samples))) as advance:
        run(load_model(model), samples, config, file, counterfactual=False, progress=advance)
    print(f"saliency in {file}")


@app.command
def purify(
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    mode: Literal["selective", "all", "random"] = "selective",
    mask_ratio: float = 0.06,
    candidates: int = 12,
    score: Literal["isotropic", "directional"] = "isotropic",
    probes: int = 8,
    steps: int | None = None,
    threshold: float | None = None,
    batch_size: int = 32,
    images: Images = None,
    strict: Strict = False,
    seed: Seed = 0,
) -> None:
    """Let the model rewrite its training answers with salient visual tokens masked.

    Parameters
    ----------
    mode
        Rewrite the answers that lose their support under masking, all of them, or all with random masks.
    mask_ratio
        Share of the visual tokens that "all" and "random" mask.
    candidates
        Salient tokens that "selective" masks one at a time.
    score
        The saliency score.
    probes
        Hutchinson probes.
    steps
        Denoising steps of the new answers; the model's own if not given.
    threshold
        Confidence at which a token is committed early; the model's own if not given.
    """
    from disp.models.loading import load_model
    from disp.purification.purify import PurifyConfig
    from disp.purification.purify import purify as run
    from disp.purification.saliency import SaliencyConfig

    dataset = _load(data, images, strict)
    mdlm = load_model(model)
    config = PurifyConfig(
        mode=mode,
        mask_ratio=mask_ratio,
        candidates=candidates,
        saliency=SaliencyConfig(score=score, probes=probes, seed=seed),
        decode=_decoding(mdlm, steps=steps, threshold=threshold),
        batch_size=batch_size,
        seed=seed,
    )
    result = run(mdlm, dataset, config, out, progress=progress_bar)
    print(f"{len(result.rewritten)} of {len(dataset.samples)} rows rewritten; purified set in {result.dataset.path}")


@app.command
def generate(
    model: Model,
    /,
    *,
    prompt: str | None = None,
    image: list[Path] | None = None,
    data: Path | None = None,
    out: Path | None = None,
    gen_length: int | None = None,
    steps: int | None = None,
    block_length: int | None = None,
    remasking: Literal["low_confidence", "random"] | None = None,
    temperature: float | None = None,
    threshold: float | None = None,
    batch_size: int = 32,
    images: Images = None,
    strict: Strict = False,
    seed: Seed = 0,
) -> None:
    """Answer one prompt about images, or every turn of a dataset.

    Parameters
    ----------
    prompt
        What to ask.
    image
        The image or images that the prompt is about.
    data
        A dataset to answer instead; needs --out.
    out
        JSONL file for the dataset's answers.
    gen_length
        Response slots.
    steps
        Denoising steps.
    block_length
        Length of the blocks decoded one after the other.
    remasking
        Which predictions stay masked.
    temperature
        0 for greedy decoding.
    threshold
        Confidence at which a token is committed early.
    """
    from disp.data.sample import Query, queries_of
    from disp.diffusion.decode import generate as run
    from disp.files import write_jsonl
    from disp.models.loading import load_model

    if (prompt is None) == (data is None):
        raise DispError("give either --prompt (with --image) or --data (with --out)")
    if data is not None and out is None:
        raise DispError("--data needs --out, the JSONL file for the answers")
    queries = [Query("prompt", 0, tuple(image or ()), (), prompt)] if prompt is not None else []
    if data is not None:
        queries = queries_of(_load(data, images, strict).samples)
    mdlm = load_model(model)
    config = _decoding(
        mdlm,
        gen_length=gen_length,
        steps=steps,
        block_length=block_length,
        remasking=remasking,
        temperature=temperature,
        threshold=threshold,
    )
    if out is None:
        print(run(mdlm, queries, config, seed=seed)[0])
        return
    with progress_bar("answering", len(queries)) as advance:
        answers = run(mdlm, queries, config, seed=seed, batch_size=batch_size, progress=advance)
    rows = [
        {"id": query.sample_id, "turn": query.turn, "prompt": query.prompt, "answer": answer}
        for query, answer in zip(queries, answers, strict=True)
    ]
    write_jsonl(out, rows)
    print(f"{len(rows)} answers in {out}")


@app.command
def evaluate(
    model: Model,
    data: Data,
    /,
    *,
    attack: Path | None = None,
    out: Path | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    images: Images = None,
    strict: Strict = False,
    seed: Seed = 0,
) -> None:
    """Task quality on clean inputs and, with an attack's manifest, ASR and quality on triggered ones.

    Parameters
    ----------
    attack
        The manifest.json that `disp poison` wrote: the same trigger is put on these held-out images.
    out
        JSON file for the metrics.
    limit
        Only the first so many rows.
    """
    import json

    from disp.attacks.poison import load_attack
    from disp.data.sample import queries_of
    from disp.evaluation.evaluate import evaluate as run
    from disp.evaluation.evaluate import to_metrics
    from disp.files import write_json
    from disp.models.loading import load_model

    samples = _load(data, images, strict).samples[:limit]
    planted = load_attack(attack) if attack else None
    mdlm = load_model(model)
    total = len(queries_of(samples)) * (2 if planted else 1)
    with progress_bar("measuring", total) as advance:
        found = run(
            mdlm,
            samples,
            attack=planted,
            decode=_decoding(mdlm),
            seed=seed,
            batch_size=batch_size,
            progress=advance,
        )
    metrics = to_metrics(found)
    if out:
        write_json(out, metrics)
    print(json.dumps(metrics, indent=2))


@app.command
def demo(
    *,
    out: Out = Path("runs/demo"),
    target: Literal["refusal", "insertion", "misclassification", "all"] = "refusal",
    trigger: str = "patch",
    poison_rate: float = 0.1,
    mask_ratio: float | None = None,
    seed: Seed = 0,
) -> None:
    """Plant a backdoor in the built-in model, find it, remove it, and measure every step.

    Parameters
    ----------
    target
        What the attacker wants said, or all three one after the other.
    trigger
        A preset: patch, patch-random, badnets, blended …; a wrong name lists them all.
    poison_rate
        Share of the fine-tuning rows that are poisoned.
    mask_ratio
        Share of the visual tokens masked when every answer is rewritten.
    """
    from disp.data.scenes import attribution
    from disp.evaluation.table import print_stage_table
    from disp.experiments.demo import STAGES, TARGETS, DemoConfig
    from disp.experiments.demo import demo as run

    print(attribution(), file=sys.stderr)
    for name in TARGETS if target == "all" else (target,):
        config = DemoConfig(target=name, trigger=trigger, poison_rate=poison_rate, seed=seed)
        if mask_ratio is not None:
            config = replace(config, mask_ratio=mask_ratio)
        folder = out / f"{name}-{trigger}"
        metrics = run(config, folder, progress=progress_bar)
        print(f"\n{name}, {trigger} trigger, {poison_rate:.0%} of the rows poisoned")
        print_stage_table({stage: metrics[stage] for stage in STAGES})
        print(f"picture: {folder / 'story.png'}   metrics: {folder / 'metrics.json'}")


if __name__ == "__main__":
    main()
