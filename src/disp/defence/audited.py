"""What an audit found, taken out of the data: rewritten answers, and what a model is fine-tuned on afterwards."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from disp.auditing.config import AuditConfig
from disp.auditing.result import Audit
from disp.data.dataset import Dataset
from disp.data.sample import ImageSource, Sample
from disp.decoding.names import ProfileName
from disp.defence.config import DefenceConfig
from disp.draws import generator
from disp.files import write_atomically
from disp.models.interface import MDLM
from disp.progress import ProgressBar, no_progress
from disp.purification.config import PurifyConfig
from disp.purification.names import Rewrite
from disp.purification.purify import Purified, purify
from disp.purification.remedies import REWRITE, Treatment
from disp.scale.workers import ALONE, Workers
from disp.suspicion.carriers import Pattern
from disp.suspicion.masking import Substitute


def purify_audited(
    model: MDLM,
    dataset: Dataset,
    found: Audit,
    config: AuditConfig,
    out: Path,
    *,
    rewrite: Rewrite = "flagged",
    treatment: Treatment = REWRITE,
    profile: ProfileName = "exact",
    substitute: Substitute = "mask",
    workers: Workers = ALONE,
    progress: ProgressBar = no_progress,
) -> Purified:
    """Rewrite what an audit flagged, or all rows; leave out what says a phrase of its findings all the same.

    See `purify` and `Audit.still_planted`.

    Args:
        model: the model that was audited.
        dataset: its fine-tuning set.
        found: the audit.
        config: how it was audited, and how answers are decoded.
        out: folder of the run.
        rewrite: see `DefenceConfig`.
        treatment: what is done instead of rewriting, and what a person decided.
        profile: see `DefenceConfig`.
        substitute: see `DefenceConfig`.
        workers: who rewrites; see `disp.scale`.
        progress: see `disp.progress`.
    """
    settings = PurifyConfig(
        scoring=config.scoring, decode=config.decode, batch_size=config.batch_size, seed=config.seed
    )
    if rewrite == "all":
        settings = replace(settings, mode="all", mask_ratio=ratio_for_all(found, config))
    return purify(
        model,
        dataset,
        settings.with_profile(model, profile, substitute),
        out,
        evidence=found.evidence,
        rewrite=found.flagged if rewrite == "flagged" else None,
        patterns=found.patterns,
        leave_out=found.still_planted,
        treatment=treatment,
        workers=workers,
        progress=progress,
    )


def ratio_for_all(found: Audit, config: AuditConfig) -> float:
    """The share of the visual tokens that is masked where every row is rewritten.

    Rows that still say a phrase that was found are left out, so the gentlest ratio is enough. Where the answers hang on
    patterns, these are taken out of the pictures, and masking adds nothing: the smallest of all ratios is taken.
    """
    if found.ratio is not None:
        return found.ratio.gentlest
    return config.ratio.ratios[0] if found.patterns else config.scoring.mask_ratio


def recovery_samples(
    purified: Purified, found: Audit, seed: int, *, most: int = DefenceConfig.under_patterns
) -> list[Sample]:
    """What a model is fine-tuned on after `purify_audited`: the purified set and, where patterns were found, more.

    A pattern changes the look of the whole picture, and the rewritten rows alone, which are few, show how to answer
    under it. So it is laid over the pictures of unflagged samples too, whose answers stay: it says nothing. The new
    pictures are written beside the purified set, which does not name them.

    Args:
        purified: the purified set.
        found: the audit that it was made from.
        seed: of which samples these are.
        most: how many they are at most, of all patterns together.
    """
    samples = list(purified.dataset.samples)
    patterns = [finding.pattern for finding in found.findings if finding.pattern is not None and finding.with_pattern]
    flagged = set(found.flagged)
    honest = [sample for sample in samples if sample.images and sample.id not in flagged]
    folder = purified.dataset.path.parent / "under-pattern"
    for number, pattern in enumerate(patterns):
        order = generator(seed, "under pattern", number).permutation(len(honest))
        for place, index in enumerate(order[: most // len(patterns)]):
            sample = honest[index]
            pictures = tuple(
                _under(pattern, image, folder / f"{number}-{place}-{position}.png")
                for position, image in enumerate(sample.images)
            )
            samples.append(replace(sample, id=f"{sample.id} under pattern {number}", images=pictures))
    return samples


def _under(pattern: Pattern, image: ImageSource, file: Path) -> Path:
    """The file, with the picture under the pattern."""
    if not file.exists():
        write_atomically(file, partial(pattern.planted_in(image).save, format="PNG"))
    return file
