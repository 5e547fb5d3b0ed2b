"""Hours and cost of a run over many rows, worked out from a plan of some of them and from what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from disp.decoding.config import DecodeConfig, StepConfig
from disp.decoding.profiles import PROFILES, profiled
from disp.errors import DispError
from disp.planning.cards import CACHED_STEP, Fleet, card_of
from disp.planning.plan import Plan

# What `seconds_of` calls a step of a run that does not depend on the profile.
SCORING = "scoring"


@dataclass(frozen=True)
class Hours:
    """What a large run takes.

    Attributes:
        fleet: on what.
        steps: hours of each step by its name, all devices together working at once.
        scale: how much more a pass of this model and data computes than the measured one, which the hours are
            multiplied with: by parameters and positions.
    """

    fleet: Fleet
    steps: dict[str, float]
    scale: float

    def to_text(self) -> str:
        """The table as plain text."""
        fleet, card = self.fleet, card_of(self.fleet.card)
        priced = fleet.price is not None
        head = f"  {'':<28}{'hours':>10}" + (f"{'cost':>14}" if priced else "")
        lines = [f"Time of {fleet.rows:,} rows on {fleet.cards} × {card.name}, at most", head]
        for name, hours in self.steps.items():
            cost = f"{hours * fleet.cards * (fleet.price or 0):>14,.0f}" if priced else ""
            lines.append(f"  {name:<28}{_shown(hours):>10}{cost}")
        lines.append(f"Measured: {card.source}.")
        extrapolated = [] if card.measured else [f"all of it, for nothing was measured on this {card.name}"]
        if not 0.99 < self.scale < 1.01:
            extrapolated.append(f"to {self.scale:.3g} times the computation a pass, by parameters and positions")
        if any("fast" in name for name in self.steps):
            extrapolated.append(
                f"fast and fastest, from a step with the prompt kept at {CACHED_STEP:g} of a pass, measured on a CPU"
            )
        if fleet.cards > 1:
            extrapolated.append(f"to {fleet.cards} devices, as if none ever waited")
        lines += [f"Extrapolated: {each}." for each in extrapolated]
        lines.append(
            "Not in it: what an audit does besides scoring, reading and checking pictures, loading the model, larger "
            "batches, early ends of answers."
        )
        return "\n".join(lines)


def hours_of(plan: Plan, decode: DecodeConfig, fleet: Fleet) -> Hours:
    """Hours of scoring and of rewriting every row, for each profile of decoding.

    Each sequence is taken to be as long as the longest of the plan, and each row to need all that it may need, so these
    are the most hours.

    Args:
        plan: of some rows, for which the others are like.
        decode: the model's own decoding settings.
        fleet: how many rows, on what.
    """
    card = card_of(fleet.card)
    scale = plan.parameters * (plan.prefix + decode.gen_length) / (card.parameters * card.positions)
    probes = plan.settings.purify.scoring.saliency.probes
    scored = plan.passes["score"].rows * card.forward + probes * plan.queries * card.backward
    selective = plan.settings.purify.mode == "selective"
    before = plan.passes["score"].rows if selective else plan.queries
    answers = (plan.passes["purify"].rows - before) / (decode.most_steps * decode.passes_a_step)
    seconds = {SCORING: scored}
    for name in PROFILES:
        try:
            chosen = profiled(decode, name)
        except DispError:  # this sampler has no such profile
            continue
        seconds[f"rewriting all, {name}"] = answers * passes_of(chosen) * card.forward
    share = scale * fleet.rows / plan.samples / fleet.cards / 3600
    return Hours(fleet, {name: value * share for name, value in seconds.items()}, scale)


def passes_of(decode: DecodeConfig) -> float:
    """One answer in forward passes, where steps that keep the prompt count as `CACHED_STEP` each."""
    steps = decode.most_steps
    whole: float = steps
    if isinstance(decode, StepConfig) and decode.refresh is not None:
        blocks = max(1, decode.gen_length // (getattr(decode, "block_length", None) or decode.gen_length))
        whole = min(steps, blocks * math.ceil(math.ceil(steps / blocks) / decode.refresh))
    return decode.passes_a_step * (whole + (steps - whole) * CACHED_STEP)


def _shown(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:,.2g}"
