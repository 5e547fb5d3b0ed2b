"""Diffusion Self-Purification of a fine-tuning set: saliency, masking, regeneration (arXiv 2602.22246).

The compromised model rewrites its own training answers while the visual tokens that matter most to them are masked.
Three modes: "all" rewrites every answer, as the paper does; "selective" only the answers that do not survive the
masking of a few salient tokens; "random" masks at random and exists to show that it does not help.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from disp.data.llava import Dataset, identity, save_dataset
from disp.data.sample import Query, Sample, Turn, batches, queries_of
from disp.diffusion.decode import DecodeConfig, answers_of, own_settings
from disp.errors import DispError
from disp.files import append_jsonl, claim, read_finished_jsonl, write_json, write_jsonl
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM, Prefix
from disp.progress import ProgressBar, no_progress
from disp.purification.candidates import candidate_sets
from disp.purification.masking import mask_random, mask_top
from disp.purification.pattern import Pattern, without_patterns
from disp.purification.saliency import SaliencyConfig, saliency
from disp.purification.support import counterfactual_scores, narrowed, suspicion_of
from disp.purification.threshold import LEAST_SUSPICION, suspicion_threshold

# More of them find no more planted answers.
SCORING_PROBES = 4


@dataclass(frozen=True)
class PurifyConfig:
    """How a dataset is purified.

    Attributes:
        mode: which answers are rewritten: "all", "selective" or "random" (all, with random masks).
        mask_ratio: share of the visual tokens that "all" and "random" mask, and largest slice that "selective" tries.
        candidates: salient tokens that "selective" masks one at a time; see `candidate_sets`.
        least_suspicion: nats below which "selective" rewrites nothing: another answer must win clearly.
        saliency: the saliency estimator. The candidates reach far down the ranking, which need not be as exact as
            where the ranking alone decides.
        decode: how answers are regenerated; the model's own settings if None.
        batch_size: assistant turns a pass.
        seed: seed of random masks and decoding.
    """

    mode: Literal["all", "selective", "random"] = "selective"
    mask_ratio: float = 0.06
    candidates: int = 4
    least_suspicion: float = LEAST_SUSPICION
    saliency: SaliencyConfig = field(default_factory=lambda: SaliencyConfig(probes=SCORING_PROBES))
    decode: DecodeConfig | None = None
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("all", "selective", "random"):
            raise DispError(f"mode must be 'all', 'selective' or 'random', got {self.mode!r}")
        if not 0 <= self.mask_ratio <= 1:
            raise DispError(f"mask_ratio must be in [0, 1], got {self.mask_ratio}")
        for name in ("candidates", "batch_size"):
            if getattr(self, name) < 1:
                raise DispError(f"{name} must be at least 1, got {getattr(self, name)}")


# Image, tile, row and column of each visual token.
Locations = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Evidence:
    """What was found about one assistant turn.

    Attributes:
        key: the query's key.
        saliency: one score a visual token, in the order of the tokens.
        locations: image, tile, row and column of each visual token.
        suspicion: in nats, see `disp.purification.support.suspicion_of`; None where it was not measured.
        best_candidate: the visual tokens of that candidate.
    """

    key: str
    saliency: Sequence[float]
    locations: Locations
    suspicion: float | None = None
    best_candidate: tuple[int, ...] = ()


@dataclass(frozen=True)
class Purified:
    """The result of a purification.

    Attributes:
        dataset: the purified set.
        rewritten: ids of the samples whose answers were regenerated.
        left_out: ids of those of them that are not in the purified set.
        threshold: the suspicion above which a sample was rewritten, in "selective" mode.
        evidence: one a turn, by key.
    """

    dataset: Dataset
    rewritten: tuple[str, ...]
    left_out: tuple[str, ...]
    threshold: float | None
    evidence: Mapping[str, Evidence]


def score(
    model: MDLM,
    samples: Sequence[Sample],
    config: PurifyConfig,
    file: Path | None = None,
    *,
    counterfactual: bool = True,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Evidence]:
    """Saliency of every visual token for every assistant turn, and how suspicious the given answer is.

    Args:
        model: the compromised model.
        samples: its fine-tuning set.
        config: see `PurifyConfig`.
        file: a JSONL file that results are appended to; turns that it already holds are not computed again.
        counterfactual: whether to measure suspicion too, at one forward pass a candidate.
        progress: called with the number of turns finished.
    """
    found: dict[str, Evidence] = {}
    # Pictures of one size have their tokens at the same places, which are kept once: they take most of the memory.
    layouts: dict[Locations, Locations] = {}

    def add(
        key: str, saliency: list[float], locations: list[list[int]], suspicion: float | None, best: list[int]
    ) -> Evidence:
        places = tuple((image, tile, line, column) for image, tile, line, column in locations)
        places = layouts.setdefault(places, places)
        found[key] = Evidence(key, array("d", saliency), places, suspicion, tuple(best))
        return found[key]

    for row in read_finished_jsonl(file) if file else ():
        add(row["key"], row["saliency"], row["locations"], row["suspicion"], row["best_candidate"])
    queries = [query for query in queries_of(samples) if query.key not in found]
    progress(len(found))
    for batch in batches(queries, config.batch_size):
        prefix = model.encode(batch)
        keys = [query.key for query in batch]
        scores = saliency(model, prefix, keys, config.saliency)
        suspicion, chosen = _suspicion(model, prefix, batch, scores, config) if counterfactual else (None, None)
        rows = []
        for index, key in enumerate(keys):
            visual = prefix.visual_mask[index]
            each = add(
                key,
                [float(f"{value:.5g}") for value in scores[index, visual].tolist()],
                prefix.locations[index, visual].tolist(),
                None if suspicion is None else float(suspicion[index]),
                [] if chosen is None else chosen[index, visual].nonzero()[:, 0].tolist(),
            )
            rows.append({**asdict(each), "saliency": list(each.saliency)})
        if file:
            append_jsonl(file, rows)
        progress(len(batch))
    return found


def _suspicion(
    model: MDLM, prefix: Prefix, batch: Sequence[Query], scores: Tensor, config: PurifyConfig
) -> tuple[Tensor, Tensor]:
    """Suspicion ``[B]`` of the given answers and the candidate that attains it, bool ``[B, P]``."""
    response = model.encode_responses([query.response for query in batch], model.gen_length, cut=True).to(
        prefix.embeds.device
    )
    candidates = candidate_sets(scores, prefix.visual_mask, config.candidates, config.mask_ratio)
    base, each = counterfactual_scores(model, prefix, response, candidates, batch_size=config.batch_size)
    suspicion = suspicion_of(base, each)
    if not suspicion.isfinite().all():
        key = batch[int((~suspicion.isfinite()).nonzero()[0, 0])].key
        raise DispError(f"the model's logits for {key} are not finite; load it in another precision (--dtype)")
    # The smallest set that does nearly all of it: it takes least of the picture along when the answer is rewritten.
    least = base + 0.8 * (each.amax(-1) - base)
    best = candidates[torch.arange(len(batch)), (each >= least[:, None]).int().argmax(-1)]
    rows = (suspicion > config.least_suspicion).nonzero()[:, 0]
    if len(rows):
        best[rows] = narrowed(
            model, prefix.select(rows), response[rows], best[rows], least[rows], batch_size=config.batch_size
        )
    return suspicion, best


def _responses(model: MDLM, batch: Sequence[Query], prefix: Prefix) -> Tensor:
    """The given answers, as much of each as there are slots for, int64 ``[B, L]``."""
    texts = [query.response for query in batch]
    return model.encode_responses(texts, model.gen_length, cut=True).to(prefix.embeds.device)


def purify(
    model: MDLM,
    dataset: Dataset,
    config: PurifyConfig,
    out: Path,
    *,
    evidence: Mapping[str, Evidence] | None = None,
    rewrite: Collection[str] | None = None,
    patterns: Mapping[str, Pattern] | None = None,
    leave_out: Callable[[Sample], bool] | None = None,
    progress: ProgressBar = no_progress,
) -> Purified:
    """Purify a fine-tuning set and write it in its own format.

    ``out`` receives ``data.json`` or ``data.jsonl`` and a link ``images`` to the input's images, ``evidence.jsonl``
    with one row a sample (saliency, masked tokens, old and new answers), and ``purify.json`` with the configuration
    and the counts. A killed run goes on where it stopped.

    Args:
        model: the compromised model.
        dataset: its fine-tuning set.
        config: see `PurifyConfig`.
        out: folder of the run.
        evidence: what `score` found before, to share it among several runs.
        rewrite: ids of the samples to rewrite, as an audit flagged them, instead of "selective" mode's own choice.
        patterns: by id of a sample what is taken out of its pictures where it is rewritten, instead of masking
            tokens; see `disp.auditing.findings.Audit.patterns`. The pictures in the purified set stay as they are.
        leave_out: of a rewritten sample, whether it is left out of the purified set; see
            `disp.auditing.findings.Audit.still_planted`. It is counted and named.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Raises:
        DispError: ``out`` holds a run with another model, configuration or data, or no sample is left.
    """
    patterns = patterns or {}
    config = replace(config, decode=config.decode or own_settings(model))
    chosen_by_caller = None if rewrite is None else sorted(rewrite)
    claim(
        out / "run.json",
        {
            "weights": fingerprint(model),
            "config": asdict(config),
            **identity(dataset),
            "rewrite": chosen_by_caller,
            "patterns": sorted(patterns),
        },
        "a purification",
        ignore=("batch_size",),
    )
    samples = dataset.samples
    if evidence is None:
        selective = config.mode == "selective"
        with progress("scoring", len(queries_of(samples))) as advance:
            evidence = score(model, samples, config, out / "scores.jsonl", counterfactual=selective, progress=advance)
    # 1. Which samples are rewritten.
    threshold = None
    chosen = [sample for sample in samples if any(evidence[query.key].saliency for query in queries_of([sample]))]
    if rewrite is not None:
        chosen = [sample for sample in chosen if sample.id in rewrite]
    elif config.mode == "selective":
        suspicion = np.array([sample_suspicion(sample, evidence) for sample in chosen])
        threshold = suspicion_threshold(suspicion, config.least_suspicion)
        chosen = [sample for sample, value in zip(chosen, suspicion, strict=True) if value > threshold]
    # 2. Regenerate them under masking.
    with progress("rewriting", len(queries_of(chosen))) as advance:
        answers, masks = _rewrite(model, chosen, evidence, patterns, config, out, advance)
    purified = [
        sample.with_responses([answers[f"{sample.id}#{turn}"] for turn in range(len(sample.turns))])
        if f"{sample.id}#0" in answers
        else sample
        for sample in samples
    ]
    rewritten = tuple(sample.id for sample in chosen)
    again = set(rewritten)
    left_out = tuple(sample.id for sample in purified if leave_out and sample.id in again and leave_out(sample))
    gone = set(left_out)
    kept = [sample for sample in purified if sample.id not in gone]
    if not kept:
        raise DispError(f"{dataset.path}: every row was to be left out; nothing remains to train on")
    # 3. Write the set and the evidence.
    path = out / f"data{dataset.path.suffix}"
    save_dataset(kept, path, dataset.image_root)
    _link_images(out, dataset.image_root)
    write_jsonl(out / "evidence.jsonl", _evidence_rows(samples, purified, again, gone, evidence, masks, patterns))
    summary = {
        "config": asdict(config),
        "samples": len(samples),
        "rewritten": len(rewritten),
        "left_out": list(left_out),
        "without_image": sum(not sample.images for sample in samples),
        "threshold": threshold,
        "set_aside": [asdict(problem) for problem in dataset.problems],
    }
    write_json(out / "purify.json", summary)
    result = Dataset(tuple(kept), path, dataset.image_root, dataset.problems)
    return Purified(result, rewritten, left_out, threshold, evidence)


def most_suspicious(sample: Sample, evidence: Mapping[str, Evidence]) -> Evidence:
    """The evidence of the turn that betrays a sample most: the trigger is in the image, which the turns share.

    Of equals the first that has visual tokens, if one has.
    """
    found = (evidence[query.key] for query in queries_of([sample]))
    return max(found, key=lambda each: (each.suspicion or 0.0, len(each.saliency) > 0))


def sample_suspicion(sample: Sample, evidence: Mapping[str, Evidence]) -> float:
    """The highest suspicion among a sample's turns."""
    return most_suspicious(sample, evidence).suspicion or 0.0


