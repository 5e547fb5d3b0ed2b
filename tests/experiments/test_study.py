"""An experiment from beginning to end at tiny size: cells, what they share, resumption, what is written."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from disp.cli import app
from disp.data.scene_dataset import write_scenes
from disp.errors import DispError
from disp.experiments import attacked, defended, sweep
from disp.experiments.cells import Attacked, cells_of
from disp.experiments.estimate import estimates, measured_rates
from disp.experiments.recipe import Defence, Experiment
from disp.experiments.scenes import tuning_scenes
from disp.experiments.settings import DemoConfig
from disp.experiments.study import run_experiment
from disp.experiments.subject import Builtin, subject_of
from disp.files import write_json
from disp.locks import waiting_for
from disp.models.hub import BUILTIN
from disp.models.loading import load_model
from disp.models.saving import save_model
from disp.suspicion.config import SCORING_PROBES

# Trains five times; a machine that is busy with other things takes longer.
pytestmark = pytest.mark.timeout(900)

TRAINING = {"steps": 1, "batch_size": 2}
SMALL = Experiment(
    name="small",
    title="Small",
    source="none",
    kind="defences",
    targets=("refusal",),
    triggers=("patch",),
    poison_rates=(0.25,),
    seeds=(0,),
    rows=16,
    test_rows=3,
    implant=TRAINING,
    recovery=TRAINING,
    defences={
        "random": Defence("random masking", "random", mask_ratio=0.1),
        "least": Defence("least salient", ranking="least", mask_ratio=0.1, substitute="left out"),
        "answering": Defence("masked inference", "while answering", mask_ratio=0.1, saliency={"probes": 1}),
        "nothing": Defence("no rewriting", "nothing", start="original"),
    },
)
SWEEP = replace(
    SMALL,
    name="swept",
    kind="mask-ratio",
    ratios=(0.0, 0.5),
    sweep_rows=3,
    defences={"ours": Defence("ours"), "random": Defence("random", "random")},
)
PICTURES = replace(SMALL, name="pictures", kind="triggers", defences={"ours": Defence("ours")})
OVERVIEW = replace(SMALL, name="way", kind="overview", defences={"random": SMALL.defences["random"]})


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder with all four kinds of experiment on one attack."""
    folder = tmp_path_factory.mktemp("experiments")
    for experiment in (SMALL, SWEEP, PICTURES, OVERVIEW):
        run_experiment(experiment, Builtin(experiment), folder, command="disp experiment small")
    return folder


def results(out, name):
    return json.loads((out / name / "results.json").read_text())


def test_one_implant_and_one_set_of_scenes_serve_all(out):
    (attack,) = (out / "attacks").iterdir()
    assert attack.name.startswith("refusal-patch-0.25-seed0-")
    assert sorted(each.name for each in (out / "scenes").iterdir() if each.is_dir()) == [
        "test-3-seed0",
        "tuning-16-seed0",
    ]
    seconds = json.loads((attack / "seconds.json").read_text())
    assert seconds["implant"]["units"] == 1
    assert seconds["measure"]["units"] == 2 * 2 * SMALL.test_rows  # the clean and the backdoored model, once each
    # Random masking scores nothing of its own: one file of saliency serves all defences with the usual estimator.
    assert len(list((attack / "scores").glob("*.jsonl"))) == 1


def test_results_hold_cells_with_counts_and_what_they_depend_on(out):
    found = results(out, "small")
    assert [cell["defence"] for cell in found["cells"]] == list(SMALL.defences)
    assert found["missing"] == [] and found["commands"] == ["disp experiment small"]
    assert found["recipe"]["test_rows"] == 3 and len(found["model"]["weights"]) == 64
    assert {"processor", "cores", "threads"} <= found["hardware"].keys()
    assert {"disp-mdlm", "torch"} <= found["versions"].keys()
    (attack,) = found["attacks"]
    assert attack["poisoned"] == 4 and len(attack["data_sha256"]) == 64
    weights = set()
    for cell in found["cells"]:
        metrics = cell["found"]["metrics"]
        assert metrics["counts"]["asr_with_trigger"] == 3
        assert cell["found"]["made"]["date"].endswith("UTC")
        weights.add(cell["found"]["weights"])
    assert len(weights) >= 3  # recovered from the backdoored model, from the original one, and the compromised one
    random, _, answering, _ = found["cells"]
    assert random["found"]["rewriting"]["rows"] == 16
    assert (random["found"]["rewriting"]["precision"]["hits"], random["found"]["rewriting"]["recall"]["value"]) == (
        4,
        1,
    )
    assert answering["found"]["rewriting"] is None
    assert answering["found"]["weights"] == attack["backdoored"]["weights"] != attack["clean"]["weights"]


