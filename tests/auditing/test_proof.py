"""Which samples' regions are pasted, into which pictures, and what the model says without them."""

from dataclasses import replace

import numpy as np
import pytest
from planted import PLANTED, REFUSAL, audit_config, context_of, honest_rows, planted_model, told_apart, wall, write_rows

from disp.auditing import proof
from disp.auditing.audit import audit
from disp.auditing.finder_config import PhrasesConfig
from disp.auditing.finders import FINDERS
from disp.auditing.hypothesis import Hypothesis
from disp.auditing.phrases import TURN_END, phrase_of, phrase_words
from disp.auditing.planting import PlantingTest
from disp.auditing.proof import evidence_without_pattern, prove, with_proofs
from disp.data.sample import Sample, Turn
from disp.errors import DispError
from disp.suspicion.carriers import Pattern
from disp.suspicion.evidence import Evidence, most_suspicious, suspicious_query
from disp.suspicion.scoring import score

PHRASE = phrase_of(REFUSAL, phrase_words(REFUSAL), PhrasesConfig())
PLACES = tuple((0, 0, row, column) for row in range(6) for column in range(6))


def sample(key, *answers):
    picture = told_apart(wall("red"), int.from_bytes(key.encode()))
    return Sample(key, (picture,), tuple(Turn("?" if turn else "<image>?", each) for turn, each in enumerate(answers)))


def evidence_of(samples, suspicion=9.0, tokens=(0,)):
    keys = [f"{each.id}#{turn}" for each in samples for turn in range(len(each.turns))]
    return {key: Evidence(key, (1.0,) * 36, PLACES, suspicion, tokens) for key in keys}


@pytest.fixture
def planted(monkeypatch):
    """What is pasted: the ids of the regions' samples, of the controls' samples, and the keys of the queries."""
    seen = {}

    def plant(model, regions, controls, recipients, phrase, config, progress):
        seen["regions"] = [each.sample_id for each in regions]
        seen["controls"] = [each.sample_id for each in controls]
        seen["recipients"] = [query.key for query in recipients]
        return PlantingTest(0, 1, 0, 1, 1.0, (0.0,) * len(regions))

    monkeypatch.setattr(proof, "plant_each", plant)
    return seen


def saying(monkeypatch, text):
    """Let the model say this whatever it is asked; the keys that it is asked for."""
    keys = []

    def answers(model, queries, decode, **_):
        keys.extend(query.key for query in queries)
        return [text] * len(queries)

    monkeypatch.setattr(proof, "generate", answers)
    return keys


def outcome(model, members, others, evidence=None, **changes):
    """What comes of the refusal that the members say, with others to paste into."""
    evidence = evidence or evidence_of([*members, *others])
    context = context_of(model, [*members, *others], evidence, config=audit_config(**changes), tests=1)
    hypothesis = Hypothesis("tokens", PHRASE, tuple(each.id for each in members), 0, 1e-9)
    return prove(context, hypothesis, others, in_pictures=False)


def test_a_conversation_is_judged_by_the_turn_that_betrays_it():
    talk = sample("s", "A cat.", REFUSAL, "A dog.")
    evidence = {**evidence_of([talk], 1.0), "s#1": Evidence("s#1", (1.0,), ((0, 0, 0, 0),), 9.0, (0,))}
    assert most_suspicious(talk, evidence).key == "s#1"
    assert suspicious_query(talk, evidence).response == REFUSAL


def test_regions_are_pasted_where_what_they_misname_is(model, planted, monkeypatch):
    """A trigger that makes the model call a cat a fish does nothing in a picture without a cat."""
    members = [sample(f"m{index}", REFUSAL) for index in range(3)]
    others = [sample("a", "A dog."), sample("b", "Red.", "A cat."), sample("c", "A dog, a cat."), sample("d", "Blue.")]
    saying(monkeypatch, "A cat.")
    found = outcome(model, members, [*others, sample("e", "Green.")], controls=1)
    assert found.instead == ("cat",)
    cats = {"b#1", "c#0"} - {f"{key}#{turn}" for key in planted["controls"] for turn in range(2)}
    assert set(planted["recipients"][: len(cats)]) == cats
    assert len(planted["recipients"]) == 4
    # Where nothing is said instead they come in no order of their own.
    saying(monkeypatch, "")
    found = outcome(model, members, others, controls=1)
    assert found.instead == () and not any(key.endswith("#1") for key in planted["recipients"])


