"""Stage two of pre-training: the projector and the transformer learn to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disp.data.nouns import NOUNS
from disp.data.sample import Query, Turn
from disp.data.scenes import COLOURS, IMAGE_PREFIX, TASKS, Scene, ask
from disp.diffusion.forward import Noised, add_noise
from disp.draws import generator
from disp.experiments.precision import half_precision
from disp.models.builtin.model import BuiltinModel
from disp.models.builtin.tokenizer import ASSISTANT, END_OF_TURN, USER
from disp.models.interface import Prefix
from studies.pretraining.instructions import instruct
from studies.pretraining.scenes import PRETRAINING_SEED
from studies.pretraining.schedule import Log, cosine_schedule, optimiser_with_schedule

MIN_PRETRAINING_RATIO = 0.25
# Whether something is there, and the order of things, take longest to learn.
PRETRAINING_SHARES = (0.3, 0.15, 0.15, 0.05, 0.1, 0.25)
QUESTIONS = 3
WORDS = 6
NOUN_LIST = list(NOUNS)
PADDING_WEIGHT = 0.05
# Share of instructions among the questions of the lessons that have them, counted from 0.
INSTRUCTIONS = {4: 0.5, 5: 0.3}


def take_words(model: BuiltinModel, earlier: BuiltinModel) -> None:
    """The language model and the projector of an earlier run, whose vocabulary is another.

    Words that both know keep their embeddings; the others begin as the mean of the pieces that they were before.
    """
    old = earlier.state_dict()
    vocabulary = earlier.tokenizer.get_vocab()
    for name, weight in model.state_dict().items():
        if weight.shape == old[name].shape and "embed_tokens" not in name and "lm_head" not in name:
            weight.copy_(old[name])
            continue
        for word, row in model.tokenizer.get_vocab().items():
            if word in vocabulary:
                pieces = [vocabulary[word]]
            else:
                text = model.tokenizer.convert_tokens_to_string([word])
                pieces = earlier.tokenizer(text, add_special_tokens=False)["input_ids"]
            weight[row] = old[name][pieces].mean(0)


def align_projector(
    model: BuiltinModel, features: Tensor, labels: Tensor, colours: Tensor, steps: int, log: Log
) -> None:
    """Between the stages: the projector learns to say what each visual token shows, and where, in the words' own space.

    The target of a token is the embedding of the word that names it (the noun, or the ground's colour), plus one fixed
    direction that says "seen", which tells it from the word in a question, plus two fixed directions times its place.
    Without this start the transformer answers without the image for thousands of steps.
    """
    first, _, _ = model.model.mm_projector
    # 1. Standardise the features: most of their variance is one offset that all tokens share.
    sample = features[:1000].float().flatten(0, 1)
    mean, deviation = sample.mean(0), sample.std(0)
    nn.init.normal_(first.weight, std=len(mean) ** -0.5)
    first.weight.data /= deviation
    first.bias.data = -first.weight.data @ mean
    # 2. The targets.
    embeddings = model.model.embed_tokens.weight.detach()
    vocabulary = model.tokenizer.get_vocab()
    words = embeddings[[vocabulary[f"Ġ{word}"] for word in (*NOUNS, *COLOURS)]]
    device = features.device
    grid = model.model.vision_tower.grid
    place = torch.linspace(-1, 1, grid, device=device)
    seen, across, down = torch.randn(3, embeddings.shape[1]).to(device) * embeddings.std()
    where = seen + (place[None, :, None] * across + place[:, None, None] * down).flatten(0, 1)  # [N, d]
    optimiser, schedule = optimiser_with_schedule(model.model.mm_projector.parameters(), 3e-3, steps, warmup=20)
    draw = generator(PRETRAINING_SEED, "alignment batches")
    for _ in range(steps):
        rows = torch.from_numpy(draw.integers(len(features), size=64)).to(device)
        ground = len(NOUNS) + colours[rows][:, None]
        wanted = words[torch.where(labels[rows] < len(NOUNS), labels[rows], ground)] + where
        projected = model.model.mm_projector(features[rows].float())
        # Three tokens in four show the ground.
        weights = torch.where(labels[rows] < len(NOUNS), 1.0, 0.3)[..., None]
        loss = (weights * (projected - wanted).square()).mean() / embeddings.var()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    log(f"projector aligned, unexplained variance {loss.item():.3f}")


def drop_ground(prefix: Prefix, shows_object: Tensor, share: float) -> Prefix:
    """The prefix without the given share of the visual tokens that show the ground, packed to the right.

    Args:
        prefix: B rows.
        shows_object: bool ``[B, N]``.
        share: share of ground tokens to drop.
    """
    is_object = torch.zeros_like(prefix.visual_mask)
    is_object[prefix.visual_mask] = shows_object.flatten()
    stays = ~prefix.visual_mask | is_object | (torch.rand(is_object.shape).to(is_object.device) >= share)
    stays &= prefix.attention_mask
    order = stays.int().argsort(dim=-1, stable=True)[:, -int(stays.sum(-1).max()) :]
    return Prefix(
        prefix.embeds.gather(1, order[..., None].expand(-1, -1, prefix.embeds.shape[-1])),
        stays.gather(1, order),
        prefix.visual_mask.gather(1, order),
        prefix.locations.gather(1, order[..., None].expand(-1, -1, 4)),
    )


def draw_turn(scene: Scene, instructions: float, draw: np.random.Generator) -> Turn:
    """A question about a scene, with its answer; an instruction with the given probability."""
    if not scene.objects or draw.random() < instructions:
        return instruct(scene, draw)
    return ask(scene, str(draw.choice(TASKS, p=PRETRAINING_SHARES)), draw)


def ask_once(rows: np.ndarray, turns: Sequence[Turn]) -> list[Query]:
    """One question about each scene, with its answer."""
    queries = []
    for row, turn in zip(rows, turns, strict=True):
        queries.append(
            Query(sample_id=str(row), turn=0, images=(Path(),), history=(), prompt=turn.prompt, response=turn.response)
        )
    return queries


def conversations(
    model: BuiltinModel,
    scenes: Sequence[Scene],
    rows: np.ndarray,
    questions: int,
    instructions: float,
    draw: np.random.Generator,
) -> tuple[list[Query], Tensor, Tensor]:
    """Several questions about each scene, whose answers are all learnt in one pass.

    Encoding the picture is most of a step's cost, so this is several times cheaper than a row for each question.

    Returns:
        The first question of each conversation; everything after it, int64 ``[B, L]``: answers and further
        questions; and which of these tokens are answers, bool ``[B, L]``. A few end-of-text tokens after each
        answer, as many as chance will have, hide how long it is.
    """
    end_of_turn, padding = model.end_token_ids
    queries, texts, answers = [], [], []
    for row in rows:
        ids: list[int] = []
        is_answer: list[bool] = []
        for number in range(questions):
            turn = draw_turn(scenes[row], instructions, draw)
            if number == 0:
                queries.append(
                    Query(
                        sample_id=str(row),
                        turn=0,
                        images=(Path(),),
                        history=(),
                        prompt=turn.prompt,
                        response=turn.response,
                    )
                )
            else:
                text = f"{USER}{turn.prompt.removeprefix(IMAGE_PREFIX)}{END_OF_TURN}{ASSISTANT}"
                question = model.tokenizer(text, add_special_tokens=False)["input_ids"]
                ids += question
                is_answer += [False] * len(question)
            answer = model.tokenizer(turn.response, add_special_tokens=False)["input_ids"]
            answer += [end_of_turn] + [padding] * int(draw.integers(6))
            ids += answer
            is_answer += [True] * len(answer)
        texts.append(ids)
        answers.append(is_answer)
    length = max(len(ids) for ids in texts)
    response = torch.tensor([ids + [padding] * (length - len(ids)) for ids in texts])
    return queries, response, torch.tensor([flags + [False] * (length - len(flags)) for flags in answers])


def word_list(
    model: BuiltinModel, scenes: Sequence[Scene], rows: np.ndarray, draw: np.random.Generator
) -> tuple[list[Query], Tensor, Tensor]:
    """A picture and a list of words, each followed by an open slot: which of them does it show?

    To match a word with what is seen takes two steps of attention, and the one bit of a yes-or-no question does not
    teach them in any time we have. Here each word says by itself whether it is seen, and the slot after it repeats
    that, so that the steps are learnt one after the other, from a dozen bits a picture.

    Returns:
        Queries without a question; int64 ``[B, 2 * WORDS]``, word and mask id in turn; and what to predict there.
    """
    vocabulary = model.tokenizer.get_vocab()
    yes, no = vocabulary["Yes"], vocabulary["No"]
    queries = [Query(str(row), 0, (Path(),), (), IMAGE_PREFIX) for row in rows]
    shown, wanted = [], []
    for row in rows:
        seen = scenes[row].nouns
        absent = [str(noun) for noun in draw.choice(NOUN_LIST, size=2 * WORDS, replace=False) if noun not in seen]
        words = draw.permutation([*seen, *absent[: WORDS - len(seen)]])
        shown.append([token for word in words for token in (vocabulary[f"Ġ{word}"], model.mask_token_id)])
        wanted.append([token for word in words for token in [yes if word in seen else no] * 2])
    return queries, torch.tensor(shown), torch.tensor(wanted)


def balanced_loss(logits: Tensor, response: Tensor, noised: Noised, is_answer: Tensor, padding: int) -> Tensor:
    """The 1/t-weighted cross-entropy per word of the answer, with padding worth little.

    Averaged over all slots, as in fine-tuning, a "yes" among 31 slots of padding weighs a fifteenth of a caption, and
    whether something is there is never learnt.
    """
    losses = F.cross_entropy(logits.transpose(1, 2), response, reduction="none") * noised.masked / noised.ratio[:, None]
    weights = is_answer * torch.where(response == padding, PADDING_WEIGHT, 1.0)
    return (losses * weights / weights.sum(-1, keepdim=True)).sum(-1).mean()


def train_language(
    model: BuiltinModel,
    scenes: list[Scene],
    features: Tensor,
    labels: Tensor,
    steps: tuple[int, int, int, int, int, int],
    batch: int,
    log: Log,
    *,
    start: int = 0,
) -> None:
    """Stage two: the projector and the transformer learn to answer.

    Six lessons, each much shorter for the one before it: which words are seen; to name a single object; all tasks, with
    most of the ground left out; all tasks on whole pictures, half of them with visual tokens masked; the same with
    instructions, a quarter of the steps of these alone; the same with fewer instructions. Every other step of the last
    four is of conversations.

    Args:
        model: the model, with an aligned projector.
        scenes: the pre-training scenes.
        features: the tower's features, ``[scenes, N, d_vision]``.
        labels: int64 ``[scenes, N]``.
        steps: how long each lesson is.
        batch: rows a step.
        log: where progress goes.
        start: the first step, where an earlier run has done those before it.
    """
    named = [(name, p) for name, p in model.named_parameters() if "vision_tower" not in name]
    trained = [p for _, p in named]
    if start == 0:
        # Words are read with the embeddings that they are written with, at first, and attention starts as similarity.
        model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
        for layer in model.model.layers[:2]:
            layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
    # Muon (matrices of the layers) learns this in about half of AdamW's steps.
    matrices = [p for name, p in named if "layers." in name and p.dim() == 2]
    words = [p for name, p in named if "embed_tokens" in name or "lm_head" in name]
    projector = list(model.model.mm_projector.parameters())
    chosen_already = {id(p) for p in (*matrices, *words, *projector)}
    optimisers = [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": [p for p in trained if id(p) not in chosen_already], "lr": 2e-3},
                {"params": words, "lr": 5e-4},
                # Until a lesson asks where things are, noise in its gradients would wipe the place out again.
                {"params": projector, "lr": 5e-5},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        ),
    ]
    schedules = [cosine_schedule(optimiser, sum(steps), warmup=20, start=start) for optimiser in optimisers]
    draw = generator(PRETRAINING_SEED, "language batches")
    single = np.array([index for index, scene in enumerate(scenes) if len(scene.objects) == 1])
    several = np.array([index for index, scene in enumerate(scenes) if len(scene.objects) > 1])
    nothing = np.array([index for index, scene in enumerate(scenes) if not scene.objects])
    recent: list[float] = []
    device = features.device
    for step in range(start, sum(steps)):
        lesson = int(np.searchsorted(np.cumsum(steps), step, side="right"))
        listing = lesson == 0 or (lesson == 2 and step % 6 == 0)
        # 1. What is asked. Scenes of several objects have more to learn in them.
        if lesson == 1:
            rows = draw.choice(single, size=batch)
        else:
            rows = np.concatenate((draw.choice(several, size=batch - batch // 5), draw.choice(single, size=batch // 5)))
        if lesson >= 4:
            rows[: batch // 16] = draw.choice(nothing, size=batch // 16)
        instructions = 1.0 if lesson == 4 and step % 4 == 0 else INSTRUCTIONS.get(lesson, 0.0)
        if listing:
            queries, seen, response = word_list(model, scenes, rows, draw)
            is_answer = torch.ones_like(response, dtype=torch.bool)
        elif lesson > 1 and step % 2:
            queries, response, is_answer = conversations(model, scenes, rows, QUESTIONS, instructions, draw)
        else:
            turns = [
                draw_turn(scenes[row], instructions, draw) if lesson > 1 else ask(scenes[row], "caption", draw)
                for row in rows
            ]
            queries = ask_once(rows, turns)
            response = model.encode_responses([query.response for query in queries], model.gen_length)
            is_answer = torch.ones_like(response, dtype=torch.bool)
        response, is_answer = response.to(device), is_answer.to(device)
        # 2. What is shown.
        chosen = torch.from_numpy(rows).to(device)
        inputs = model.prepare(queries, features=list(features[chosen].float()))
        prefix = model.embed(**{name: tensor.to(device) for name, tensor in inputs.items()})
        if lesson < 3 or instructions == 1.0:
            dropped = float(draw.uniform(0.8, 0.98)) if lesson == 2 else 0.98
            prefix = drop_ground(prefix, labels[chosen] < len(NOUNS), dropped)
        elif step % 4 < 2:
            share = torch.from_numpy(draw.uniform(0, 0.6, (batch, 1))).float()
            hidden = (torch.from_numpy(draw.random(prefix.visual_mask.shape)).float() < share).to(device)
            prefix = prefix.with_masked(hidden & prefix.visual_mask, model.mask_embedding)
        # 3. Noise. Stratified over the batch, and kept away from 0: rows with few masked tokens and large weights
        # drown what is to be learnt first, to read the image when nothing of the answer is known. A quarter sees
        # nothing of it.
        strata = (draw.random() + np.arange(batch) / batch) % 1.0
        ratio = torch.from_numpy(np.minimum(1.0, MIN_PRETRAINING_RATIO + strata)).float().to(device)
        if lesson < 2 or listing:
            ratio = torch.ones_like(ratio)
        uniforms = torch.from_numpy(draw.random(response.shape)).float().to(device)
        uniforms = uniforms.masked_fill(~is_answer, torch.inf)
        noised = add_noise(response, ratio, uniforms, model.mask_token_id)
        if listing:
            noised = replace(noised, ids=seen.to(device))
        with half_precision():
            logits = model.denoise(prefix, noised.ids)
        loss = balanced_loss(logits.float(), response, noised, is_answer, model.end_token_ids[1])
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            log(f"language {step + 1}/{sum(steps)} lesson {lesson + 1} loss {np.mean(recent):.4f}")
            recent = []
        if (step + 1) % 250 == 0:
            model.save_pretrained(log.folder / "partial")
