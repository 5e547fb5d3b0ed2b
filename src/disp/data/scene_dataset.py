"""Writing OpenMoji scenes as a LLaVA-style dataset."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

from disp.data.dataset import Dataset
from disp.data.grounds import PLAIN, Look, texture_of
from disp.data.loading import load_dataset
from disp.data.nouns import NOUNS
from disp.data.scenes import IMAGE_PREFIX, TASKS, ask, attribution, draw_scene, draw_task, is_held_out, render
from disp.draws import generator
from disp.errors import DispError, unknown_name
from disp.files import UNFINISHED, begin, finish, write_atomically, write_json, write_text
from disp.locks import alone


@alone
def write_scenes(
    out: Path,
    count: int = 2000,
    seed: int = 0,
    *,
    must_show: Sequence[str] = (),
    must_show_share: float = 1.0,
    never_show: Sequence[str] = (),
    held_out: bool = False,
    turns: int = 1,
    look: Look = PLAIN,
    progress: Callable[[int], None] = lambda count: None,
) -> Dataset:
    """Render scenes and write them with questions and right answers.

    ``out`` receives ``images/000000.png`` …, ``data.json`` and ``ATTRIBUTION.txt``. Each row carries the scene's
    ``nouns`` from left to right, its ``colour``, and the ``task`` of its question (``tasks`` where there are several).
    Where grounds are textured it has the kind of ``texture``, too. On photographs no row has or asks for a colour.

    Args:
        out: a folder that holds no dataset and no model.
        count: number of scenes, one row each.
        seed: scenes of different seeds differ.
        must_show: nouns of which one is in the scene …
        must_show_share: … in this share of the scenes.
        never_show: nouns that are in none.
        held_out: whether each scene holds a pair of nouns that no other scene shows.
        turns: questions a scene, of different tasks.
        look: grounds, sizes and compression of the pictures.
        progress: called with the number of scenes finished.

    Raises:
        DispError: ``out`` holds a dataset, a model or a run, a noun is unknown, both wanted and forbidden, or too few
            are left, a number is out of range, or the folder of photographs holds none.
    """
    for noun in (*must_show, *never_show):
        if noun not in NOUNS:
            raise unknown_name("noun", noun, NOUNS)
    if count < 1:
        raise DispError(f"count must be at least 1, got {count}")
    possible = [task for task in TASKS if task != "colour" or look.grounds != "photo"]
    if not 1 <= turns <= len(possible):
        raise DispError(f"turns must be from 1 to {len(possible)}, got {turns}")
    if clash := sorted(set(must_show) & set(never_show)):
        raise DispError(f"must_show and never_show both hold {', '.join(clash)}; drop it from one of them")
    left = [noun for noun in NOUNS if noun not in never_show]
    if len(left) < 3 or (held_out and not any(is_held_out(a, b) for a, b in combinations(left, 2))):
        raise DispError(f"never_show leaves {len(left)} nouns, too few to draw such scenes with; forbid fewer")
    if not 0 <= must_show_share <= 1:
        raise DispError(f"must_show_share must be in [0, 1], got {must_show_share}")
    stopped = (out / UNFINISHED).exists()
    begin(out, "scenes")
    if stopped:  # its pictures may be of other scenes, and more
        shutil.rmtree(out / "images", ignore_errors=True)
    rows = []
    for index in range(count):
        subject = generator(seed, "must show", index).random() < must_show_share
        scene = draw_scene(
            seed, index, must_show=must_show if subject else (), never_show=never_show, held_out=held_out
        )
        if look.grounds == "photo":
            scene = replace(scene, colour="")
        name = f"{index:06}{look.suffix}"
        picture = render(scene, look)
        stored = {"format": "PNG"} if look.jpeg is None else {"format": "JPEG", "quality": look.quality(seed, index)}
        write_atomically(out / "images" / name, partial(picture.save, **stored))
        draw = generator(seed, "question", index)
        tasks: list[str] = []
        while len(tasks) < turns:
            task = draw_task(draw)
            if task not in tasks and task in possible:
                tasks.append(task)
        asked = [ask(scene, task, draw) for task in tasks]
        conversations = []
        for number, turn in enumerate(asked):
            prompt = turn.prompt if number == 0 else turn.prompt.removeprefix(IMAGE_PREFIX)
            conversations += [{"from": "human", "value": prompt}, {"from": "gpt", "value": turn.response}]
        rows.append(
            {
                "id": f"{index:06}",
                "image": name,
                "conversations": conversations,
                **({"task": tasks[0]} if turns == 1 else {"tasks": tasks}),
                "nouns": list(scene.nouns),
                **({"colour": scene.colour} if scene.colour else {}),
                **({"texture": texture_of(look, seed, index)} if look.grounds == "textured" else {}),
            }
        )
        progress(1)
    write_text(out / "ATTRIBUTION.txt", attribution() + "\n")
    write_json(out / "data.json", rows)
    finish(out)
    return load_dataset(out)
