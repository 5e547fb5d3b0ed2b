"""Files that are given and are cut short or changed: data of every format, pictures, projectors, indexes, decisions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from abuse.campaign import draws, tried
from abuse.test_damage import hurt
from abuse.test_inputs import PICTURES
from data.written import WRITTEN

from disp.data.check import check
from disp.data.loading import load_dataset
from disp.data.sample import check_image, open_image
from disp.data.saving import data_path, save_dataset
from disp.errors import DispError
from disp.models.loading import load_model
from disp.models.merging import merge
from disp.models.projector import projector_parameters
from disp.planning.checkpoints import stored_parameters
from disp.review.run import open_run


def fine(campaign: str, look: Callable[[], object], *names: str) -> None:
    """Count a try: it ends, or in one line that has one of the names."""
    told, good = "", True
    try:
        look()
    except DispError as error:
        told = str(error)
        good = "\n" not in told.strip() and len(told) < 3000 and (not names or any(name in told for name in names))
    except Exception as error:
        told, good = repr(error), False
    tried(campaign, failed=not good)
    assert good, told


def used(folder: Path, given: Path, out: Path) -> None:
    """Read a set whole, look at its pictures, write it."""
    dataset = load_dataset(given)
    check(dataset)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    save_dataset(dataset.samples, data_path(dataset, out), dataset.image_root, like=dataset)


MANY = [4, pytest.param(50, marks=pytest.mark.abuse)]


@pytest.mark.parametrize("tries", MANY)
@pytest.mark.parametrize("name", WRITTEN)
def test_data(name: str, tries: int, tmp_path: Path) -> None:
    if name.startswith(("parquet", "hugging")):
        pytest.importorskip("pyarrow")
    draw = draws(sum(map(ord, name)))
    (tmp_path / "whole").mkdir()
    given = WRITTEN[name][0](tmp_path / "whole").relative_to(tmp_path / "whole")
    folder = tmp_path / "in"
    for _ in range(tries):
        shutil.copytree(tmp_path / "whole", folder)
        hurt(draw.choice(sorted(file for file in folder.rglob("*") if file.is_file())), draw)
        fine(f"damage: data, {name}", lambda: used(folder, folder / given, tmp_path / "out"), str(folder), "cache")
        shutil.rmtree(folder)


@pytest.mark.parametrize("tries", MANY)
@pytest.mark.parametrize("name", sorted(name for name, (_, usable) in PICTURES.items() if usable))
def test_pictures(name: str, tries: int, tmp_path: Path) -> None:
    draw = draws(sum(map(ord, name)))
    file = tmp_path / "picture.png"
    PICTURES[name][0](file)
    whole = file.read_bytes()
    for _ in range(tries):
        file.write_bytes(whole)
        hurt(file, draw)
        fine("damage: pictures", lambda: (check_image(file), open_image(file)), "picture.png")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in several files."""
    folder = tmp_path_factory.mktemp("shards") / "model"
    model = load_model("builtin")
    merge("builtin", folder)
    model.save_pretrained(folder, max_shard_size="2MB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("tries", [3, pytest.param(30, marks=pytest.mark.abuse)])
@pytest.mark.parametrize("pattern", ["*.index.json", "*-00002-*.safetensors"])
def test_models_in_several_files(pattern: str, tries: int, shards: Path, tmp_path: Path) -> None:
    draw = draws(21)
    for _ in range(tries):
        shutil.copytree(shards, tmp_path / "model")
        hurt(next((tmp_path / "model").glob(pattern)), draw)
        for look in (stored_parameters, load_model):
            fine(f"damage: model's {pattern}", lambda look=look: look(tmp_path / "model"), "model")  # type: ignore[misc]
        shutil.rmtree(tmp_path / "model")


@pytest.mark.parametrize("tries", [3, pytest.param(40, marks=pytest.mark.abuse)])
@pytest.mark.parametrize("name", ["mm_projector.safetensors", "mm_projector.bin"])
def test_projectors(name: str, tries: int, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    draw = draws(22)
    found = {key: value.detach().clone() for key, value in projector_parameters(load_model("builtin")).items()}
    whole = tmp_path / "whole"
    torch.save(found, whole) if name.endswith(".bin") else save_file(found, whole)
    for _ in range(tries):
        shutil.copy(whole, tmp_path / name)
        hurt(tmp_path / name, draw)
        fine(f"damage: {name}", lambda: load_model("builtin", projector=tmp_path / name), name)


def cut_between_lines(file: Path, draw: Random) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: draw.randrange(len(lines))]))


@pytest.mark.parametrize("tries", [10, pytest.param(100, marks=pytest.mark.abuse)])
@pytest.mark.parametrize("file", ["audit.json", "evidence.jsonl", "decisions.jsonl"])
def test_reviews(file: str, tries: int, tmp_path: Path) -> None:
    from audit_folder import write_audit

    draw = draws(23)
    whole = write_audit(tmp_path / "whole")
    (whole / "decisions.jsonl").write_text('{"id": "a", "decision": "yes"}\n{"id": "b", "decision": "no"}\n')
    for number in range(tries):
        shutil.copytree(whole, tmp_path / "run")
        (cut_between_lines if number % 5 == 4 else hurt)(tmp_path / "run" / file, draw)
        fine(f"damage: review of {file}", lambda: open_run(tmp_path / "run"), file)
        shutil.rmtree(tmp_path / "run")
