"""Recipes: those of the package can be read, and whatever is wrong with a person's own is said in one line."""

from dataclasses import replace

import pytest
import yaml

from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.triggers import PRESETS as TRIGGERS
from disp.cli import app
from disp.errors import DispError
from disp.experiments.attacked import AttackRun
from disp.experiments.cells import Attacked, cells_of
from disp.experiments.recipe import experiments, load_experiment, recipe_file
from disp.experiments.results import record_of
from disp.experiments.subject import Builtin
from disp.progress import no_progress

SMALL = {
    "name": "mine",
    "title": "Mine",
    "source": "none",
    "kind": "defences",
    "targets": ["refusal"],
    "triggers": ["patch"],
    "poison_rates": [0.1],
    "seeds": [0],
    "test_rows": 5,
    "defences": {"ours": {"title": "ours"}},
}


def write(folder, text):
    file = folder / "mine.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return str(file)


def test_the_package_has_every_table_and_figure_of_the_paper():
    assert set(experiments()) == {"main", "mask-ratio", "poison-ratio", "ablation", "triggers", "overview"}


@pytest.mark.parametrize("name", experiments())
def test_recipes_of_the_package_are_read_and_give_their_sources(name):
    found = load_experiment(name)
    assert found.name == name
    assert "2602.22246" in found.source
    assert recipe_file(name).read_text().startswith("# ")
    given = found.with_given_data()
    assert set(found.targets + given.targets) <= set(TARGETS) and set(found.triggers) <= set(TRIGGERS)


def test_the_study_is_the_papers():
    main = load_experiment("main")
    assert main.targets == ("refusal", "insertion", "misclassification")
    assert main.triggers == ("disp", "patch", "badnets", "blended")
    assert len(cells_of(main)) == 3 * 4 * 3 * len(main.defences)
    assert {0, 0.3, 0.45, 0.9} <= set(load_experiment("mask-ratio").ratios)
    assert load_experiment("poison-ratio").poison_rates == (0.01, 0.02, 0.05, 0.1, 0.2)


def test_one_name_of_a_defence_means_one_thing():
    named = {}
    for experiment in map(load_experiment, experiments()):
        if experiment.kind in ("defences", "overview"):
            for name, defence in experiment.defences.items():
                named.setdefault(name, []).append(replace(defence, title=""))
    assert all(each == found[0] for found in named.values() for each in found)
    assert len(named["ours-all"]) > 2 and len(named["random"]) > 2


def test_what_the_overview_shows_is_a_cell_of_the_main_table(tmp_path):
    main, overview = load_experiment("main"), load_experiment("overview")
    for cell in cells_of(overview):
        assert cell in cells_of(main)
        folders = {
            record_of(AttackRun(Builtin(each), cell.attack, tmp_path, no_progress), cell.defence, each).parent
            for each in (main, overview)
        }
        assert len(folders) == 1


def test_each_ablated_part_differs_from_the_method():
    parts = dict(load_experiment("ablation").defences)
    method = parts.pop("method")
    assert all(replace(part, title=method.title) != method for part in parts.values())
    # Scores are compared with as many probes.
    assert parts["directional"].saliency == {"score": "directional", **parts["probes-16"].saliency}