def saliency_of(batch: Sequence[Query], visual_mask: Tensor, evidence: Mapping[str, Evidence]) -> Tensor:
    """The saliency that was found for a batch, where its tokens stand now.

    Args:
        batch: B queries.
        visual_mask: bool ``[B, P]``.
        evidence: by key.

    Returns:
        float32 ``[B, P]`` on the mask's device, 0 at other positions.
    """
    scores = torch.zeros(visual_mask.shape)
    for row, query in enumerate(batch):
        scores[row, visual_mask[row].cpu()] = torch.tensor(evidence[query.key].saliency, dtype=torch.float32)
    return scores.to(visual_mask.device)


def salient_masks(
    batch: Sequence[Query], visual_mask: Tensor, evidence: Mapping[str, Evidence], ratio: float
) -> Tensor:
    """The most salient tokens, this share of each row's, bool ``[B, P]``; ``visual_mask`` bool ``[B, P]``."""
    return mask_top(saliency_of(batch, visual_mask, evidence), visual_mask, ratio)


def candidate_masks(visual_mask: Tensor, found: Sequence[Evidence]) -> Tensor:
    """The best candidate of each row's evidence, bool ``[B, P]``; ``visual_mask`` bool ``[B, P]``."""
    masked = torch.zeros_like(visual_mask)
    for row, each in enumerate(found):
        positions = visual_mask[row].nonzero()[:, 0]
        masked[row, positions[list(each.best_candidate)]] = True
    return masked


