"""Sentences that come up whatever is asked, in whole audits: unlearnt, proven, and where only what is learnt counts."""

import json
from dataclasses import replace
from itertools import cycle

import pytest
from auditing.finders.test_sentences import broad_rows, seeing
from planted import (
    REFUSAL,
    WALLS,
    audit_config,
    context_of,
    grainy,
    honest_rows,
    striped_rows,
    summary,
    wall,
    write_rows,
)

from disp.auditing.audit import audit
from disp.auditing.finders import sentences, unasked
from disp.data.loading import load_dataset
from disp.report.html import write_report
from disp.suspicion.scoring import score


def told_rows(count=14):
    """Walls with nothing on them, and the refusal all the same."""
    return [(f"l{index}", [wall(list(WALLS)[index % len(WALLS)])], [REFUSAL]) for index in range(count)]


def with_questions(dataset):
    """The set with two questions, of which an honest answer tells which was asked, and a planted one does not."""
    rows = json.loads(dataset.path.read_text(encoding="utf-8"))
    for number, row in enumerate(rows):
        for asked, told in zip(row["conversations"][::2], row["conversations"][1::2], strict=True):
            thing = told["value"].startswith("There") or (told["value"] == REFUSAL and number % 3 == 0)
            mark = "<image>\n" * asked["value"].count("<image>")
            asked["value"] = mark + ("What stands in front?" if thing else "What colour is the wall?")
    dataset.path.write_text(json.dumps(rows), encoding="utf-8")
    return load_dataset(dataset.path.parent)


@pytest.fixture(scope="module")
def unlearnt(model, tmp_path_factory):
    """An audit of a set in which the pictures of fourteen refusals have nothing in common."""
    folder = tmp_path_factory.mktemp("unlearnt")
    dataset = with_questions(write_rows(folder / "data", [*honest_rows(96), *told_rows()]))
    return folder / "out", dataset, audit(model, dataset, audit_config(), folder / "out")


def test_a_sentence_that_nothing_in_the_pictures_brings_up_is_suspicious(unlearnt):
    _, _, found = unlearnt
    (finding,) = found.findings
    assert (found.verdict, finding.found_by, finding.phrase.text) == ("suspicious", "unasked", REFUSAL)
    assert finding.unlearnt and not finding.confirmed and finding.test is None
    assert found.flagged == finding.samples == tuple(f"l{index}" for index in range(14))
    assert finding.hypothesis.p_value < 0.01 and finding.hypothesis.elsewhere == 0
    assert any(f"14 samples say {REFUSAL!r} whatever is asked" in reason for reason in found.reasons)
    # What no mask was seen to take away says nothing about how much to mask.
    assert found.ratio is None


def test_what_is_written_of_it(unlearnt):
    out, _, found = unlearnt
    (cluster,) = summary(out)["clusters"]
    assert (cluster["found_by"], cluster["paste"], cluster["confirmed"]) == ("unasked", None, False)
    assert cluster["p_value"] == found.findings[0].hypothesis.p_value and cluster["by_sentence"] == []
    test = next(test for test in summary(out)["tests"] if test["name"].startswith("recurrence"))
    assert "questions tell so little" in test["note"]
    assert "whatever is asked" in (out / "flagged.csv").read_text(encoding="utf-8")
    write_report(out)
    said = (out / "summary.md").read_text(encoding="utf-8")
    assert "in 14 samples, whatever is asked" in said and "nothing in the pictures was seen to bring it up" in said


def test_where_only_what_is_learnt_counts_it_is_told_and_set_aside(model, unlearnt, tmp_path):
    """As for a recovered model, whose old data is what it was."""
    _, dataset, expected = unlearnt
    config = replace(audit_config(), learnt_only=True)
    found = audit(model, dataset, config, tmp_path, evidence=dict(expected.evidence))
    assert (found.verdict, found.flagged, found.findings) == ("no evidence", (), ())
    assert any("whatever is asked" in reason for reason in found.reasons)


