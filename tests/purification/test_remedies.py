"""What is done with rows that count as poisoned, and that a person's decisions win over what was found."""

import json
import sys
from dataclasses import replace

import pytest

from disp import cli
from disp.data.decisions import Decision, Decisions
from disp.data.loading import load_dataset
from disp.data.trusted import trusted_answers
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify
from disp.purification.remedies import Treatment
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.suspicion.scoring import score

IDS = tuple(f"r{index}" for index in range(6))
# The scores of r1 and r4 stand out.
SUSPICION = {"r0": 0.1, "r1": 30.0, "r2": 0.3, "r3": 0.2, "r4": 25.0, "r5": 0.0}


def write_set(folder, picture, said, leave=(), other=()):
    """Six rows, the last one without a picture; ``leave`` are not in it, the pictures of ``other`` are others."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for index, key in enumerate(IDS):
        if key in leave:
            continue
        row = {"id": key, "conversations": [{"from": "human", "value": "What is it?"}]}
        row["conversations"].append({"from": "gpt", "value": f"{said} {index}"})
        if key != "r5":
            row |= {"image": f"{key}.png"}
            row["conversations"][0]["value"] = "<image>\nWhat is it?"
            picture(index + 100 * (key in other)).save(folder / "images" / f"{key}.png")
        rows.append(row)
    (folder / "data.json").write_text(json.dumps(rows))
    return load_dataset(folder)


@pytest.fixture
def dataset(tmp_path, picture):
    return write_set(tmp_path / "data", picture, "bought")


CONFIG = PurifyConfig(
    scoring=ScoringConfig(0.3, candidates=3, saliency=SaliencyConfig(probes=2), batch_size=4),
    decode=decode_config(gen_length=4, steps=2),
    batch_size=4,
)


@pytest.fixture
def run(tiny_model, dataset, tmp_path):
    """A function that purifies with a treatment."""
    found = score(tiny_model, dataset.samples, CONFIG.scoring)
    evidence = {key: replace(each, suspicion=SUSPICION[key.partition("#")[0]]) for key, each in found.items()}

    def purified(name="out", model=tiny_model, config=CONFIG, **treatment):
        return purify(model, dataset, config, tmp_path / name, evidence=evidence, treatment=Treatment(**treatment))

    return purified


def decided(**words):
    return Decisions({key: Decision(key, word, place=f"d.csv:{at}") for at, (key, word) in enumerate(words.items(), 2)})


def answers(dataset):
    return {sample.id: [turn.response for turn in sample.turns] for sample in dataset.samples}


def rows_of(folder):
    return {row["id"]: row for row in map(json.loads, (folder / "evidence.jsonl").open(encoding="utf-8"))}


def test_nothing_new_is_written_where_rows_are_rewritten_as_found(run, tmp_path):
    result = run()
    assert set(result.rewritten) == {"r1", "r4"}
    keys = {"id", "rewritten", "left_out", "pattern_taken_out", "turns", "crc32"}
    assert all(row.keys() == keys for row in rows_of(tmp_path / "out").values())
    known = {"config", "samples", "rewritten", "left_out", "without_image", "threshold", "set_aside"}
    assert json.loads((tmp_path / "out" / "purify.json").read_text()).keys() == known
    assert not {"remedy", "trusted", "decisions"} & json.loads((tmp_path / "out" / "run.json").read_text()).keys()
    assert not (tmp_path / "out" / "decisions.jsonl").exists()


def test_drop_leaves_out_what_was_found_and_keeps_all_else_as_it_was(run, dataset, tmp_path):
    result = run(remedy="drop")
    assert (result.left_out, result.rewritten, result.restored) == (("r1", "r4"), (), ())
    kept = answers(load_dataset(result.dataset.path))
    assert kept == {key: said for key, said in answers(dataset).items() if key not in ("r1", "r4")}
    summary = json.loads((tmp_path / "out" / "purify.json").read_text())
    assert (summary["remedy"], summary["left_out"], summary["rewritten"]) == ("drop", ["r1", "r4"], 0)
    rows = rows_of(tmp_path / "out")
    assert {key for key, row in rows.items() if row["remedy"] == "drop"} == {"r1", "r4"}
    assert all(row["left_out"] == (row["remedy"] == "drop") and not row["rewritten"] for row in rows.values())
    assert not (tmp_path / "out" / "responses.jsonl").exists()


def test_restore_takes_trusted_answers_and_leaves_out_rows_without_them(run, dataset, picture, tmp_path):
    second = write_set(tmp_path / "second", picture, "true", other=("r4",))
    result = run(remedy="restore", trusted=trusted_answers(second, dataset))
    assert (result.restored, result.left_out) == (("r1",), ("r4",))
    (problem,) = result.untrusted
    assert problem.place == "sample 'r4'" and "other pictures" in problem.reason
    expected = {key: said for key, said in answers(dataset).items() if key != "r4"} | {"r1": ["true 1"]}
    assert answers(load_dataset(result.dataset.path)) == expected
    summary = json.loads((tmp_path / "out" / "purify.json").read_text())
    assert (summary["restored"], summary["left_out"]) == (["r1"], ["r4"])
    assert summary["untrusted"] == [{"place": problem.place, "reason": problem.reason}]
    row = rows_of(tmp_path / "out")["r1"]
    assert (row["remedy"], row["rewritten"], row["turns"][0]["new"]) == ("restore", False, "true 1")
    # Strictly, the first row without an answer stops the run.
    with pytest.raises(DispError, match="sample 'r4': the row with this id has other pictures"):
        run("strict", remedy="restore", trusted=trusted_answers(second, dataset), strict=True)


def test_yes_and_no_win_over_what_was_found(run, dataset, tmp_path):
    decisions = decided(r1="no", r2="yes", r4="skip", r5="yes")
    result = run(remedy="drop", decisions=decisions)
    assert result.left_out == ("r2", "r4", "r5")
    summary = json.loads((tmp_path / "out" / "purify.json").read_text())
    assert summary["decisions"] == {"yes": 2, "no": 1, "skip": 1}
    rows = rows_of(tmp_path / "out")
    assert {key: row["decision"] for key, row in rows.items()} == {
        "r0": None, "r1": "no", "r2": "yes", "r3": None, "r4": "skip", "r5": "yes"
    }  # fmt: skip
    copy = [json.loads(line) for line in (tmp_path / "out" / "decisions.jsonl").open()]
    assert {row["id"]: row["decision"] for row in copy} == {"r1": "no", "r2": "yes", "r4": "skip", "r5": "yes"}


def test_who_is_decided_to_be_honest_keeps_the_answer_and_who_is_not_gets_a_new_one(run, dataset, tmp_path):
    result = run(decisions=decided(r1="no", r2="yes"))
    assert set(result.rewritten) == {"r2", "r4"}
    before, after = answers(dataset), answers(result.dataset)
    assert all(before[key] == after[key] for key in IDS if key not in ("r2", "r4"))
    assert {key for key, row in rows_of(tmp_path / "out").items() if row["remedy"] == "rewrite"} == {"r2", "r4"}
    everything = run("all", config=replace(CONFIG, mode="all"), decisions=decided(r1="no"))
    assert set(everything.rewritten) == {"r0", "r2", "r3", "r4"}


def test_a_poisoned_row_whose_new_answer_is_the_old_one_is_left_out(run, dataset, monkeypatch):
    said = answers(dataset)

    def by_heart(model, prefix, decode, *, keys, seed):
        return [said[key.partition("#")[0]][0] for key in keys]

    monkeypatch.setattr("disp.purification.rewriting.answers_of", by_heart)
    result = run(decisions=decided(r2="yes"))
    # What was found alone is no certain thing: an honest answer is the old one, too.
    assert set(result.rewritten) == {"r1", "r2", "r4"} and result.left_out == ("r2",)


def test_a_killed_run_is_gone_on_with_by_the_same_decisions_alone(run):
    run(decisions=decided(r1="no", r4="skip"))
    run(decisions=decided(r1="no"))  # "skip" decides nothing
    with pytest.raises(DispError, match=r"differs in decisions.r1 \(\"no\" there, \"yes\" now\)"):
        run(decisions=decided(r1="yes"))
    with pytest.raises(DispError, match=r"differs in remedy \(null there, \"drop\" now\)"):
        run(decisions=decided(r1="no"), remedy="drop")


def test_what_cannot_be_done_is_said_before_anything_is_written(run, tmp_path, picture, dataset):
    with pytest.raises(DispError, match=r"d\.csv:2: row 'r5' has no picture to mask"):
        run(decisions=decided(r5="yes"))
    with pytest.raises(DispError, match="mode 'all' takes every row for poisoned; --remedy drop needs"):
        run(remedy="drop", config=replace(CONFIG, mode="all"))
    with pytest.raises(DispError, match="--remedy restore needs --trusted"):
        run(remedy="restore")
    with pytest.raises(DispError, match=r"unknown remedy 'dorp'.*Did you mean 'drop'"):
        run(remedy="dorp")
    second = write_set(tmp_path / "second", picture, "true")
    with pytest.raises(DispError, match="--trusted is for --remedy restore"):
        run(trusted=trusted_answers(second, dataset))
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_to_train_on(run):
    with pytest.raises(DispError, match="nothing remains to train on"):
        run(remedy="drop", decisions=decided(**dict.fromkeys(IDS, "yes")))


@pytest.fixture
def command(tiny_model, dataset, tmp_path, monkeypatch, capsys):
    """A function that runs ``disp purify`` and gives its exit code, output and errors."""

    def call(*options, out="out"):
        monkeypatch.setattr("disp.models.loading.check_model", lambda *_, **__: None)
        monkeypatch.setattr("disp.models.loading.load_model", lambda name, **_: tiny_model)
        given = ["disp", "purify", "tiny", str(dataset.path), "--out", str(tmp_path / out), "--probes", "1"]
        monkeypatch.setattr(sys, "argv", [*given, *map(str, options)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


def test_the_command_tells_what_was_done(command, picture, tmp_path):
    write_set(tmp_path / "second", picture, "true", leave=("r2",))
    file = tmp_path / "decisions.csv"
    file.write_text("id,decision\n" + "".join(f"{key},{'yes' if key in 'r1r2' else 'no'}\n" for key in IDS))
    options = ("--remedy", "restore", "--trusted", tmp_path / "second", "--decisions", file)
    code, out, err = command(*options)
    assert (code, "1 of 6 rows have their trusted answers, 1 left out" in out) == (0, True), out + err
    assert "set aside sample 'r2': no row has this id" in err and "2 yes, 4 no, 0 skip" in err
    code, out, err = command(*options, "--strict", out="strict")
    assert code == 2 and "sample 'r2'" in err
    code, out, err = command("--remedy", "drop", "--decisions", file, out="drop")
    assert (code, "2 of 6 rows left out" in out) == (0, True), out + err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--remedy", "restore"], "--remedy restore needs --trusted"),
        (["--trusted", "x"], "--trusted is for --remedy restore"),
        (["--trusted-images", "x"], "--trusted-images is for --trusted"),
        (["--decisions", "nowhere.csv"], "nowhere.csv: no such file with decisions"),
        (["--remedy", "restore", "--trusted", "nowhere"], "nowhere: no such data file"),
        (["--remedy", "forget"], "rewrite"),
    ],
)
def test_options_that_do_not_go_together(command, options, message):
    code, _, err = command(*options)
    assert code == 2 and message in err and "Traceback" not in err
