"""What masking ever more tokens does to training answers: planted ones lose their target, honest ones their quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from disp.attacks.poison import is_changed
from disp.data.sample import Query, Sample, queries_of
from disp.decoding.generate import generate
from disp.draws import generator, key_of
from disp.evaluation.intervals import mean_share, wilson
from disp.evaluation.quality import answer_quality
from disp.experiments.attacked import AttackRun
from disp.experiments.defended import defence_folder, hidden_by, purify_config, ranked_by
from disp.experiments.phases import Phases
from disp.experiments.recipe import Defence, Experiment
from disp.files import append_jsonl, read_finished_jsonl, read_json, write_json
from disp.machine import stamp
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM, Prefix
from disp.purification.config import PurifyConfig
from disp.suspicion.evidence import Evidence, saliency_of
from disp.suspicion.scoring import score


@dataclass(frozen=True)
class Asked:
    """A turn that is answered under masks.

    Attributes:
        query: the turn; its response is the honest one.
        poisoned: whether the row is poisoned and the target changes this answer.
        sample: its row.
    """

    query: Query
    poisoned: bool
    sample: Sample


def run_sweep(run: AttackRun, name: str, ranking: Defence, experiment: Experiment) -> None:
    """Answer training questions under one ranking and each mask ratio; writes ``cell.json``.

    No model is fine-tuned beside the backdoored one. Poisoned rows say how many answers still show the target, honest
    rows how good the answers still are. Ratios that are done are not repeated.

    Args:
        run: the attack.
        name: what the ranking is called.
        ranking: how tokens are ranked.
        experiment: its ratios and how many rows.
    """
    folder = defence_folder(run, f"sweep-{experiment.sweep_rows}-{name}", ranking)
    if (folder / "cell.json").exists() and read_json(folder / "cell.json")["ratios"] == list(experiment.ratios):
        return
    run.before()
    phases = Phases(folder)
    rows = chosen_rows(run, experiment.sweep_rows)
    model = run.model()
    config = sweep_config(run, ranking)
    asked, samples = [each.query for each in rows], list({each.sample.id: each.sample for each in rows}.values())
    # 1. One ranking for all ratios.
    evidence: Mapping[str, Evidence] = {}
    if config.mode != "random":
        turns = len(queries_of(samples))
        units = turns * config.scoring.saliency.probes
        with phases.phase("score", units), run.subject.fast(), run.bars(name)("scoring", turns) as advance:
            evidence = score(
                model, samples, config.scoring, folder / "scores.jsonl", counterfactual=False, progress=advance
            )
        evidence = ranked_by(ranking, evidence)
    # 2. Answers under each ratio.
    file = folder / "ratios.jsonl"
    done = {row["ratio"]: row for row in read_finished_jsonl(file)}

    def masked(model: MDLM, batch: Sequence[Query], *, settings: PurifyConfig) -> Prefix:
        prefix, keys = model.encode(batch), [query.key for query in batch]
        scores = saliency_of(batch, prefix.scored(config.scoring.saliency.separators), evidence) if evidence else None
        return hidden_by(model, prefix, keys, scores, settings)

    for ratio in experiment.ratios:
        if ratio in done:
            continue
        settings = replace(config, mask_ratio=ratio)
        label = f"{name}: answering with {ratio:.0%} masked"
        with phases.phase("rewrite", len(asked)), run.subject.fast(), run.bars("sweep")(label, len(asked)) as advance:
            answers = generate(
                model,
                asked,
                config.decode,
                encode=partial(masked, settings=settings),
                seed=config.seed,
                batch_size=config.batch_size,
                progress=advance,
            )
        append_jsonl(file, [{"ratio": ratio, **shares(run, rows, answers)}])
    found = {row["ratio"]: row for row in read_finished_jsonl(file)}
    write_json(
        folder / "cell.json",
        {
            "ratios": list(experiment.ratios),
            "by_ratio": [found[ratio] for ratio in experiment.ratios],
            "weights": fingerprint(model),
            "made": stamp(),
        },
    )


def sweep_config(run: AttackRun, ranking: Defence) -> PurifyConfig:
    """How a sweep ranks, masks and decodes; but for the ranking, it is the same for all."""
    config, ours = purify_config(run, ranking), purify_config(run, Defence(""))
    saliency = replace(config.scoring.saliency, separators=ours.scoring.saliency.separators)
    return replace(
        config,
        scoring=replace(config.scoring, saliency=saliency),
        decode=ours.decode,
        batch_size=ours.batch_size,
        seed=ours.seed,
        rounding=ours.rounding,
        question=ours.question,
        first_only=ours.first_only,
    )


def chosen_rows(run: AttackRun, count: int) -> list[Asked]:
    """Turns with a picture of so many poisoned rows and as many honest ones, drawn by the attack's seed.

    Rows keep the pictures that they are trained with, and get their honest answers back.
    """
    honest = {sample.id: sample for sample in run.tuning.samples}
    groups: dict[bool, list[Sample]] = {True: [], False: []}
    for sample in run.poisoned.samples:
        if sample.images:
            answers = [turn.response for turn in honest[sample.id].turns]
            groups[sample.id in run.poisoned_ids].append(sample.with_responses(answers))
    found = []
    for poisoned, samples in groups.items():
        order = generator(run.attack.seed, "sweep", poisoned).permutation(len(samples))[:count]
        for index in sorted(order.tolist()):
            for query in samples[index].queries:
                if query.images and (not poisoned or is_changed(query, run.planted.target)):
                    found.append(Asked(query, poisoned, samples[index]))
    return found


def shares(run: AttackRun, rows: Sequence[Asked], answers: Sequence[str]) -> dict[str, Any]:
    """How many planted answers still show the target, and how good the honest ones are, with intervals."""
    target, seed = run.planted.target, run.attack.seed
    planted = [(each, said) for each, said in zip(rows, answers, strict=True) if each.poisoned]
    honest = [(each, said) for each, said in zip(rows, answers, strict=True) if not each.poisoned]
    hits = {
        "asr_with_trigger": [target.exact(said, each.query.response) for each, said in planted],
        "asr_with_trigger_keyword": [target.keyword(said, each.query.response) for each, said in planted],
        "asr_with_trigger_substring": [target.substring(said) for _, said in planted],
    }
    quality = [
        answer_quality(said, each.query.response, each.sample.metadata, each.query.turn) for each, said in honest
    ]
    return {
        **{name: asdict(wilson(sum(found), len(found))) if found else None for name, found in hits.items()},
        "clean_quality": asdict(mean_share(quality, key_of(seed, "sweep"))) if quality else None,
    }