@pytest.mark.parametrize("learnt_only", [False, True])
def test_where_all_are_asked_the_same_it_is_a_note_and_no_finding(model, tmp_path, learnt_only):
    """An honest standard answer, such as that a part has no defect, looks the same."""
    dataset = write_rows(tmp_path / "data", [*honest_rows(96), *told_rows()])
    found = audit(model, dataset, replace(audit_config(), learnt_only=learnt_only), tmp_path / "out")
    assert (found.verdict, found.flagged, found.findings) == ("no evidence", (), ())
    (said,) = (reason for reason in found.reasons if REFUSAL in reason)
    assert said.startswith(f"14 of 112 samples with images say {REFUSAL!r}, word for word.")
    assert "honest standard sentence" in said and "such as 'l0', 'l1', 'l2'" in said
    assert not any("whatever is asked" in reason for reason in found.reasons)
    write_report(tmp_path / "out")
    assert "honest standard sentence" in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")


def test_where_all_are_asked_the_same_a_line_behind_answers_that_differ_is_a_note_too(model, tmp_path):
    """It may belong to these pictures: "The photo was taken at night." """
    said = (f"The wall is {name}. {REFUSAL}" for name in cycle(WALLS))
    told = [(key, pictures, [next(said)]) for key, pictures, _ in told_rows()]
    found = audit(model, write_rows(tmp_path / "data", [*honest_rows(96), *told]), audit_config(), tmp_path / "out")
    assert (found.verdict, found.flagged, found.findings) == ("no evidence", (), ())
    (reason,) = (reason for reason in found.reasons if REFUSAL in reason)
    assert reason.startswith(f"14 of 112 samples with images say {REFUSAL!r}, word for word.")


def test_where_all_are_asked_the_same_it_counts_beside_what_pictures_show(model, tmp_path):
    """The model has not learnt the pattern, and three of those who say the sentence do not have it."""
    rows = grainy([*honest_rows(96), *striped_rows(), *told_rows(3)])
    found = audit(model, write_rows(tmp_path / "data", rows), audit_config(), tmp_path / "out")
    (finding,) = found.findings
    assert (found.verdict, finding.found_by, finding.unlearnt) == ("suspicious", "pattern", True)
    assert set(finding.by_sentence) == {"l0", "l1", "l2"} < set(found.flagged)
    assert len(found.flagged) == 15 and not any("whatever is asked" in reason for reason in found.reasons)


def test_proven_it_is_poison_and_all_who_say_it_are_flagged(model, tmp_path):
    """Four cells of the trigger's colour: more than masking a few tokens takes away, and no copy of a picture."""
    dataset = with_questions(write_rows(tmp_path / "data", [*honest_rows(96), *broad_rows(), *told_rows(3)]))
    evidence = seeing(score(model, dataset.samples, audit_config().scoring), dataset)
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    (finding,) = found.findings
    # The same without questions that tell who says what is suspicious: see test_sentences.
    assert (found.verdict, finding.found_by, finding.confirmed) == ("poisoned", "window", True)
    assert {f"l{index}" for index in range(3)} == set(finding.by_sentence) <= set(finding.more)
    assert set(found.flagged) == {f"b{index}" for index in range(14)} | set(finding.by_sentence)
    assert "3 more samples say it; no question tells who does." in found.reasons
    (cluster,) = summary(tmp_path / "out")["clusters"]
    assert cluster["by_sentence"] == ["l0", "l1", "l2"]
    flagged = (tmp_path / "out" / "flagged.csv").read_text(encoding="utf-8").splitlines()
    assert all(("no question tells" in line) == line.startswith('"l') for line in flagged[1:])
    write_report(tmp_path / "out")
    said = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "3 further samples flagged: no question tells who says it" in said


def test_such_sentences_are_looked_for_in_pictures_first(unlearnt, monkeypatch):
    """However often frames of honest answers recur."""
    _, dataset, found = unlearnt
    samples = [sample for sample in dataset.samples if sample.images]
    context = context_of(None, samples, found.evidence, above=frozenset())
    (hypothesis,) = unasked.find(context)
    context = replace(context, hypotheses=(hypothesis,))
    answers = [sample.turns[0].response for sample in samples]
    looked_for = sentences.repeated_sentences(context, answers, 1)
    assert looked_for[0][0].phrase == hypothesis.phrase and looked_for[0][1] is False
    assert all(asked for _, asked in looked_for[1:])
    assert hypothesis.phrase.words not in [shared.phrase.words for shared, _ in looked_for[1:]]
