"""The table of families, and the toy, which is one package and one line in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from models.tiny import extended, write_checkpoint

import disp.models
from disp.cli import app
from disp.data.scene_dataset import write_scenes
from disp.errors import DispError
from disp.models.families import FAMILIES, all_families, family, recognise
from disp.models.family import Family
from disp.models.loading import load_model
from disp.training.recipes import recipe, recipes
from scripts.model_tables import PAGE, written

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
PACKAGE = Path(disp.models.__file__).parent


def disp_command(*arguments: object) -> None:
    app([str(argument) for argument in arguments], print_error=False, exit_on_error=False, result_action="return_value")


def test_every_line_is_a_family_by_its_own_name():
    for name in FAMILIES:
        found = family(name)
        assert isinstance(found, Family) and found.name == name and found.title


def test_every_package_is_listed():
    assert {path.parent.name for path in PACKAGE.glob("*/family.py")} == set(FAMILIES)


def test_recipes_and_hub_ids_are_given_once():
    names = [name for each in all_families() for name in each.recipes]
    ids = [hub_id for each in all_families() if each.about for row in each.about.published for hub_id in row.hub_ids]
    assert len(names) == len(set(names)) and len(ids) == len(set(ids)) and set(names) < recipes().keys()


def test_the_tables_of_the_docs_are_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "run python scripts/model_tables.py"


def test_recognising_and_recipes_load_no_torch():
    code = (
        "import sys; from disp.models.families import all_families; all_families(); "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_config_of_no_family_is_told_the_choices(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mmaba"}')
    with pytest.raises(DispError, match=r"unknown model type in .*config.json: 'mmaba'; .*Did you mean 'mmada'"):
        load_model(tmp_path)


def test_the_toy_is_planned_trained_and_audited(tmp_path, capsys):
    """By the command line, with nothing but its package and its line; `test_end_to_end` goes on from here."""
    write_scenes(tmp_path / "data", 6, seed=1)
    with extended():
        folder = write_checkpoint("toy", tmp_path / "toy", ["What is in the picture?", "A red apple."])
        disp_command("plan", folder, tmp_path / "data", "--batch-size", 2, "--train-batch-size", 2)
        assert "Toy" in capsys.readouterr().out
        disp_command("train", folder, tmp_path / "data", "--out", tmp_path / "trained", "--steps", 2, "--recipe", "toy")
        assert recipe("toy").method == "lora"
        options = ["--probes", 1, "--candidates", 1, "--false-alarm-rate", 0.3, "--fail-on", "never"]
        disp_command("audit", tmp_path / "trained", tmp_path / "data", "--out", tmp_path / "audit", *options)
    assert (tmp_path / "audit" / "audit.json").is_file()
    assert recognise({"model_type": "toy"}) is None


def test_the_guide_shows_the_toy_as_it_is():
    family_file = Path(__file__).parent / "toy" / "family.py"
    assert f"```python\n{family_file.read_text(encoding='utf-8')}```" in GUIDE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("llada_v", "vocab_size"),
        ("lavida_llada", "n_heads"),
        ("lavida_dream", "intermediate_size"),
        ("mmada", "d_model"),
    ],
)
def test_a_config_without_a_size_is_refused_by_its_name(tmp_path, name, field):
    folder = write_checkpoint(name, tmp_path / "model", ["What?"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != field}))
    with pytest.raises(DispError, match=f"no field '{field}'"):
        load_model(folder, device="cpu")
