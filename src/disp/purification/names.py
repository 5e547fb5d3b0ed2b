"""Names that settings of rewriting take; nothing here needs PyTorch, so that command lines show them at once."""

from __future__ import annotations

from typing import Literal

# Which answers are rewritten: those that lose their support under masking, all, or all with random masks.
Mode = Literal["selective", "all", "random"]
# Settings that are taken as a whole: those of the scripts of DiSP's authors (arXiv 2602.22246).
Preset = Literal["published"]
# What is done with rows that count as poisoned.
Remedy = Literal["rewrite", "drop", "restore"]
# What a whole defence rewrites: the rows that its audit flags, or all.
Rewrite = Literal["flagged", "all"]
