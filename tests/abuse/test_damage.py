"""Files that are cut short or changed: the result is right, or one line names the file and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from abuse.campaign import contents, draws, forked, tried
from abuse.test_kills import CASES, LEARNING, command, not_compared, without_times
from planted import honest_rows, planted_rows, write_rows

from disp.errors import DispError
from disp.models.loading import load_model
from disp.models.saving import save_model
from disp.training.config import TrainConfig
from disp.training.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "data"
    write_rows(folder, [*honest_rows(24), *planted_rows()])
    return folder


def cut(content: bytes, draw: Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flipped(content: bytes, draw: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def zeroed(content: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :]


def headed(content: bytes, draw: Random) -> bytes:
    """Damage near the beginning, where formats keep what they are."""
    changed = bytearray(content)
    changed[draw.randrange(min(600, len(changed)))] = draw.randrange(256)
    return bytes(changed)


DAMAGES: tuple[Callable[[bytes, Random], bytes], ...] = (cut, flipped, zeroed, headed)


def hurt(file: Path, draw: Random) -> None:
    content = file.read_bytes()
    file.write_bytes(draw.choice(DAMAGES)(content, draw) if content else b"\0")


# What a stopped run left, and the command that goes on from it. What is checked must never be believed when it is not
# what was written; of the rest a wrong letter cannot be told from a right one.
LEFT = {
    ("audit", "scores.jsonl"): True,
    ("audit", "answers.jsonl"): True,
    ("audit", "audit-run.json"): True,
    ("audit", "audit.json"): True,
    ("purify", "scores.jsonl"): True,
    ("purify", "responses.jsonl"): True,
    ("purify", "run.json"): True,
    ("purify", "evidence.jsonl"): True,
    ("defend", "audit/scores.jsonl"): True,
    ("defend", "model/recovery.json"): True,
    ("train", "run.json"): True,
    ("train", "train.json"): True,
}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Finished runs, made when they are first asked for."""
    folder = tmp_path_factory.mktemp("finished")

    def of(name: str) -> Path:
        out = folder / name
        if not out.exists():
            ended = forked(command(CASES[name], data, out), folder / "log")
            assert ended.code in (0, 1), ended.said
        return out

    return of


def damage_left(name: str, file: str, data: Path, source: Path, folder: Path, tries: int, seed: int = 0) -> None:
    draw = draws(seed)
    expected = without_times(contents(source, not_compared), source)
    for number in range(tries):
        out = folder / str(number)
        shutil.copytree(source, out, symlinks=True)
        hurt(out / file, draw)
        ended = forked(command(CASES[name], data, out), folder / "log")
        found = without_times(contents(out, not_compared), out) if ended.code in (0, 1) else None
        if found is not None and file.endswith(("scores.jsonl", "answers.jsonl", "responses.jsonl")):
            # Rows that were lost were computed again, behind the others.
            found, wanted = ({**each, file: sorted(each[file].splitlines())} for each in (found, expected))  # type: ignore[attr-defined]
        else:
            wanted = expected
        named = (ended.code == 2 and Path(file).name in ended.error) or "holds" in ended.error
        right = found == wanted or (found is not None and file in ("run.json", "train.json", "audit-run.json"))
        fine = ended.in_one_line and (right or named)
        tried(f"damage: {name} {file}", failed=not fine)
        assert fine, (number, ended.said)
        shutil.rmtree(out)


@pytest.mark.abuse
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "file"), LEFT)
def test_what_a_run_left(name, file, data, finished, tmp_path):
    damage_left(name, file, data, finished(name), tmp_path, 4 if name in ("audit", "defend") else 15)


@pytest.mark.parametrize("file", ["scores.jsonl", "responses.jsonl", "run.json"])
def test_what_a_run_left_a_few(file, data, finished, tmp_path):
    damage_left("purify", file, data, finished("purify"), tmp_path, 3, seed=5)


def damage_report(file: str, source: Path, folder: Path, tries: int) -> None:
    from disp.report.html import write_report

    draw = draws(3)
    for _ in range(tries):
        out = folder / "audit"
        shutil.copytree(source, out)
        hurt(out / file, draw)
        # Lines of evidence have checksums: none that is damaged may be shown.
        unharmed = (out / file).read_bytes() == (source / file).read_bytes()
        fine, told = unharmed or file != "evidence.jsonl", ""
        try:
            write_report(out)
        except DispError as error:
            told = str(error)
            fine = "\n" not in told and file in told
        except Exception as error:
            fine, told = False, repr(error)
        tried(f"damage: report of {file}", failed=not fine)
        assert fine, told
        shutil.rmtree(out)


@pytest.mark.parametrize("file", ["audit.json", "evidence.jsonl"])
@pytest.mark.parametrize("tries", [20, pytest.param(300, marks=pytest.mark.abuse)])
def test_reports(file, tries, data, finished, tmp_path):
    damage_report(file, finished("audit"), tmp_path, tries)


def damage_model(source: Path, file: str, folder: Path, tries: int) -> None:
    draw = draws(11)
    for _ in range(tries):
        out = folder / "model"
        shutil.copytree(source, out)
        hurt(out / file, draw)
        fine, told = True, ""
        try:
            load_model(out)
        except DispError as error:
            told = str(error)
            fine = "\n" not in told.strip()
        except Exception as error:
            fine, told = False, repr(error)
        tried(f"damage: model's {file}", failed=not fine)
        assert fine, told
        shutil.rmtree(out)


FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("tries", [4, pytest.param(60, marks=pytest.mark.abuse)])
def test_models(file, tries, tmp_path):
    save_model(load_model("builtin"), tmp_path / "whole")
    damage_model(tmp_path / "whole", file, tmp_path, tries)


@pytest.mark.parametrize("change", [{"vision": {}}, {"hidden_size": -4}, {"hidden_size": "a"}, {"vision": [1]}])
def test_a_config_with_a_field_of_the_wrong_kind_is_named(change, tmp_path):
    save_model(load_model("builtin"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(DispError, match=r"model '.*model': .*; copy the folder anew") as error:
        load_model(tmp_path / "model")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def adapter(data, tmp_path_factory):
    from disp.data.loading import load_dataset

    out = tmp_path_factory.mktemp("adapter") / "out"
    settings = TrainConfig(steps=1, batch_size=2, method="lora", merge=False)
    train(load_model("builtin"), load_dataset(data).samples[:2], settings, out)
    return out / "adapter"


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "disp.json"])
@pytest.mark.parametrize("tries", [4, pytest.param(60, marks=pytest.mark.abuse)])
def test_adapters(file, tries, adapter, tmp_path):
    damage_model(adapter, file, tmp_path, tries)


@pytest.mark.abuse
@pytest.mark.parametrize("file", ["trainer_state.json", "optimizer.pt", "model.safetensors", "rng_state.pth"])
def test_checkpoints_of_a_training(file, data, finished, tmp_path):
    """A damaged checkpoint is named, so that it can be deleted."""
    draw = draws(2)
    arguments = ["train", "planted", data, "--out", "OUT", "--steps", 8, *LEARNING, "--batch-size", 16]
    for number in range(6):
        out = tmp_path / str(number)
        shutil.copytree(finished("train"), out)
        (out / "train.json").unlink()
        (checkpoint,) = (out / "checkpoints").iterdir()
        hurt(checkpoint / file, draw)
        ended = forked([*arguments[:4], out, *arguments[5:]], tmp_path / "log")
        fine = ended.in_one_line and (ended.code == 0 or "checkpoint" in ended.error)
        tried(f"damage: checkpoint's {file}", failed=not fine)
        assert fine, ended.said
