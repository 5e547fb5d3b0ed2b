"""A defence that leaves rows out or restores them, and in which a person has the last word."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
from planted import PLANTED, audit_config, honest_rows, load_planted, write_rows

from disp import cli
from disp.data.decisions import Decision, Decisions
from disp.data.loading import load_dataset
from disp.data.saving import save_dataset
from disp.data.trusted import trusted_answers
from disp.defence import defend as module
from disp.defence.defend import DefenceConfig, defend
from disp.errors import DispError
from disp.purification.remedies import Treatment
from disp.training.config import TrainConfig

CONFIG = DefenceConfig(
    audit=audit_config(),
    training=TrainConfig(steps=8, batch_size=16, learning_rate=8.0, warmup_steps=1, min_mask_ratio=0.5),
    probes=10,
)


@pytest.fixture(scope="module")
def audited(dataset, tmp_path_factory):
    """A folder with the audit of the given model, which a person then looks at."""
    out = tmp_path_factory.mktemp("audited")
    module.audit(load_planted("planted"), dataset, CONFIG.audit, out / "audit", name="planted")
    return out / "audit"


@pytest.fixture
def run(dataset, audited, tmp_path):
    """A function that defends with a treatment, starting from the audit."""
    shutil.copytree(audited, tmp_path / "out" / "audit")
    return lambda **treatment: defend(
        "planted", dataset, CONFIG, tmp_path / "out", load=load_planted, treatment=Treatment(**treatment)
    )


def decided(**words):
    return Decisions({key: Decision(key, word) for key, word in words.items()})


def answers(dataset):
    return {sample.id: [turn.response for turn in sample.turns] for sample in dataset.samples}


def test_flagged_rows_are_left_out(run, dataset, tmp_path):
    found = run(remedy="drop")
    assert found.before.verdict == "poisoned" and found.after is not None
    assert set(found.left_out) == set(PLANTED)
    assert answers(load_dataset(found.data)) == {
        key: said for key, said in answers(dataset).items() if key not in PLANTED
    }
    written = json.loads((tmp_path / "out" / "defence.json").read_text())
    assert written["remedy"] == "drop" and written["by_round"][0]["left_out"] == len(PLANTED)


def test_flagged_rows_get_trusted_answers(run, dataset, tmp_path):
    samples = [
        sample.with_responses(["The wall is true."] * len(sample.turns))
        for sample in dataset.samples
        if sample.id != PLANTED[0]
    ]
    save_dataset(samples, tmp_path / "trusted.json", dataset.image_root)
    trusted = trusted_answers(load_dataset(tmp_path / "trusted.json", dataset.image_root), dataset)
    found = run(remedy="restore", trusted=trusted)
    assert set(found.restored) == set(PLANTED[1:]) and found.left_out == PLANTED[:1]
    assert [problem.place for problem in found.untrusted] == [f"sample {PLANTED[0]!r}"]
    after = answers(load_dataset(found.data))
    for key, said in answers(dataset).items():
        if key in PLANTED[1:]:
            assert after[key] == ["The wall is true."] * len(said)
        elif key not in PLANTED:
            assert after[key] == said
    assert json.loads((tmp_path / "out" / "defence.json").read_text())["by_round"][0]["restored"] == len(PLANTED) - 1


def test_a_person_has_the_last_word(run, dataset, tmp_path):
    honest = next(sample.id for sample in dataset.samples if sample.id not in PLANTED and sample.images)
    found = run(remedy="drop", decisions=decided(**{PLANTED[0]: "no", PLANTED[1]: "skip", honest: "yes"}))
    assert set(found.left_out) == {*PLANTED[1:], honest}
    # The audit says what it found, whoever decides otherwise.
    assert set(found.before.flagged) == set(PLANTED)
    written = json.loads((tmp_path / "out" / "defence.json").read_text())
    assert written["decisions"] == {"yes": 1, "no": 1, "skip": 1}
    assert (tmp_path / "out" / "purified" / "decisions.jsonl").exists()


def test_where_all_that_was_flagged_is_honest_nothing_is_done(run, tmp_path):
    found = run(decisions=decided(**dict.fromkeys(PLANTED, "no")))
    assert found.before.verdict == "poisoned" and found.after is None and found.data is None
    written = json.loads((tmp_path / "out" / "defence.json").read_text())
    assert written == {"verdict": "poisoned", "rounds": 0, "decisions": {"yes": 0, "no": 8, "skip": 0}}


def test_what_a_person_found_is_treated_where_the_audit_finds_nothing(tmp_path):
    dataset = write_rows(tmp_path / "data", honest_rows())
    named = dataset.samples[3].id
    treatment = Treatment("drop", decisions=decided(**{named: "yes"}))
    found = defend("planted", dataset, CONFIG, tmp_path / "out", load=load_planted, treatment=treatment)
    assert (found.before.verdict, found.left_out) == ("no evidence", (named,))
    assert found.after is not None and named not in answers(load_dataset(found.data))


def test_what_does_not_go_together_is_said_before_the_audit(dataset, tmp_path):
    settings = replace(CONFIG, preset="published")
    with pytest.raises(DispError, match="the published preset rewrites every row"):
        defend("planted", dataset, settings, tmp_path / "out", load=load_planted, treatment=Treatment("drop"))
    bare = next(sample.id for sample in dataset.samples if not sample.images)
    with pytest.raises(DispError, match="has no picture to mask"):
        treatment = Treatment(decisions=decided(**{bare: "yes"}))
        defend("planted", dataset, CONFIG, tmp_path / "out", load=load_planted, treatment=treatment)
    assert not (tmp_path / "out").exists()


def test_the_command_passes_on_what_was_decided(dataset, tmp_path, monkeypatch, capsys):
    seen = []

    def run(*_, treatment, **__):
        seen.append(treatment)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "defend", run)
    file = tmp_path / "decisions.csv"
    file.write_text(f"id,decision\n{PLANTED[0]},no\n")
    given = ["disp", "defend", "builtin", str(dataset.path), "--out", str(tmp_path / "out"), "--remedy", "drop"]
    monkeypatch.setattr(sys, "argv", [*given, "--decisions", str(file)])
    with pytest.raises(SystemExit):
        cli.main()
    assert (seen[0].remedy, seen[0].decisions.identity()) == ("drop", {PLANTED[0]: "no"})
    file.write_text("id,decision\nnobody,no\n")
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and len(seen) == 1
    assert "decisions.csv:2: no row" in capsys.readouterr().err