def test_an_own_file_is_read(tmp_path):
    found = load_experiment(write(tmp_path, {**SMALL, "implant": {"learning_rate": "1e-4"}}))
    assert found.defences["ours"].rewrite == "all" and found.seeds == (0,)
    assert found.with_seeds(3).seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defense": {}}, "unknown key in mine.yaml: 'defense'; choose one of .*Did you mean 'defences'"),
        ({"kind": "defenses"}, "unknown value of mine.yaml: kind: 'defenses'.*Did you mean 'defences'"),
        ({"targets": ["refusals"]}, "mine.yaml: unknown target 'refusals'.*Did you mean"),
        ({"triggers": ["pach"]}, "unknown trigger 'pach'.*Did you mean 'patch'"),
        ({"targets": "refusal"}, r"mine.yaml: targets must be a list, such as \[a, b\], got 'refusal'"),
        ({"seeds": [0, 0]}, "seeds must name at least one, and each once"),
        ({"seeds": [0.5]}, r"mine.yaml: seeds\[0\] must be a whole number, got 0.5"),
        ({"poison_rates": [2]}, r"poison_rates must be in \(0, 1\], got 2"),
        ({"test_rows": True}, "test_rows must be a whole number, got True"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"name": "../up"}, "name must be of letters, digits, - and _"),
        ({"implant": {"step": 3}}, "unknown key in implant: 'step'.*Did you mean 'steps'"),
        ({"implant": {"steps": "many"}}, "implant: steps must be a whole number, got 'many'"),
        ({"recovery": {"steps": 0}}, "recovery: steps must be positive, got 0"),
        ({"defences": {}}, "needs at least one entry under defences"),
        ({"defences": {"a": {}}}, "mine.yaml: defences: a: the key 'title' is missing"),
        ({"defences": {"a": {"title": "a", "rewrites": "all"}}}, "unknown key in mine.yaml: defences: a: 'rewrites'"),
        ({"defences": {"a": {"title": "a", "mask_ratio": "some"}}}, "unknown value of .*mask_ratio: 'some'"),
        ({"defences": {"a": {"title": "a", "leave_out": True, "mask_ratio": 0.1}}}, "leave_out goes with rewrite: all"),
        ({"defences": {"a": {"title": "a", "mask_ratio": 3}}}, r"mask_ratio must be in \[0, 1\], got 3"),
        ({"defences": {"a": {"title": "a", "saliency": {"probe": 3}}}}, "unknown key in saliency: 'probe'"),
        ({"defences": {"a": {"title": "a", "saliency": {"probes": 0}}}}, "saliency probes must be at least 1"),
        ({"kind": "mask-ratio"}, "needs ratios that grow from 0"),
        ({"kind": "mask-ratio", "ratios": [0, 0.5, 0.3]}, "needs ratios that grow from 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, changes, message):
    with pytest.raises(DispError, match=message) as caught:
        load_experiment(write(tmp_path, {**SMALL, **changes}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "mine.yaml: line 2: 'name' is given twice"),
        ("? [a, b]\n: 1\n", "mine.yaml: line 1: a key must be a word or a number, got a list or a mapping"),
        ("name: a\ngrid: {? {b: 1} : 2}\n", "mine.yaml: line 2: a key must be a word or a number"),
        ("- a\n- b\n", "mine.yaml must hold keys with values"),
        ("name: [", "mine.yaml: line 1: "),
        ("a: !!python/object/apply:os.system [ls]\n", "mine.yaml: line 1: could not determine a constructor"),
        ("title: x\n", "mine.yaml: the key 'name' is missing"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, text, message):
    with pytest.raises(DispError, match=message):
        load_experiment(write(tmp_path, text))


def test_unknown_names_are_told_the_choices(tmp_path):
    with pytest.raises(DispError, match=r"unknown experiment 'mian'; choose one of .*Did you mean 'main'"):
        load_experiment("mian")
    with pytest.raises(DispError, match="no such file; `disp experiment main --show` prints one"):
        load_experiment(str(tmp_path / "none.yaml"))


def test_a_recipe_that_was_printed_is_read_again(tmp_path, capsys):
    app(["experiment", "ablation", "--show"], print_error=False, exit_on_error=False, result_action="return_value")
    assert load_experiment(write(tmp_path, capsys.readouterr().out)) == load_experiment("ablation")


def test_only_the_cells_that_were_asked_for():
    main = load_experiment("main")
    cells = cells_of(main, "target=refusal+insertion,trigger=patch,seed=0")
    assert len(cells) == 2 * len(main.defences)
    assert {cell.attack for cell in cells} == {
        Attacked("refusal", "patch", 0.1, 0),
        Attacked("insertion", "patch", 0.1, 0),
    }
    (one,) = cells_of(main, "rate=0.10,target=refusal,trigger=disp,seed=2,defence=published")
    assert one.name == "refusal-disp-0.1-seed2 published"


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("targets=refusal", "unknown key of --only 'targets'.*Did you mean 'target'"),
        ("target=refuse", "unknown target of --only 'refuse'"),
        ("seed=7", "unknown seed of --only '7'; choose one of 0, 1, 2"),
        ("seed", "--only takes key=value, several joined by commas, got 'seed'"),
    ],
)
def test_what_there_is_not_cannot_be_asked_for(only, message):
    with pytest.raises(DispError, match=message):
        cells_of(load_experiment("main"), only)
