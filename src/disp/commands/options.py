"""The application, the options that several commands share, and what they stand for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from disp.progress import no_progress, progress_bar
from disp.words import named_briefly

if TYPE_CHECKING:
    from disp.data.dataset import Dataset, Problem
    from disp.models.interface import MDLM

app = App(
    name="disp",
    help="Find and remove backdoors in multimodal diffusion language models (Diffusion Self-Purification).",
    version=lambda: version("disp-mdlm"),  # the distribution has another name than the package
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `disp.cli.main` says what to do
)


def _folder(_: Any, path: Path) -> None:
    """A validator: whether the folder can be made and written to, before the work and not after it."""
    _not_remote(path)
    above = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not above.is_dir():
        raise ValueError(f"{above} is a file, not a folder.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{above} may not be written to.")


def _folder_or_url(_: Any, path: Path) -> None:
    """The same, where a URL will do."""
    from disp.data.remote import url_of

    if not url_of(path):
        _folder(_, path)


def _not_remote(path: Path) -> None:
    from disp.data.remote import url_of

    if url := url_of(path):
        raise ValueError(
            f"{url} is no folder of this machine, where lines are appended and files renamed; write to a disk that all "
            "processes see, and copy it there when it is done, data with disp convert."
        )


def _file(_: Any, path: Path | None) -> None:
    """The same for a file."""
    if path is None:
        return
    _not_remote(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file.")
    _folder(_, path.absolute().parent)


# Rows that were set aside are named up to so many.
LISTED = 10
Model = Annotated[str, Parameter(help='"builtin", a folder with a model or a LoRA adapter, or a hub id.')]
Data = Annotated[
    Path,
    Parameter(
        help="JSON of LLaVA, ShareGPT, LLaMA-Factory, ms-swift or Qwen-VL, parquet, tar files of WebDataset, a "
        "folder of Hugging Face datasets or of pictures with metadata, one of these at a URL such as s3://bucket/set, "
        "or the id of a dataset on the hub."
    ),
]
Out = Annotated[Path, Parameter(help="Folder to write.", validator=_folder)]
# Where a dataset is written once and whole, see `disp.data.remote.written_to`.
OutOrURL = Annotated[
    Path, Parameter(help="Folder to write, also at a URL such as s3://bucket/set.", validator=_folder_or_url)
]
OutFile = Annotated[Path | None, Parameter(validator=_file)]
Limit = Annotated[int | None, Parameter(help="Only the first so many rows.", validator=Number(gte=1))]
# A number of rows a pass; "auto" for what there is room for by the plan, see `disp.commands.sharing.Sharing.rows`.
BatchSize = Annotated[
    int | Literal["auto"],
    Parameter(
        help="Assistant turns in one pass; auto for as many as there is memory for. Where it does not do, passes are "
        "halved."
    ),
]
Count = Annotated[int | None, Parameter(validator=Number(gte=1))]
Flag = Annotated[bool, Parameter(negative=())]
Several = Parameter(consume_multiple=True, negative=())
Seed = Annotated[int, Parameter(help="Seed of every random draw.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Rows:
    """Reading a dataset."""

    images: Annotated[Path | None, Parameter(help="Folder that image paths are relative to.")] = None
    strict: Annotated[bool, Parameter(help="Stop at the first bad row instead of setting it aside.", negative=())] = (
        False
    )
    format: Annotated[
        str | None,
        Parameter(help="The data's format; found out if not given. A wrong name lists them all."),
    ] = None
    split: Annotated[str | None, Parameter(help='Part of a dataset that has several; "train" if not given.')] = None
    allow_download: Annotated[
        bool, Parameter(help="Fetch pictures that rows name by http or https; they are kept in a cache.", negative=())
    ] = False
    leave_out: Annotated[
        str | None,
        Parameter(
            help="Fields of rows, such as caption,text, that are neither looked at nor in what is written; the data "
            "keep them."
        ),
    ] = None
    allow_text_rows: Annotated[
        bool, Parameter(help="Go on even if many rows have no picture; nothing is looked for in these.", negative=())
    ] = False

    def reading(self) -> dict[str, Any]:
        """The options that `disp.data.loading.load_dataset` takes."""
        return {
            "strict": self.strict,
            "format": self.format,
            "split": self.split,
            "allow_download": self.allow_download,
            "leave_out": self.fields_left_out(),
        }

    def fields_left_out(self) -> tuple[str, ...]:
        """The names that ``--leave-out`` gives."""
        return tuple(name for each in (self.leave_out or "").split(",") if (name := each.strip()))

    def check_left_out(self, dataset: Dataset) -> None:
        """Make sure that the fields that were to be left out were there: a name that is mistyped leaves out nothing.

        Raises:
            DispError: no row had one of them.
        """
        from disp.errors import DispError

        if missing := next((name for name in self.fields_left_out() if name not in dataset.left_out), None):
            raise DispError(f"--leave-out: no row of {dataset.path} has a field {missing!r}; take the name out")

    def load(
        self,
        data: Path,
        *,
        pictures: bool = True,
        questions: bool = False,
        pictured: bool = False,
        quiet: bool = False,
    ) -> Dataset:
        """The dataset; rows that were set aside are listed on stderr.

        Args:
            data: file, folder or hub id.
            pictures: read each picture, and set rows with damaged ones aside too.
            questions: take questions without an answer.
            pictured: say how many rows have no picture, and refuse a dataset without any.
            quiet: say nothing, as another process does that reads the same.

        Raises:
            DispError: see `disp.data.loading.load_dataset`; or there is no picture, or no field that is to be left out.
        """
        from disp.data.damaged import without_damaged_pictures
        from disp.data.loading import load_dataset
        from disp.errors import DispError

        dataset = load_dataset(data, self.images, questions=questions, **self.reading())
        self.check_left_out(dataset)
        if pictures:
            bar = no_progress if quiet else progress_bar
            with bar("checking pictures", len(dataset.samples)) as advance:
                dataset = without_damaged_pictures(dataset, strict=self.strict, progress=advance)
        if not quiet:
            _tell(dataset)
        if pictured and (bare := dataset.without_picture):
            if bare == len(dataset.samples) and not self.allow_text_rows:
                raise DispError(
                    f"{dataset.path}: none of its {_rows(bare)} has a picture; name the pictures under 'image' or "
                    "'images', or give --allow-text-rows"
                )
            if not quiet:
                print(f"{bare} of {_rows(len(dataset.samples))} without a picture", file=sys.stderr)
        return dataset


def _tell(dataset: Dataset) -> None:
    """Say on stderr what of the data was set aside, not read, or read as something else."""
    list_problems(dataset.problems)
    said = []
    if dataset.unread:
        said.append(f"read: {dataset.path}; beside it and not read: {named_briefly(dataset.unread)}")
    if dataset.linked:
        said.append(
            f"{dataset.linked} names of pictures lead out of {dataset.image_root} by links, which are followed, as "
            "--images names it"
        )
    if dataset.nulled:
        said.append(f"{_rows(dataset.nulled)} with NaN, which JSON does not have: read as null")
    if dataset.renamed:
        said.append(f"{_rows(dataset.renamed)} with the id of an earlier one: called id~2, id~3 …")
    for line in said:
        print(line, file=sys.stderr)


def list_problems(problems: Sequence[Problem]) -> None:
    """Say which rows were set aside."""
    for problem in problems[:LISTED]:
        print(f"set aside {problem.place}: {problem.reason}", file=sys.stderr)
    if len(problems) > LISTED:
        print(f"and {len(problems) - LISTED} more", file=sys.stderr)
    if problems:
        print(f"{_rows(len(problems))} set aside", file=sys.stderr)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


@Parameter(name="*")
@dataclass(frozen=True)
class Runtime:
    """Where and how a model runs."""

    device: Annotated[str | None, Parameter(help="Such as cpu or cuda:1; the first GPU if there is one.")] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, Parameter(help="float32 on a CPU and bfloat16 on a GPU.")
    ] = None
    device_map: Annotated[str | None, Parameter(help='"auto" spreads a large model over all devices.')] = None
    attention: Annotated[Literal["sdpa", "flash_attention_2"] | None, Parameter(help="Attention implementation.")] = (
        None
    )
    quantization: Annotated[Literal["4bit", "8bit"] | None, Parameter(help="Load through bitsandbytes.")] = None
    gen_length: Annotated[int | None, Parameter(help="Response slots; the model's own if not given.")] = None
    projector: Annotated[
        Path | None, Parameter(help="File with a fine-tuned projector: mm_projector.safetensors or .bin.")
    ] = None

    def check(self, model: str | Path) -> None:
        """Raise `DispError` where it can be seen without weights that the model cannot be loaded like this.

        To be called before data are read, which can take much longer than to see that a name is wrong.
        """
        import torch

        from disp.errors import DispError
        from disp.models.loading import check_model

        if (self.device or "").startswith("cuda") and not torch.cuda.is_available():
            raise DispError(f"device {self.device!r}: torch sees no GPU; leave --device out, or install torch for CUDA")
        check_model(model, device=self.device, device_map=self.device_map, quantization=self.quantization)

    def load(self, model: str | Path) -> MDLM:
        """The model; raises `DispError` where it cannot be loaded."""
        from disp.models.loading import load_model

        self.check(model)
        return load_model(
            model,
            device=self.device,
            dtype=self.dtype,
            device_map=self.device_map,
            attn_implementation=self.attention,
            quantization=self.quantization,
            gen_length=self.gen_length,
            projector=self.projector,
        )


ROWS, RUNTIME = Rows(), Runtime()
