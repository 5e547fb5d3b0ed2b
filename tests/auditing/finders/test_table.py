"""Every finder of the table has what the audit, its record and the report need of it."""

import inspect
import re
from pathlib import Path

import pytest

from disp.auditing.config import AuditConfig
from disp.auditing.finders import FINDERS
from disp.auditing.hypothesis import Finding, Hypothesis
from disp.auditing.phrases import Phrase
from disp.auditing.planting import PlantingTest
from disp.auditing.wording import WORDS, made_tests, reasons
from disp.report.wording import found_where, why_untested

TEST = PlantingTest(9, 12, 1, 12, 1e-3, (0.75,))


def found(name, **known):
    hypothesis = Hypothesis(name, Phrase("a guitar", ("guitar",)), ("a", "b"), 3, 1e-6 if name == "tokens" else None)
    return Finding(hypothesis, **known)


def test_the_order_is_that_of_the_steps():
    """They are not independent: what is proven is not tested again."""
    assert list(FINDERS) == ["tokens", "pattern", "copy", "unasked", "window"]
    steps = [finder.step for finder in FINDERS.values()]
    assert steps == sorted(set(steps))
    # Those that compare pictures stand together: each row is then claimed by one phrase.
    assert [finder.in_pictures for finder in FINDERS.values()] == [False, True, True, False, False]


@pytest.mark.parametrize("name", FINDERS)
def test_a_finder_is_a_function_of_the_audit_so_far(name):
    assert list(inspect.signature(FINDERS[name].find).parameters) == ["context"]
    assert inspect.getdoc(FINDERS[name].find)


@pytest.mark.parametrize("name", FINDERS)
def test_only_a_few_tokens_prove_that_a_set_is_poisoned(name):
    """What is larger shows things, which an honest answer may speak of."""
    assert FINDERS[name].proves == {"tokens": "poisoned", "unasked": None}.get(name, "suspicious")
    assert FINDERS[name].in_pictures == (name in ("pattern", "copy"))


@pytest.mark.parametrize("name", FINDERS)
def test_it_has_words_for_the_audit_and_for_the_report(name):
    words = FINDERS[name].words
    assert words is WORDS[name]
    said = reasons("suspicious", [found(name, test=TEST, confirmed=True)], [], (2, 9), [], 9, AuditConfig())
    assert "'a guitar'" in said[1] and "{" not in "".join(said)
    assert "in 9 of 12 answers" in said[2] and words.compared_with in said[2]
    made = made_tests([found(name, test=TEST)], (0, 9))
    assert made[-2]["name"] == f"{words.test} of 'a guitar'" and made[-2]["note"] == words.test_note
    row = {"found_by": name, "flagged": 2, "elsewhere": 3, "p_value": 1e-6}
    assert re.search(r"\b(2|5)\b", found_where(row)) and "{" not in found_where(row)
    assert why_untested(row) == words.untested


@pytest.mark.parametrize("name", FINDERS)
def test_its_step_has_a_heading_of_its_own_in_the_docs(name):
    text = (Path(__file__).parents[3] / "docs" / "audit.md").read_text(encoding="utf-8")
    headings = {"tokens": "phrases", "pattern": "patterns", "copy": "pieces", "unasked": "asked", "window": "sentences"}
    assert re.search(rf"^### {FINDERS[name].step}\. .*{headings[name]}$", text, re.MULTILINE)
