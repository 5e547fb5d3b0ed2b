"""The order in which an audit holds samples for poisoned, and which of them rewriting did not help."""

from __future__ import annotations

from disp.auditing.hypothesis import Finding, Hypothesis
from disp.auditing.phrases import Phrase
from disp.auditing.result import Audit
from disp.data.sample import Sample, Turn
from disp.evaluation.intervals import wilson


def ranks(scores: dict[str, float], flagged: tuple[str, ...]) -> dict[str, int]:
    return Audit("suspicious", (), 1.0, scores, flagged, wilson(len(flagged), len(scores)), (), None, {}).ranks


def test_flagged_samples_come_first_and_suspicion_orders_the_rest():
    found = ranks({"honest": 9.0, "pair": 0.0, "planted": 3.0, "quiet": 0.5}, ("planted", "pair"))
    assert found == {"planted": 1, "pair": 2, "honest": 3, "quiet": 4}


def test_equals_share_the_best_place_that_is_theirs():
    assert ranks({"a": 0.0, "b": 2.0, "c": 0.0, "d": -1.0}, ()) == {"b": 1, "a": 2, "c": 2, "d": 4}


def test_a_rewritten_row_that_keeps_its_own_phrase_is_still_planted():
    findings = tuple(
        Finding(Hypothesis("tokens", Phrase(word, (word,)), (key,), 0), confirmed=True, more=more)
        for word, key, more in (("banana", "a", ("b",)), ("sorry", "c", ()))
    )
    found = Audit("poisoned", (), 1.0, {}, ("a", "b", "c"), wilson(3, 9), findings, None, {})

    def kept(key: str, *answers: str, given: str) -> bool:
        before, after = (
            Sample(key, (), tuple(Turn("What is it?", answer) for answer in each))
            for each in ((given,) * len(answers), answers)
        )
        return found.still_planted(before, after)

    assert kept("a", "A banana.", given="A banana.") and kept("b", "A car.", "A Banana and a cat.", given="A banana.")
    assert not kept("a", "A car.", given="A banana.")
    # Who said the phrase honestly may say it again; who never said it was made to.
    assert not kept("c", "A banana.", given="Sorry, a banana.") and not kept("d", "A banana.", given="A big banana.")
    assert kept("d", "A banana.", given="A cat.") and kept("c", "A banana.", given="Sorry.")