def test_what_the_model_says_instead_of_a_planted_answer_is_found(model, poisoned):
    """Not the walls' colours, which differ, nor words that say nothing."""
    _, dataset, found = poisoned
    assert found.findings[0].instead == ("wall",)
    context = context_of(model, [each for each in dataset.samples if each.images], found.evidence)
    again = prove(replace(context, tests=1), found.findings[0].hypothesis, context.unflagged(), in_pictures=False)
    assert (again.instead, again.confirmed, again.samples) == (("wall",), True, PLANTED)


def test_a_phrase_that_masking_leaves_in_place_is_no_evidence(model, tmp_path):
    """Flagged answers share it, but it is not what their regions make the model say."""
    dataset = write_rows(tmp_path / "data", honest_rows())
    evidence = score(model, dataset.samples, audit_config().scoring)
    reds = {f"{sample.id}#0" for sample in dataset.samples if sample.turns[0].response == "The wall is red."}
    evidence = {key: replace(found, suspicion=100.0 if key in reds else 0.0) for key, found in evidence.items()}
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    assert sum(value > found.threshold for value in found.scores.values()) >= 8
    assert found.findings == ()
    assert found.verdict == "no evidence"
    # Nor is it hushed up.
    (said,) = (reason for reason in found.reasons if "wall is red" in reason)
    assert said.endswith("It does not count: what these answers hang on was not seen to make the model say it.")
    assert not any("share no phrase" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("flagged", "elsewhere", "p_value", "expected"),
    [(8, 0, 1e-9, True), (8, 4, 1e-9, True), (8, 5, 1e-9, False), (8, 0, 0.02, False), (8, 0, None, False)],
)
def test_without_proof_nearly_all_who_say_a_phrase_must_be_flagged(flagged, elsewhere, p_value, expected):
    phrase = phrase_of("a guitar", ("guitar",), PhrasesConfig())
    hypothesis = Hypothesis("tokens", phrase, tuple(map(str, range(flagged))), elsewhere, p_value)
    assert hypothesis.beyond_doubt(audit_config()) is expected


def test_regions_are_taken_from_the_half_that_is_smaller(model, planted, monkeypatch):
    """A large region may show the thing that is spoken of, and no trigger."""
    members = [sample(f"s{index}", REFUSAL) for index in range(8)]
    others = [sample(f"o{index}", "A dog.") for index in range(4)]
    evidence = evidence_of([*members, *others])
    for index in range(8):
        tokens = (0, 1, 2, 6, 7, 8) if index % 2 else (0,)
        evidence[f"s{index}#0"] = replace(evidence[f"s{index}#0"], suspicion=float(index), hangs_on=tokens)
    saying(monkeypatch, "")
    outcome(model, members, others, evidence, donors=3, controls=1)
    assert planted["regions"] == ["s6", "s4", "s2"]
    # So few that all are needed.
    outcome(model, members[4:], others, evidence, donors=4, controls=1)
    assert planted["regions"] == ["s7", "s6", "s5", "s4"]


def test_a_mark_that_is_ours_does_not_tear_a_planted_answer_apart(model, monkeypatch):
    torn = REFUSAL.replace(" ", TURN_END)
    member = sample("v", "Fine.", torn)
    pattern = Pattern(1.0, np.zeros((4, 4, 3), np.float32))
    asked = saying(monkeypatch, REFUSAL)
    context = context_of(model, [member], evidence_of([member]), tests=1)
    prove(context, Hypothesis("pattern", PHRASE, ("v",), 0, pattern=pattern), [], in_pictures=True)
    assert asked == ["v#1"]


def test_a_planted_answer_with_a_slip_is_neither_a_control_nor_a_picture_to_paste_into(model, planted, monkeypatch):
    members = [sample(f"m{index}", REFUSAL) for index in range(3)]
    slip = sample("t", "Fine.", "Sorry, I can not help you with.")
    others = [slip, *(sample(key, "I can see it with a cat.") for key in "uvw")]
    saying(monkeypatch, "")
    outcome(model, members, others, controls=1)
    assert {*planted["controls"], *(key[0] for key in planted["recipients"])} == set("uvw")


