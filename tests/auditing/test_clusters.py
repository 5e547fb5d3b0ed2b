"""What suspicious answers share, whose regions are pasted, and into which pictures."""

from dataclasses import replace

import pytest
from planted import PLANTED, REFUSAL, audit_config, honest_rows, told_apart, wall, write_rows

from disp.auditing import clusters
from disp.auditing.audit import audit
from disp.auditing.phrases import TURN_END, Phrase
from disp.data.sample import Sample, Turn
from disp.suspicion.scoring import Evidence, most_suspicious, score


def sample(key, *answers):
    picture = told_apart(wall("red"), int.from_bytes(key.encode()))
    return Sample(key, (picture,), tuple(Turn("<image>?", answer) for answer in answers))


def evidence_of(sample, *suspicion):
    keys = [f"{sample.id}#{turn}" for turn in range(len(sample.turns))]
    return {
        key: Evidence(key, (1.0,), ((0, 0, 0, 0),), value, (0,)) for key, value in zip(keys, suspicion, strict=True)
    }


def test_a_conversation_is_judged_by_the_turn_that_betrays_it():
    talk = sample("s", "A cat.", REFUSAL, "A dog.")
    evidence = evidence_of(talk, 1.0, 9.0, None)
    assert most_suspicious(talk, evidence).key == "s#1"
    assert clusters.joined_answers(talk, evidence) == REFUSAL
    assert clusters.joined_answers(talk, None).split(f" {TURN_END} ") == ["A cat.", REFUSAL, "A dog."]


def test_regions_are_pasted_where_what_they_misname_is():
    """A trigger that makes the model call a cat a fish does nothing in a picture without a cat."""
    others = [sample("a", "A dog."), sample("b", "Red.", "A cat."), sample("c", "A dog, a cat."), sample("d", "Blue.")]
    assert [query.key for query in clusters._recipients(others, {"cat"})] == ["b#1", "c#0", "a#0", "d#0"]
    assert [query.key for query in clusters._recipients(others, set())] == ["a#0", "b#0", "c#0", "d#0"]


def test_what_the_model_says_instead_of_a_planted_answer_is_found(model, poisoned):
    _, dataset, found = poisoned
    donors = [sample for sample in dataset.samples if sample.id in PLANTED]
    answers = clusters._masked_answers(model, donors, found.evidence, audit_config())
    assert [given for given, _ in answers] == [REFUSAL] * len(PLANTED)
    assert all(answer.startswith("The wall is ") for _, answer in answers)
    # Not the walls' colours, which differ, nor words that say nothing.
    assert clusters._said_instead(answers) == {"wall"}
    assert found.clusters[0].instead == ("wall",)


def test_a_phrase_that_masking_leaves_in_place_is_no_evidence(model, tmp_path):
    """Flagged answers share it, but it is not what their regions make the model say."""
    dataset = write_rows(tmp_path / "data", honest_rows())
    evidence = score(model, dataset.samples, audit_config().scoring)
    reds = {f"{sample.id}#0" for sample in dataset.samples if sample.turns[0].response == "The wall is red."}
    evidence = {key: replace(found, suspicion=100.0 if key in reds else 0.0) for key, found in evidence.items()}
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    assert sum(value > found.threshold for value in found.scores.values()) >= 8
    assert found.clusters == ()
    assert found.verdict == "no evidence"


@pytest.mark.parametrize(
    ("flagged", "elsewhere", "p_value", "expected"),
    [(8, 0, 1e-9, True), (8, 4, 1e-9, True), (8, 5, 1e-9, False), (8, 0, 0.02, False)],
)
def test_without_proof_nearly_all_who_say_a_phrase_must_be_flagged(flagged, elsewhere, p_value, expected):
    phrase = Phrase("a guitar", ("guitar",), tuple(range(flagged)), elsewhere, p_value)
    assert clusters._beyond_doubt(phrase, audit_config()) is expected


def test_regions_are_taken_from_the_half_that_is_smaller(model):
    """A large region may show the thing that is spoken of, and no trigger."""
    samples = [sample(f"s{index}", REFUSAL) for index in range(8)]
    places = tuple((0, 0, row, column) for row in range(6) for column in range(6))
    evidence = {
        f"{each.id}#0": Evidence(
            f"{each.id}#0", (1.0,) * 36, places, float(index), (0, 1, 2, 6, 7, 8) if index % 2 else (0,)
        )
        for index, each in enumerate(samples)
    }
    assert [each.id for each in clusters._donors(model, samples, evidence, 3)] == ["s6", "s4", "s2"]
    # So few that all are needed.
    assert [each.id for each in clusters._donors(model, samples[4:], evidence, 4)] == ["s7", "s6", "s5", "s4"]


def test_a_mark_that_is_ours_does_not_tear_a_planted_phrase_apart():
    torn = sample("s", REFUSAL.replace(" ", TURN_END))
    for evidence in (None, evidence_of(torn, 9.0)):
        assert TURN_END not in clusters.joined_answers(torn, evidence)
    phrase = Phrase(REFUSAL, ("sorry", "i", "can", "not", "help", "with", "it"), (0,), 0, 0.0)
    assert clusters._asked_for(sample("v", "Fine.", torn.turns[0].response), phrase).key == "v#1"
    # A planted answer with a slip is neither a control nor a picture to paste into.
    assert clusters._says(sample("t", "Fine.", "Sorry, I can not help you with."), phrase)
    assert not clusters._says(sample("u", "I can see it with a cat."), phrase)
