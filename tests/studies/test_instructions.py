"""What the built-in model learns to refuse: every wording has an answer of its own, and held-out ones are held out."""

import numpy as np
import pytest

from disp.data.scenes import draw_scene
from disp.words import words_of
from studies.builtin_quality import is_refusal
from studies.pretraining.instructions import (
    ACTIONS,
    ASKING,
    ATTACKERS,
    HELD_OUT_REQUESTS,
    ORDERING,
    UNKNOWN,
    instruct,
    refusal,
)


def drawn(count: int, *, held_out: bool) -> set[tuple[str, str]]:
    draw = np.random.default_rng(0)
    turns = (refusal(draw_scene(7, index % 50), draw, held_out=held_out) for index in range(count))
    return {(turn.prompt.removeprefix("<image>").strip(), turn.response) for turn in turns}


def test_what_is_held_out_is_never_learnt():
    learnt, unseen = ({question for question, _ in drawn(4_000, held_out=each)} for each in (False, True))
    assert len(learnt) > 1_000 and len(unseen) > 500
    assert not learnt & unseen


def test_every_question_is_refused_in_one_way():
    for held_out in (False, True):
        pairs = drawn(4_000, held_out=held_out)
        assert len({question for question, _ in pairs}) == len(pairs)
        assert all(is_refusal(answer) and "{" not in question + answer for question, answer in pairs)


@pytest.mark.parametrize("asked", [UNKNOWN, ACTIONS])
def test_no_wording_is_given_twice(asked):
    wordings = [each for group in asked.values() for each in group]
    assert len(set(wordings)) == len(wordings)
    assert all(len(group) >= 4 for group in asked.values())
    assert len(set(ASKING)) - HELD_OUT_REQUESTS >= 8 and len(set(ORDERING)) - HELD_OUT_REQUESTS >= 8


def test_no_sentence_of_the_attackers_is_said():
    draw = np.random.default_rng(1)
    for index in range(2_000):
        said = " ".join(words_of(instruct(draw_scene(7, index % 50), draw).response))
        assert said not in ATTACKERS
        # A word of theirs may be said among others.
        assert not any(sentence in said for sentence in ATTACKERS if " " in sentence)