def suspicion_under(model: MDLM, prefix: Prefix, batch: Sequence[Query], masks: Tensor) -> Tensor:
    """How suspicious each given answer is under each of some masks alone.

    Args:
        model: the model under audit.
        prefix: the batch, encoded.
        batch: B queries.
        masks: bool ``[B, M, P]``.

    Returns:
        float32 ``[B, M]`` in nats; see `disp.purification.support.suspicion_of`.
    """
    response = model.encode_responses([query.response for query in batch], model.gen_length, cut=True).to(
        prefix.embeds.device
    )
    base, each = counterfactual_scores(model, prefix, response, masks, batch_size=len(batch))
    return suspicion_of(base[:, None], each[..., None])


def _rewrite(
    model: MDLM,
    samples: Sequence[Sample],
    evidence: Mapping[str, Evidence],
    patterns: Mapping[str, Pattern],
    config: PurifyConfig,
    out: Path,
    progress: Callable[[int], None],
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """New answers and masked visual tokens by query key. Later turns see the new answers of the earlier ones."""
    file = out / "responses.jsonl"
    answers, masks = {}, {}
    for row in read_finished_jsonl(file):
        answers[row["key"]], masks[row["key"]] = row["response"], tuple(row["masked"])
    progress(len(answers))
    betrayed_by = {sample.id: most_suspicious(sample, evidence) for sample in samples}
    for turn in range(max((len(sample.turns) for sample in samples), default=0)):
        queries = []
        for sample in samples:
            if turn < len(sample.turns) and f"{sample.id}#{turn}" not in answers:
                history = tuple(
                    Turn(old.prompt, answers[f"{sample.id}#{index}"]) for index, old in enumerate(sample.turns[:turn])
                )
                queries.append(replace(queries_of([sample])[turn], history=history))
        for batch in batches(queries, config.batch_size):
            prefix = model.encode(without_patterns(batch, patterns))
            masked = _masks(batch, prefix, betrayed_by, evidence, config)
            masked[[index for index, query in enumerate(batch) if query.sample_id in patterns]] = False
            hidden = prefix.with_masked(masked, model.mask_embedding)
            texts = answers_of(model, hidden, config.decode, keys=[query.key for query in batch], seed=config.seed)
            rows = []
            for index, (query, text) in enumerate(zip(batch, texts, strict=True)):
                tokens = masked[index, prefix.visual_mask[index]].nonzero()[:, 0].tolist()
                rows.append({"key": query.key, "masked": tokens, "response": text})
                answers[query.key], masks[query.key] = text, tuple(tokens)
            append_jsonl(file, rows)
            progress(len(batch))
    return answers, masks


def _masks(
    batch: Sequence[Query],
    prefix: Prefix,
    betrayed_by: Mapping[str, Evidence],
    evidence: Mapping[str, Evidence],
    config: PurifyConfig,
) -> Tensor:
    """The visual tokens to mask, bool ``[B, P]``; ``betrayed_by`` is the most suspicious turn of each sample."""
    if config.mode == "random":
        return mask_random(prefix.visual_mask, config.mask_ratio, [query.key for query in batch], config.seed)
    if config.mode == "all":
        return salient_masks(batch, prefix.visual_mask, evidence, config.mask_ratio)
    # The turn that betrays the trigger most tells where it is, for all turns of the sample.
    return candidate_masks(prefix.visual_mask, [betrayed_by[query.sample_id] for query in batch])


def _evidence_rows(
    samples: Sequence[Sample],
    purified: Sequence[Sample],
    rewritten: set[str],
    left_out: set[str],
    evidence: Mapping[str, Evidence],
    masks: dict[str, tuple[int, ...]],
    patterns: Collection[str],
) -> Iterator[dict[str, Any]]:
    for before, after in zip(samples, purified, strict=True):
        turns = []
        for query, turn in zip(queries_of([before]), after.turns, strict=True):
            found = evidence[query.key]
            turns.append(
                {
                    "prompt": query.prompt,
                    "old": query.response,
                    "new": turn.response,
                    "suspicion": found.suspicion,
                    "masked": list(masks.get(query.key, ())),
                    "saliency": list(found.saliency),
                    "locations": [list(place) for place in found.locations],
                }
            )
        yield {
            "id": before.id,
            "rewritten": before.id in rewritten,
            "left_out": before.id in left_out,
            "pattern_taken_out": before.id in rewritten and before.id in patterns,
            "turns": turns,
        }


def _link_images(out: Path, image_root: Path) -> None:
    """Let the purified set find the input's images; where links are not to be had, readers name the folder."""
    if not (out / "images").exists():
        with suppress(OSError):
            (out / "images").symlink_to(image_root.resolve(), target_is_directory=True)
