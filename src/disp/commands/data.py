"""Making data: scenes to try things on, and poisoned sets to measure defences with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from disp.commands.options import ROWS, Data, Out, Rows, Seed, Several, app
from disp.progress import progress_bar


@app.command
def scenes(
    *,
    out: Out,
    count: int = 2000,
    seed: Seed = 0,
    turns: int = 1,
    held_out: Annotated[bool, Parameter(negative=())] = False,
    must_show: Annotated[list[str] | None, Several] = None,
    must_show_share: float = 1.0,
) -> None:
    """Draw OpenMoji scenes with questions and answers: PNG pictures and LLaVA JSON.

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

    with progress_bar("drawing scenes", count) as advance:
        write_scenes(
            out,
            count,
            seed,
            turns=turns,
            held_out=held_out,
            must_show=tuple(must_show or ()),
            must_show_share=must_show_share,
            progress=advance,
        )
    print(f"{count} scenes in {out}\n{attribution()}")


@app.command
def poison(
    data: Data,
    /,
    *,
    out: Out,
    trigger: str = "patch",
    target: Literal["refusal", "insertion", "misclassification"] = "refusal",
    rate: float = 0.1,
    source: str | None = None,
    swap_to: str | None = None,
    text: str | None = None,
    seed: Seed = 0,
    rows: Rows = ROWS,
) -> None:
    """Plant a trigger and a target in a share of the rows, into a new folder with a manifest.

    Parameters
    ----------
    trigger
        A preset, such as patch, patch-random, object, badnets, blended or sig; a wrong name lists them all.
    target
        What the attacker wants said.
    rate
        Share of the rows to poison, in [0, 1].
    source
        Misclassification: the noun to misname, car by default.
    swap_to
        Misclassification: what to call it, banana by default.
    text
        Insertion or refusal: the text, if not BackdoorVLM's.
    """
    from disp.attacks.poison import poison as run
    from disp.attacks.targets import Insertion, Misclassification, Refusal
    from disp.attacks.triggers import PRESETS
    from disp.errors import DispError, unknown_name

    if trigger not in PRESETS:
        raise unknown_name("trigger", trigger, PRESETS)
    if target == "misclassification" and text is not None:
        raise DispError("--text is for an insertion or a refusal; a misclassification has --source and --swap-to")
    if target != "misclassification" and (source, swap_to) != (None, None):
        raise DispError("--source and --swap-to are for --target misclassification")
    makers: dict[str, Callable[[], Any]] = {
        "refusal": lambda: Refusal() if text is None else Refusal(text),
        "insertion": lambda: Insertion() if text is None else Insertion(text),
        "misclassification": lambda: Misclassification(source or "car", swap_to or "banana"),
    }
    dataset = rows.load(data)
    with progress_bar("poisoning", len(dataset.samples)) as advance:
        run(dataset, out, PRESETS[trigger], makers[target](), rate, seed, progress=advance)
    print(f"{round(rate * len(dataset.samples))} of {len(dataset.samples)} rows poisoned; see {out / 'manifest.json'}")
