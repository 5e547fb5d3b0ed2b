"""Names that settings of decoding take; nothing here needs PyTorch, so that command lines show them at once."""

from __future__ import annotations

from typing import Literal

# How much a step computes and commits: `disp.decoding.profiles.PROFILES`.
ProfileName = Literal["exact", "fast", "fastest"]
# Which predictions stay masked: `disp.decoding.llada.LladaConfig`.
Remasking = Literal["low_confidence", "random", "entropy", "margin"]
# How many tokens each step commits: `disp.decoding.schedule.commit_schedule`.
Schedule = Literal["shift", "cosine", "linear"]