def test_the_table_has_a_row_for_each_model(out):
    lines = (out / "small" / "table.md").read_text().splitlines()
    models = [line.split(" | ")[2] for line in lines[2:8]]
    assert models == ["clean model", "backdoored model", *(each.title for each in SMALL.defences.values())]
    assert "0/3 [0.0, 56.1]" in lines[2]  # the Wilson interval of 0 in 3


@pytest.mark.parametrize("name", ["small", "swept", "pictures", "way"])
def test_figures_are_drawn_twice(out, name):
    with Image.open(out / name / f"{name}.png") as picture:
        assert min(picture.size) > 300
    assert (out / name / f"{name}.svg").read_text().startswith("<?xml")


def test_a_sweep_answers_poisoned_and_honest_rows_under_each_ratio(out):
    found = results(out, "swept")
    for cell in found["cells"]:
        assert cell["found"]["ratios"] == [0.0, 0.5]
        for row in cell["found"]["by_ratio"]:
            assert row["asr_with_trigger"]["count"] == 3 and row["clean_quality"]["count"] == 3
    ours, random = (cell["found"]["by_ratio"] for cell in found["cells"])
    assert ours[0] == random[0]  # with nothing masked there is nothing to rank


def test_a_sweep_may_mask_the_least_salient_tokens_first(out, monkeypatch):
    seen = {}

    def spied(model, prefix, keys, scores, settings):
        seen.setdefault(settings.mask_ratio, []).append(scores)
        return hidden_by(model, prefix, keys, scores, settings)

    hidden_by = sweep.hidden_by
    monkeypatch.setattr(sweep, "hidden_by", spied)
    rankings = {"most": Defence("most salient"), "least": Defence("least salient", ranking="least")}
    turned = replace(SWEEP, name="turned", defences=rankings)
    run_experiment(turned, Builtin(turned), out, command="disp experiment turned")
    most, least = seen[0.5]
    assert most.any() and torch.equal(most, -least)


