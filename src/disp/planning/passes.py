"""How many forward and backward passes of the model each step of a run makes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from disp.auditing.config import AuditConfig
from disp.auditing.cost import TIMED_PASSES
from disp.auditing.shown import UNFLAGGED_SHOWN
from disp.decoding.config import DecodeConfig
from disp.purification.config import PurifyConfig
from disp.suspicion.candidates import candidate_ranks, parents_of, screen_ranks
from disp.suspicion.config import ScoringConfig
from disp.suspicion.support import COUNTERFACTUAL_ROWS
from disp.training.config import TrainConfig


@dataclass(frozen=True)
class Passes:
    """Passes through the language model.

    Attributes:
        forward: forward passes, calls of `MDLM.denoise`.
        backward: backward passes.
        rows: sequences in all forward passes together: what the time goes with.
        at_most: whether fewer are possible, because decoding may end early or because what is rewritten depends on
            what is found.
    """

    forward: int
    backward: int
    rows: int
    at_most: bool = False

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.forward + other.forward,
            self.backward + other.backward,
            self.rows + other.rows,
            self.at_most or other.at_most,
        )


NONE = Passes(0, 0, 0)


@dataclass(frozen=True)
class PlannedTurn:
    """One assistant turn of the data.

    Attributes:
        turn: its index in its sample.
        visual: visual tokens of its sample.
    """

    turn: int
    visual: int


def saliency_passes(asked: Sequence[PlannedTurn], batch_size: int, probes: int) -> Passes:
    """One forward pass a batch, and one backward pass a probe."""
    batches = math.ceil(len(asked) / batch_size)
    return Passes(batches, probes * batches, len(asked))


def scoring_passes(asked: Sequence[PlannedTurn], config: ScoringConfig) -> Passes:
    """`disp.suspicion.scoring.score` with counterfactuals: saliency, each candidate masked.

    At most: sets that lie in a larger one are tried where that one moves an answer, and those of suspicious answers are
    halved again and again; here all are. Of honest answers few are: `disp.suspicion.config.ScoringConfig.screen`.
    """
    total = saliency_passes(asked, config.batch_size, config.saliency.probes)
    at_once = COUNTERFACTUAL_ROWS * config.batch_size
    for start in range(0, len(asked), config.batch_size):
        batch = asked[start : start + config.batch_size]
        if config.gen_length is not None:  # saliency may then look at another response, which says nothing of this one
            total += Passes(1, 0, len(batch))
        sets = [candidate_ranks(each.visual, config) for each in batch]
        # Those that lie in no other set are masked first, then those that lie in them, and so on.
        depths = Counter(depth for each in batch for depth in _depths(each.visual, config))
        for rows in depths.values():
            total += Passes(math.ceil(rows / at_once), 0, rows, at_most=len(depths) > 1)
        halvings = max((len(ranks) for each in sets for ranks in each), default=1).bit_length() - 1
        each_time = math.ceil(2 * len(batch) / at_once)
        total += Passes(halvings * each_time, 0, 2 * halvings * len(batch), at_most=halvings > 0)
    return total


def _depths(visual: int, config: ScoringConfig) -> list[int]:
    """In how many other sets each set that may be masked lies, for a row with so many visual tokens."""
    parents = parents_of([*candidate_ranks(visual, config), *screen_ranks(visual, config)])

    def depth(index: int) -> int:
        return 0 if parents[index] < 0 else 1 + depth(parents[index])

    return [depth(index) for index in range(len(parents))]


def audit_passes(asked: Sequence[PlannedTurn], config: AuditConfig) -> Passes:
    """`disp.auditing.audit.audit`, at most, where flagged answers share one phrase; each further one pastes as much.

    Left out is what hangs on how many answers say something: the windows that are masked one by one in answers that
    lose a repeated sentence, the answers with a proven phrase, which are decoded again under growing masks, and those
    whose pictures have a pattern or a piece in common, which are asked for once more without it.
    """
    scoring = config.scoring
    total = scoring_passes(asked, scoring) + sentence_passes(asked, config) + paste_passes(config)
    return total + ratio_passes(asked, config) + record_passes(asked, config)


def sentence_passes(asked: Sequence[PlannedTurn], config: AuditConfig) -> Passes:
    """`disp.auditing.finders.sentences.find`: first answers with nothing masked and with much of the picture."""
    settings = config.sentences
    sentences = min(settings.sentences, len(asked) // settings.least_answers)
    batches = math.ceil(settings.answers / config.scoring.batch_size)
    return Passes(2 * sentences * batches, 0, 2 * sentences * settings.answers, at_most=True)


def paste_passes(config: AuditConfig) -> Passes:
    """`disp.auditing.planting.plant_each` of one phrase, and what the donors say with their regions masked."""
    decode, size, proof = _known(config.decode), config.batch_size, config.proof
    pasted = decoding_passes((proof.donors + proof.controls) * proof.recipients, size, decode)
    return pasted + decoding_passes(proof.donors, size, decode)


def ratio_passes(asked: Sequence[PlannedTurn], config: AuditConfig) -> Passes:
    """`disp.auditing.mask_ratio.choose_mask_ratio`, at most: flagged and other turns are answered under every ratio."""
    turns = min(2 * config.ratio.turns, sum(each.visual > 0 for each in asked))
    total = Passes(0, 0, 0, at_most=True)
    for _ in config.ratio.ratios:
        total += decoding_passes(turns, config.batch_size, _known(config.decode))
    return total


def record_passes(asked: Sequence[PlannedTurn], config: AuditConfig) -> Passes:
    """What an audit asks for its record, at most: answers that are shown, random masks for comparison, a timing."""
    scoring = config.scoring
    turns = sorted((count for count in _turns_with_image(asked) if count), reverse=True)
    # Each answer as it is and under its mask; where one phrase is found, one of its rows is among them.
    samples = config.shown.most_suspicious + config.shown.flagged + UNFLAGGED_SHOWN + 1
    shown = decoding_passes(sum(turns[:samples]), config.batch_size, _known(config.decode))
    compared = sum(turns[: config.shown.random_control])
    sets = len(candidate_ranks(max((each.visual for each in asked), default=0), scoring))
    batches = math.ceil(compared / scoring.batch_size)
    control = Passes((1 + math.ceil(sets / COUNTERFACTUAL_ROWS)) * batches, 0, (1 + sets) * compared)
    timed = Passes(TIMED_PASSES, 0, TIMED_PASSES * min(scoring.batch_size, sum(turns)))
    return shown + shown + control + timed


def _known(decode: DecodeConfig | None) -> DecodeConfig:
    if decode is None:
        raise ValueError("passes depend on how answers are decoded, and the model is not there to say; set `decode`")
    return decode


def decoding_passes(rows: int, batch_size: int, config: DecodeConfig) -> Passes:
    """Answering ``rows`` queries."""
    if not rows:
        return NONE
    each = config.most_steps * config.passes_a_step
    return Passes(each * math.ceil(rows / batch_size), 0, each * rows, config.may_end_early)


def purification_passes(asked: Sequence[PlannedTurn], config: PurifyConfig) -> tuple[Passes, Passes]:
    """Scoring and rewriting; the later turns of a sample are rewritten after its earlier ones."""
    selective = config.mode == "selective"
    look = config.scoring
    scoring = (
        scoring_passes(asked, look) if selective else saliency_passes(asked, look.batch_size, look.saliency.probes)
    )
    rewriting = Passes(0, 0, 0, selective)
    for turn in range(max((each.turn for each in asked), default=-1) + 1):
        rows = sum(each.turn == turn and each.visual > 0 for each in asked)
        rewriting += decoding_passes(rows, config.batch_size, _known(config.decode))
    return scoring, rewriting


def training_passes(config: TrainConfig, loss_rows: int = 1) -> Passes:
    """One forward and one backward pass a batch; ``loss_rows`` sequences a response."""
    batches = config.steps * int(config.trainer.get("gradient_accumulation_steps", 1))
    rows = batches * config.batch_size * loss_rows
    again = 2 if config.gradient_checkpointing else 1
    return Passes(batches, batches, again * rows)


def evaluation_passes(asked: Sequence[PlannedTurn], decode: DecodeConfig, batch_size: int, attacked: bool) -> Passes:
    """`disp.evaluation.evaluate.evaluate`: every query, and with an attack those with an image a second time."""
    total = decoding_passes(len(asked), batch_size, decode)
    if attacked:
        # Triggered pictures are made for so many samples at a time.
        turns = [count for count in _turns_with_image(asked) if count]
        for start in range(0, len(turns), batch_size):
            total += decoding_passes(sum(turns[start : start + batch_size]), batch_size, decode)
    return total


def _turns_with_image(asked: Sequence[PlannedTurn]) -> list[int]:
    """Turns of each sample; 0 for a sample without visual tokens."""
    samples: list[int] = []
    for each in asked:
        if each.turn == 0:
            samples.append(0)
        samples[-1] += each.visual > 0
    return samples
