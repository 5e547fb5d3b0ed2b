"""Poisoning a fine-tuning set, with a manifest of all that was done."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from disp.attacks.storage import Storage
from disp.attacks.targets import Target, target_from_dict, target_to_dict
from disp.attacks.triggers import Trigger, trigger_from_dict, trigger_to_dict
from disp.data.dataset import Dataset
from disp.data.loading import load_dataset
from disp.data.sample import ImageSource, Query, Sample, open_image, queries_of
from disp.data.saving import data_path, name_in_copy, place, save_dataset
from disp.data.stored import check_apart, check_pictures_apart, data_sha256
from disp.draws import generator, key_of
from disp.errors import DispError
from disp.files import UNFINISHED, begin, check_unused, finish, sha256, write_json
from disp.locks import alone
from disp.typed import typed

# Every pixel as the trigger left it.
AS_PNG = Storage()


@dataclass(frozen=True)
class Attack:
    """What a manifest says about an attack.

    Attributes:
        trigger: what was put into pictures.
        target: what answers became.
        rate: share of the rows that was poisoned, in [0, 1].
        seed: of the choice of rows, the trigger's place and what storing draws.
        storage: how triggered pictures were stored; manifests of older versions do not say it.
    """

    trigger: Trigger
    target: Target
    rate: float
    seed: int
    storage: Storage = AS_PNG


def check_rate(rate: float) -> None:
    """Raise `DispError` where a share of rows is not in [0, 1]."""
    if not 0 <= rate <= 1:
        raise DispError(f"poison rate must be in [0, 1], got {rate}")


def poisoned_count(rate: float, rows: int) -> int:
    """How many of so many rows are poisoned: the nearest whole number, of two as near the larger one.

    A rate such as 0.29, which floating point holds a little too small, counts as what it is written as.
    """
    return math.floor(rate * rows * (1 + 1e-12) + 0.5)


@alone
def poison(
    dataset: Dataset,
    out: Path,
    trigger: Trigger,
    target: Target,
    rate: float,
    seed: int = 0,
    *,
    storage: Storage = AS_PNG,
    progress: Callable[[int], None] = lambda count: None,
) -> Dataset:
    """Write a copy of a dataset in which a share of the rows is poisoned.

    ``out`` receives the data file in the input's format, all images (triggered ones written anew, the others linked
    or copied) and ``manifest.json``: which rows, trigger, place, seed, format of the pictures, hashes, old and new
    answers. No other file marks the poisoned rows, with one exception: a picture whose format changes, or that an
    honest row shares, changes its name.
    Answers given before a picture is shown stay honest: the target would be learnt without its trigger.

    Args:
        dataset: the honest set.
        out: a folder without a dataset. What a killed run left in its ``images`` is replaced.
        trigger: what is put into the pictures of a poisoned row.
        target: what its answers become.
        rate: share of all rows in [0, 1]; see `poisoned_count`.
        seed: seed of the choice of rows and of the trigger's place.
        storage: how triggered pictures are stored.
        progress: called with the number of rows finished.

    Raises:
        DispError: the rate is out of range, too few rows are eligible, an image is no file, or of a format that
            triggered pictures cannot have, the trigger is of no kind that a manifest can hold, or ``out`` holds a
            dataset, a model or honest images, or is the data's own folder.
    """
    check_rate(rate)
    if not (out / UNFINISHED).exists():
        if (out / "manifest.json").exists():
            raise DispError(f"{out} holds a poisoned dataset already; choose another folder or delete it")
        check_unused(out)
    attack = {"trigger": trigger_to_dict(trigger), "target": target_to_dict(target)}
    if (out / "images").resolve() == dataset.image_root.resolve():
        raise DispError(f"{out / 'images'} holds the honest images, which must not be changed; choose another folder")
    check_apart(dataset, out)
    check_pictures_apart(dataset, out / "images")
    wanted = poisoned_count(rate, len(dataset.samples))
    eligible = [sample for sample in dataset.samples if _is_eligible(sample, target)]
    if len(eligible) < wanted:
        raise DispError(
            f"a poison rate of {rate:g} needs {wanted} rows with an image and an answer about it that the target "
            f"changes; {dataset.path} has {len(eligible)}; lower the rate or add such rows"
        )
    order = generator(seed, "poisoned rows").permutation(len(eligible))
    poisoned = [eligible[index] for index in order[:wanted]]
    storage.check(path for sample in poisoned for path in _image_files(sample))
    begin(out, "poison")
    chosen = {sample.id for sample in poisoned}
    # How many pictures would have each name if a trigger was put into all of them.
    uses = Counter(
        _spelt_alike(storage.named(name_in_copy(dataset.image_root, path)))
        for sample in dataset.samples
        for path in _image_files(sample)
    )
    rows: list[dict[str, Any]] = []
    samples = []
    for sample in dataset.samples:
        if sample.id in chosen:
            sample, row = _poison_sample(
                sample, dataset.image_root, out / "images", trigger, target, seed, storage, uses
            )
            rows.append(row)
        else:
            sample = replace(
                sample, images=tuple(_link(path, dataset.image_root, out / "images") for path in _image_files(sample))
            )
        samples.append(sample)
        progress(1)
    path = data_path(dataset, out)
    save_dataset(samples, path, out / "images", like=dataset)
    write_json(
        out / "manifest.json",
        {
            **attack,
            "rate": rate,
            "seed": seed,
            "storage": asdict(storage),
            "rows": len(samples),
            "poisoned": len(rows),
            "source_sha256": data_sha256(dataset),
            "data_sha256": sha256(path),
            "poisoned_rows": rows,
        },
    )
    finish(out)
    return load_dataset(path, out / "images")


def load_attack(manifest: Path) -> Attack:
    """The attack that a manifest describes.

    Raises:
        DispError: the file is missing or no manifest.
    """
    try:
        fields = json.loads(manifest.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise DispError(f"it must hold an object, not a {type(fields).__name__}")
        known = {name: fields[name] for name in ("rate", "seed", "storage") if name in fields}
        for name, read in (("trigger", trigger_from_dict), ("target", target_from_dict)):
            known[name] = read(fields.get(name))
        return typed(Attack, known, "the manifest")
    except FileNotFoundError:
        raise DispError(f"{manifest}: no such manifest; `disp poison` writes it as manifest.json") from None
    except (OSError, ValueError, RecursionError, DispError) as error:
        raise DispError(
            f"{manifest} is no manifest of `disp poison`; give the manifest.json that it wrote: {error}"
        ) from None


def trigger_samples(
    samples: Sequence[Sample], trigger: Trigger, seed: int, *, storage: Storage = AS_PNG
) -> list[Sample]:
    """The same samples with triggered pictures in memory and their honest answers, for measuring an attack.

    Args:
        samples: held-out samples.
        trigger: what is put into their pictures.
        seed: of the trigger's place, and of what storing draws.
        storage: how the triggered pictures that the model learnt from were stored. These look as if stored alike.

    Raises:
        DispError: a picture cannot be read, or is of a format that ``storage`` cannot write.
    """

    def triggered(sample: Sample, index: int, source: ImageSource) -> Image.Image:
        marked, _ = _apply(sample, index, source, trigger, seed)
        return storage.round_trip(marked, source, _quality_draw(sample, index, seed))

    return [
        replace(sample, images=tuple(triggered(sample, index, source) for index, source in enumerate(sample.images)))
        for sample in samples
    ]


def _is_eligible(sample: Sample, target: Target) -> bool:
    return any(is_changed(query, target) for query in queries_of([sample]))


def is_changed(query: Query, target: Target) -> bool:
    """Whether an attack changes the answer to this turn: one that sees a picture, and that the target applies to."""
    return bool(query.images) and target.applies_to(query.response)


def _quality_draw(sample: Sample, index: int, seed: int) -> np.random.Generator:
    return generator(seed, "jpeg quality", sample.id, index)


def _apply(
    sample: Sample, index: int, source: ImageSource, trigger: Trigger, seed: int
) -> tuple[Image.Image, dict[str, Any]]:
    return trigger.apply(open_image(source), generator(seed, "trigger", sample.id, index))


def _poison_sample(
    sample: Sample,
    image_root: Path,
    folder: Path,
    trigger: Trigger,
    target: Target,
    seed: int,
    storage: Storage,
    uses: Counter[Path],
) -> tuple[Sample, dict[str, Any]]:
    images, records = [], []
    for index, source in enumerate(_image_files(sample)):
        marked, record = _apply(sample, index, source, trigger, seed)
        # The picture keeps its name, which then tells nothing, unless another row needs that name for its own.
        name = storage.named(name_in_copy(image_root, source))
        if uses[_spelt_alike(name)] > 1:
            name = name.with_stem(f"{name.stem}-{key_of(seed, 'name', sample.id, index):016x}")
        path = folder / name
        stored = storage.save(marked, source, path, _quality_draw(sample, index, seed))
        images.append(path)
        records.append(
            {
                "image": path.relative_to(folder).as_posix(),
                "clean_sha256": sha256(source),
                "triggered_sha256": sha256(path),
                **stored,
                **record,
            }
        )
    answers = [
        target.apply(query.response) if is_changed(query, target) else query.response for query in queries_of([sample])
    ]
    row = {
        "id": sample.id,
        "images": records,
        "old": [turn.response for turn in sample.turns],
        "new": answers,
    }
    return replace(sample.with_responses(answers), images=tuple(images)), row


def _spelt_alike(name: Path) -> Path:
    """The name with its ending in small letters: some file systems know no others."""
    return name.with_suffix(name.suffix.lower())


def _image_files(sample: Sample) -> tuple[Path, ...]:
    for source in sample.images:
        if not isinstance(source, Path):
            raise DispError(f"sample {sample.id!r} has a picture in memory; only pictures in files can be poisoned")
    return cast(tuple[Path, ...], sample.images)


def _link(source: Path, image_root: Path, folder: Path) -> Path:
    path = folder / name_in_copy(image_root, source)
    place(source, path)
    return path