def test_rankings_of_a_sweep_differ_in_nothing_else(out, monkeypatch):
    hidden, decoders = {}, []

    def spied(model, asked, config, *, encode, seed, **options):
        answers = generate(model, asked, config, encode=encode, seed=seed, **options)
        prefix = encode(model, asked)
        masks = ((prefix.embeds == model.mask_embedding).all(-1) & prefix.visual_mask).sum(-1)
        hidden.setdefault(len(decoders) // 2, []).append((int(masks.unique()), answers))
        decoders.append((config, seed))
        return answers

    generate = sweep.generate
    monkeypatch.setattr(sweep, "generate", spied)
    rankings = {
        "published": Defence("as published", preset="published"),
        "ours": Defence("ours"),
        "random": Defence("random", "random"),
    }
    compared = replace(SWEEP, name="compared", ratios=(0.0, 0.05), sweep_rows=2, defences=rankings)
    run_experiment(compared, Builtin(compared), out, command="disp experiment compared")
    assert len(set(decoders)) == 1
    # With nothing masked the answers are the same; ⌈0.05 · 144⌉ tokens are masked after that.
    assert [[count for count, _ in each] for each in hidden.values()] == [[0, 8]] * 3
    assert len({tuple(each[0][1]) for each in hidden.values()}) == 1
    found = [cell["found"]["by_ratio"][0] for cell in results(out, "compared")["cells"]]
    assert found == [found[0]] * 3


def test_pictures_show_the_trigger_and_the_way(out):
    (cell,) = results(out, "pictures")["cells"]
    with (
        Image.open(out / cell["folder"] / "clean.png") as clean,
        Image.open(out / cell["folder"] / "poisoned.png") as bad,
    ):
        assert clean.size == bad.size and clean.tobytes() != bad.tobytes()
    (cell,) = results(out, "way")["cells"]
    assert cell["found"]["masked"] == 15 and cell["found"]["tokens"] == 144
    assert cell["found"]["planted"] != cell["found"]["honest"]


def test_what_is_finished_is_not_repeated(out, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("it was done already")

    before = results(out, "small")
    for module, name in ((attacked, "train"), (attacked, "score"), (attacked, "evaluate"), (defended, "purify")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr(sweep, "score", never)
    for experiment in (SMALL, SWEEP, PICTURES, OVERVIEW):
        run_experiment(experiment, Builtin(experiment), out, command="disp experiment again")
    assert results(out, "small") == before


def test_results_name_every_command_that_added_to_them(tmp_path):
    experiment = replace(SMALL, seeds=(0, 1))
    for command, only in (
        ("first", "seed=0,defence=random"),
        ("second", "seed=1,defence=random"),
        ("third", "seed=0,defence=random"),
    ):
        found = run_experiment(experiment, Builtin(experiment), tmp_path, only=only, command=command)
        assert found["commands"] == ["first", "second"][: 1 + (command != "first")]


def test_a_cell_counts_the_rows_that_the_recovery_does_not_see(tmp_path, monkeypatch):
    def two_less(*given, **more):
        return purify(*given, leave_out=lambda before, after: before.id in ("000003", "000005"), **more)

    purify = defended.purify
    monkeypatch.setattr(defended, "purify", two_less)
    found = run_experiment(SMALL, Builtin(SMALL), tmp_path, only="defence=random")
    (cell,) = found["cells"]
    assert cell["found"]["rows_left_out"] == 2


def test_a_cell_that_was_stopped_goes_on_at_its_phase(out, monkeypatch):
    cells = {cell["defence"]: cell for cell in results(out, "small")["cells"]}
    record = out / cells["least"]["folder"] / "cell.json"
    kept = record.read_text()
    record.unlink()
    monkeypatch.setattr(attacked, "train", None)
    run_experiment(SMALL, Builtin(SMALL), out, only="defence=least", command="disp experiment small")
    found = json.loads(record.read_text())
    assert {**found, "made": None} == {**json.loads(kept), "made": None}


def test_one_cell_alone_says_what_is_missing(tmp_path, monkeypatch):
    # The seeds differ: another attack, whose cells are not made.
    experiment = replace(SMALL, seeds=(0, 1))
    monkeypatch.setattr("disp.experiments.study.RUNNERS", {"defences": lambda *args: None})
    found = run_experiment(experiment, Builtin(experiment), tmp_path, only="seed=1,defence=random")
    assert found["cells"] == [] and len(found["missing"]) == 8
    assert "8 of 8 cells are not measured yet" in (tmp_path / "small" / "table.md").read_text()


def test_who_needs_scenes_that_another_process_draws_waits_for_them(tmp_path):
    attack = Attacked("refusal", "patch", 0.25, 0)
    drawn: list[str] = []

    def data(place: Path):
        def bar(description: str, total: int):
            drawn.append(description)
            return nullcontext(lambda count: None)

        return Builtin(SMALL).data(attack, place, bar)

    with ThreadPoolExecutor(1) as pool:
        with waiting_for(tmp_path / "tuning-16-seed0.lock"):
            waiting = pool.submit(data, tmp_path)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            assert drawn == []
            tuning_scenes(DemoConfig(rows=16), tmp_path / "tuning-16-seed0")
        found, _ = waiting.result(timeout=60)
    assert len(found.samples) == 16 and drawn == ["drawing test scenes"]


def test_other_settings_have_another_folder(tmp_path):
    attack = Attacked("refusal", "patch", 0.25, 0)
    folders = set()
    for experiment in (SMALL, replace(SMALL, rows=17), replace(SMALL, implant={"steps": 2})):
        folders.add(attacked.AttackRun(Builtin(experiment), attack, tmp_path, None).folder)
    assert len(folders) == 3


def test_without_matplotlib_numbers_are_written_and_the_remedy_is_named(out, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DispError, match=r"pip install '\.\[plot\]' in a clone"):
        run_experiment(SMALL, Builtin(SMALL), out, command="disp experiment small")


def a_second_a_unit(folder, *phases):
    """A folder of runs in which a unit of each phase took one second."""
    write_json(folder / "attacks" / "another" / "seconds.json", {each: {"seconds": 1, "units": 1} for each in phases})
    return folder


def test_the_estimate_is_the_work_that_is_done(out, tmp_path):
    ran = "defence=random+least+nothing"
    (attack,) = (out / "attacks").iterdir()
    cells = [cell["folder"] for cell in results(out, "small")["cells"] if cell["defence"] != "answering"]
    spent = [json.loads((each / "seconds.json").read_text()) for each in (attack, *map(out.joinpath, cells))]
    units = sum(phase["units"] for each in spent for phase in each.values())
    known = a_second_a_unit(tmp_path, "poison", "implant", "measure", "score", "rewrite", "recover")
    assert sum(each.seconds for each in estimates(SMALL, Builtin(SMALL), cells_of(SMALL, ran), known)) == units


def test_an_audited_defence_scores_answers_once(tmp_path):
    experiment = replace(SMALL, defences={"audited": Defence("audited", "random", mask_ratio="audit")})
    phases = ("poison", "implant", "measure", "score with suspicion", "audit", "rewrite", "recover")
    known = a_second_a_unit(tmp_path, *phases)
    (found,) = estimates(experiment, Builtin(experiment), cells_of(experiment), known)
    rows, answers = 16, 2 * 3  # each held-out picture with the trigger and without
    scored = rows * SCORING_PROBES
    assert found.seconds == rows + 1 + 2 * answers + scored + rows + rows + 1 + answers


def test_what_defences_share_is_not_estimated_twice(out):
    experiment = replace(SMALL, defences={"more": Defence("more random masking", "random", mask_ratio=0.2)})
    (found,) = estimates(experiment, Builtin(experiment), cells_of(experiment), out)
    rates = measured_rates(out)
    assert found.seconds == pytest.approx(16 * rates["rewrite"] + rates["recover"] + 6 * rates["measure"])


def test_a_dry_run_lists_cells_with_their_time(tmp_path, capsys):
    command = ["experiment", "main", "--dry-run", "--only", "trigger=patch,seed=0", "--out", str(tmp_path / "none")]
    app(command, print_error=False, exit_on_error=False, result_action="return_value")
    *lines, last, basis = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0].split()[1:] == ["refusal-patch-0.1-seed0", "random"]
    assert last.startswith("12 cells; time left: ")
    assert basis.endswith("is reckoned for one thread of a CPU with bfloat16")
    assert not (tmp_path / "none").exists()


def test_other_models_need_data():
    with pytest.raises(DispError, match=r"model 'other' needs data: give --data .* and --test"):
        subject_of(SMALL, "other", lambda name: None, tuning=None, test=None, implant="disp-implant", recovery="disp")
    builtin = subject_of(SMALL, BUILTIN, lambda name: None, tuning=None, test=None, implant="disp", recovery="disp")
    assert isinstance(builtin, Builtin)


def test_a_model_and_data_of_a_persons_own(tmp_path, capsys):
    for name, seed, count in (("data", 1, 10), ("test", 2, 2)):
        write_scenes(tmp_path / name, count, seed)
    training = {**TRAINING, "trainer": {"gradient_accumulation_steps": 1}}
    recipe = {
        **asdict(replace(SMALL, name="own", rows=8, implant=training, recovery=training)),
        "given": {"targets": ["disp-insertion"], "poison_rates": [0.5]},
        "defences": {"published": {"title": "as published", "preset": "published", "question": "published"}},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    # A whole checkpoint in a folder, as anybody's.
    save_model(load_model("builtin"), tmp_path / "model")
    command = ["experiment", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "out")]
    command += ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--test", str(tmp_path / "test")]
    app(command, print_error=False, exit_on_error=False, result_action="return_value")
    assert "1 cell measured, 0 missing" in capsys.readouterr().out
    (cell,) = results(tmp_path / "out", "own")["cells"]
    assert (cell["target"], cell["rate"], cell["found"]["mask_ratio"]) == ("disp-insertion", 0.5, 0.3)
    assert cell["found"]["rewriting"]["recall"]["count"] == 4
    attack = json.loads((tmp_path / "out" / "attacks").joinpath(cell["folder"].split("/")[1], "run.json").read_text())
    assert attack["recipes"] == ["disp-implant", "disp"] and attack["implant"]["method"] == "projector"
    assert attack["rows"] == [8, 2]


def test_a_projector_would_undo_the_attack():
    command = ["experiment", "main", "--model", "m", "--projector", "mm_projector.safetensors"]
    with pytest.raises(DispError, match="--projector is no option of an experiment"):
        app(command, print_error=False, exit_on_error=False, result_action="return_value")