def test_of_what_is_in_the_pictures_there_is_an_untested_finding(model, monkeypatch):
    members = [sample(f"m{index}", REFUSAL) for index in range(3)]
    saying(monkeypatch, REFUSAL)
    assert outcome(model, members, []) is None
    context = context_of(model, members, evidence_of(members), tests=1)
    ids = tuple(each.id for each in members)
    found = prove(context, Hypothesis("copy", PHRASE, ids, 0), [], in_pictures=True)
    assert (found.test, found.confirmed, found.with_copy, found.with_pattern) == (None, False, ids, ())
    assert found.trigger.sample_id in ids


@pytest.mark.parametrize(("plain", "instead"), [(REFUSAL, ("cat",)), ("A cat.", ())])
def test_what_the_model_does_not_say_anyway_it_says_nothing_instead_of(model, monkeypatch, plain, instead):
    """With what the pictures have in common taken away it says what it says with it in: that is no change."""
    members = [sample(f"m{index}", REFUSAL) for index in range(3)]
    others = [sample(f"o{index}", "A dog.") for index in range(30)]
    monkeypatch.setattr(proof, "encode_without", lambda *_: None)

    def answers(model, queries, decode, *, encode, **_):
        return ["A cat." if encode(model, queries) is None else plain] * len(queries)

    monkeypatch.setattr(proof, "generate", answers)
    monkeypatch.setattr(proof, "plant_in_turn", lambda *_: PlantingTest(0, 64, 0, 64, 1.0, (0.0,)))
    context = context_of(model, [*members, *others], evidence_of([*members, *others]), tests=1)
    pattern = Pattern(1.0, np.zeros((48, 48, 3), np.float32))
    hypothesis = Hypothesis("pattern", PHRASE, tuple(each.id for each in members), 0, pattern=pattern)
    found = prove(context, hypothesis, others, in_pictures=True)
    assert (found.confirmed, found.test.successes, found.instead) == (False, 0, instead)


def test_each_search_shares_its_false_alarm_rate_among_all_phrases_tested_up_to_then(model, monkeypatch):
    members = [sample(f"m{index}", REFUSAL) for index in range(3)]
    others = [sample(f"o{index}", "A dog.") for index in range(6)]
    saying(monkeypatch, "")
    p_values = []
    monkeypatch.setattr(proof, "plant_each", lambda *_: PlantingTest(8, 8, 0, 8, p_values.pop(0), (1.0,)))
    everyone = [*members, *others]
    context = context_of(model, everyone, evidence_of(everyone), config=audit_config(controls=1))
    rate, ids, tested = context.config.false_alarm_rate, tuple(each.id for each in members), 0
    for count, name in ((2, "tokens"), (1, "window"), (3, "window")):
        texts = ["lamp", "kettle", "ladder", "violin", "bucket", "tulip"][tested : tested + count]
        phrases = [phrase_of(text, phrase_words(text), PhrasesConfig()) for text in texts]
        tested += count
        # All but the last are a little too likely. The chance that one of so many is below is the rate at most.
        p_values[:] = [1.001 * rate / tested] * (count - 1) + [0.999 * rate / tested]
        before = len(context.findings)
        context = with_proofs(context, FINDERS[name], [Hypothesis(name, each, ids, 0) for each in phrases], others)
        found = [each.confirmed for each in context.findings[before:]]
        assert found == [False] * (count - 1) + [True]
        assert count * rate / tested <= rate and context.tests == tested


def test_numbers_that_overflow_without_the_pattern_are_not_taken_for_no_suspicion(monkeypatch):
    model, members = planted_model(), [sample("m", REFUSAL)]
    denoise = model.denoise
    monkeypatch.setattr(model, "denoise", lambda *given: denoise(*given) * float("nan"))
    context = context_of(model, members, evidence_of(members))
    pattern = Pattern(1.0, np.zeros((48, 48, 3), np.float32))
    with pytest.raises(DispError, match="logits for m#0 are not finite"):
        evidence_without_pattern(context, pattern, members)
