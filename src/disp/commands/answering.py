"""Options of `disp generate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from disp.commands.options import Flag, OutFile, Rows, Several
from disp.decoding.names import ProfileName, Remasking
from disp.errors import DispError
from disp.suspicion.config import MASK_RATIO

if TYPE_CHECKING:
    from disp.data.sample import Sample
    from disp.decoding.config import DecodeConfig
    from disp.purification.guard import GuardConfig


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        prompt: What to ask.
        image: The image or images that the prompt is about.
        data: A dataset to answer instead; needs --out.
        out: JSONL file for the dataset's answers.
    """

    prompt: str | None = None
    image: Annotated[list[Path] | None, Several] = None
    data: Path | None = None
    out: OutFile = None

    def check(self) -> None:
        """Raise `DispError` where options do not go together."""
        if (self.prompt is None) == (self.data is None):
            raise DispError("give either --prompt (with --image) or --data (with --out)")
        if self.data is not None and self.out is None:
            raise DispError("--data needs --out, the JSONL file for the answers")
        if self.data is not None and self.image:
            raise DispError("--image belongs to --prompt; a dataset names its own images")
        for picture in self.image or ():
            if not picture.is_file():
                raise DispError(f"--image {picture}: no such file; give a picture's file")

    def samples(self, rows: Rows, *, quiet: bool = False) -> tuple[Sample, ...]:
        """The prompt, or the rows of the dataset; raises `DispError` where the answers would be written over these."""
        from disp.data.sample import Sample, Turn
        from disp.data.stored import check_output

        if self.prompt is not None:
            return (Sample("prompt", tuple(self.image or ()), (Turn(self.prompt, ""),)),)
        assert self.data is not None, "checked"
        dataset = rows.load(self.data, questions=True, quiet=quiet)
        if self.out is not None:
            check_output(dataset, self.out)
        return dataset.samples


@Parameter(name="*")
@dataclass(frozen=True)
class Sampling:
    """How answers are decoded; the model's own settings where nothing is given.

    Attributes:
        steps: Denoising steps.
        block_length: Length of the blocks decoded one after the other.
        remasking: Which predictions stay masked.
        temperature: 0 for greedy decoding.
        threshold: Confidence at which a token is committed early.
        profile: How much a step computes: exact, fast or fastest; docs/method.md says what each changes.
    """

    steps: int | None = None
    block_length: int | None = None
    remasking: Remasking | None = None
    temperature: float | None = None
    threshold: float | None = None
    profile: ProfileName = "exact"


@Parameter(name="*")
@dataclass(frozen=True)
class Guarding:
    """Answers under masking.

    Attributes:
        guard: Answer with the most salient visual tokens masked, and flag inputs whose answer changes with that.
        mask_ratio: Guard: share of the visual tokens that is masked.
    """

    guard: Flag = False
    mask_ratio: Annotated[
        float | None, Parameter(help=f"Guard: share of the visual tokens that is masked; {MASK_RATIO:g} if not given.")
    ] = None

    def check(self, asked: Asked) -> None:
        """Raise `DispError` where options do not go together."""
        if self.guard and asked.data is None and not asked.image:
            raise DispError("--guard masks visual tokens; give an --image")
        if self.mask_ratio is not None and not self.guard:
            raise DispError("--mask-ratio is for --guard; without it nothing is masked")

    def config(self, decode: DecodeConfig, batch_size: int, seed: int) -> GuardConfig:
        """The settings that were asked for."""
        from disp.purification.guard import GuardConfig

        mask_ratio = GuardConfig.mask_ratio if self.mask_ratio is None else self.mask_ratio
        return GuardConfig(mask_ratio=mask_ratio, decode=decode, batch_size=batch_size, seed=seed)


ASKED, SAMPLING, GUARDING = Asked(), Sampling(), Guarding()
