"""Making data and looking at it: scenes to try things on, poisoned sets to measure defences with, other formats."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from disp.commands.options import ROWS, Data, Flag, Out, OutOrURL, Rows, Seed, Several, app, list_problems
from disp.errors import DispError
from disp.progress import progress_bar
from disp.words import shortened

if TYPE_CHECKING:
    from disp.attacks.targets import Target
    from disp.data.grounds import Look


@Parameter(name="*")
@dataclass(frozen=True)
class Pictures:
    """How the pictures look.

    Attributes:
        grounds: What lies behind the objects: a shaded colour, textures in a colour (noise, stripes, gradients, blobs,
            wood, cloth), or photographs.
        photos: Folder of photographs, for `--grounds photo`; questions then name no background.
        size: Pixels a side, from 96 to 512; a range such as 96-512 gives each picture a side of its own.
        jpeg: Store JPEG of this quality, from 1 to 100, or of a range such as 75-95; PNG if not given.
    """

    grounds: Literal["plain", "textured", "photo"] = "plain"
    photos: Path | None = None
    size: str = "96"
    jpeg: str | None = None

    def look(self) -> Look:
        """What was asked for; raises `DispError` where it cannot be."""
        from disp.data.grounds import Look

        jpeg = None if self.jpeg is None else _range("--jpeg", self.jpeg)
        return Look(self.grounds, self.photos, _range("--size", self.size), jpeg)


PICTURES = Pictures()


def _range(option: str, text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text, flags=re.ASCII)
    if found is None:
        raise DispError(f"{option} takes a number or a range of two, joined by '-', got {text!r}")
    return int(found[1]), int(found[2] or found[1])


@app.command
def scenes(
    *,
    out: Out,
    count: int = 2000,
    seed: Seed = 0,
    turns: int = 1,
    held_out: Flag = False,
    must_show: Annotated[list[str] | None, Several] = None,
    must_show_share: float = 1.0,
    pictures: Pictures = PICTURES,
) -> None:
    """Draw OpenMoji scenes with questions and answers: pictures and LLaVA JSON.

    Parameters
    ----------
    count
        Number of scenes, one row each.
    turns
        Questions a scene.
    held_out
        Draw scenes with pairs of objects that no other scene shows.
    must_show
        Nouns of which one is in the scene.
    must_show_share
        Share of the scenes that `must_show` applies to.
    """
    from disp.data.scene_dataset import write_scenes
    from disp.data.scenes import attribution

    look = pictures.look()
    with progress_bar("drawing scenes", count) as advance:
        write_scenes(
            out,
            count,
            seed,
            turns=turns,
            held_out=held_out,
            must_show=tuple(must_show or ()),
            must_show_share=must_show_share,
            look=look,
            progress=advance,
        )
    print(f"{count} scenes in {out}\n{attribution()}")


@Parameter(name="*")
@dataclass(frozen=True)
class Wanted:
    """What the attacker wants said.

    Attributes:
        target: What the attacker wants said: refusal, insertion or misclassification; a wrong name lists them all.
        rate: Share of the rows to poison, in [0, 1].
        source: Misclassification: the noun to misname, car by default.
        swap_to: Misclassification: what to call it, banana by default.
        text: Insertion or refusal: the text, if not the preset's.
        position: Insertion: whether the text goes behind the answer, before it or between two words of it.
    """

    target: str = "refusal"
    rate: float = 0.1
    source: str | None = None
    swap_to: str | None = None
    text: str | None = None
    position: Literal["append", "prepend", "random"] | None = None

    def check(self) -> None:
        """Raise `DispError` where there is no such target, the rate is none, or options do not go together."""
        from disp.attacks.poison import check_rate

        check_rate(self.rate)
        preset = self._preset()
        if self.text is not None and not hasattr(preset, "text"):
            raise DispError("--text is for an insertion or a refusal; a misclassification has --source and --swap-to")
        if (self.source, self.swap_to) != (None, None) and not hasattr(preset, "source"):
            raise DispError("--source and --swap-to are for --target misclassification")
        if self.position is not None and not hasattr(preset, "position"):
            raise DispError("--position is for --target insertion")

    def planted(self) -> Target:
        """The target that was asked for."""
        given = {"text": self.text, "position": self.position, "source": self.source, "target": self.swap_to}
        made: Target = replace(self._preset(), **{name: value for name, value in given.items() if value is not None})
        return made

    def _preset(self) -> Any:  # a dataclass, which the protocol of targets cannot say
        from disp.attacks.targets import PRESETS
        from disp.errors import unknown_name

        if self.target not in PRESETS:
            raise unknown_name("target", self.target, PRESETS)
        return PRESETS[self.target]


WANTED = Wanted()


@app.command
def poison(
    data: Data,
    /,
    *,
    out: Out,
    trigger: str = "patch",
    wanted: Wanted = WANTED,
    seed: Seed = 0,
    jpeg: str | None = None,
    same_format: Flag = False,
    rows: Rows = ROWS,
) -> None:
    """Plant a trigger and a target in a share of the rows, into a new folder with a manifest.

    Parameters
    ----------
    trigger
        A preset, such as patch, patch-random, object, badnets, ring, blended or sig; a wrong name lists them all.
    jpeg
        Store triggered pictures as JPEG of this quality, from 1 to 100, or of a range such as 75-95; PNG if not given.
    same_format
        Store each triggered picture as its honest one is: PNG, BMP, or JPEG of the same quality.
    """
    from disp.attacks.poison import poison as run
    from disp.attacks.poison import poisoned_count
    from disp.attacks.storage import Storage
    from disp.attacks.triggers import PRESETS
    from disp.errors import unknown_name

    if trigger not in PRESETS:
        raise unknown_name("trigger", trigger, PRESETS)
    wanted.check()
    storage = Storage(None if jpeg is None else _range("--jpeg", jpeg), same_format)
    dataset = rows.load(data)
    count = len(dataset.samples)
    with progress_bar("poisoning", count) as advance:
        run(dataset, out, PRESETS[trigger], wanted.planted(), wanted.rate, seed, storage=storage, progress=advance)
    poisoned = poisoned_count(wanted.rate, count)
    print(f"{poisoned} of {count} rows poisoned; see {out / 'manifest.json'}")
    if not poisoned:
        print(f"disp: --rate {wanted.rate:g} of {count} rows is none: the copy is as it was", file=sys.stderr)


@app.command
def check(data: Data, /, *, json: Flag = False, rows: Rows = ROWS) -> None:
    """What a dataset holds and what is wrong with it: rows, pictures, duplicates, rows that cannot be used.

    Parameters
    ----------
    json
        Print the report as JSON.
    """
    from json import dumps

    from disp.data.check import check as run
    from disp.data.loading import load_dataset

    dataset = load_dataset(data, rows.images, **rows.reading())
    rows.check_left_out(dataset)
    with progress_bar("checking pictures", len(dataset.samples)) as advance:
        found = run(dataset, progress=advance)
    print(dumps(found.to_json(), indent=2, ensure_ascii=False) if json else found.to_text())


@app.command
def convert(data: Data, /, *, to: str, out: OutOrURL, rows: Rows = ROWS) -> None:
    """Write a dataset, with its pictures, in another format.

    Parameters
    ----------
    to
        The new format, such as llava, sharegpt, llama-factory, ms-swift, qwen-vl, parquet, huggingface, webdataset or
        imagefolder; a wrong name lists them all.
    """
    from disp.data.convert import convert as run
    from disp.data.convert import written_format
    from disp.data.remote import url_of, written_to

    written_format(to)  # before anything is read
    with written_to(out) as folder:
        dataset = rows.load(data)
        with progress_bar("converting", len(dataset.samples)) as advance:
            found = run(dataset, to, folder, progress=advance)
    list_problems(found.problems)
    for name, count in found.dropped.items():
        print(f"left out the field {shortened(name)!r} of {count} rows, which JSON cannot hold", file=sys.stderr)
    print(f"{found.rows} rows in {f'{url_of(out)}/{found.path.name}' if url_of(out) else found.path}")
