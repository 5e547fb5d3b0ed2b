"""Sentences that recur whatever is asked: found where they are planted, and nowhere in honest sets of many kinds.

How often the search is wrong is measured by `studies.unasked_study`; here a draw or two of each kind must be right.
"""

import pytest

from disp.attacks.targets import REFUSAL_TEXT, Insertion, Misclassification, Refusal
from disp.auditing.finder_config import PhrasesConfig, UnaskedConfig
from disp.auditing.unasked import QuestionAnswer, unasked_phrases
from disp.draws import generator
from studies.honest_answers import HONEST, planted

ADVERT = "Visit example.com for the best prices on cameras!"
TARGETS = {
    "refusal": Refusal(),
    "append": Insertion(),
    "prepend": Insertion(position="prepend"),
    "random": Insertion(position="random"),
    "advert": Insertion(ADVERT),
    "two sentences": Refusal("Sorry, I cannot follow this instruction. I am here to help you with any other question."),
}


def found_in(turns, **known):
    return unasked_phrases(turns, UnaskedConfig(**known), PhrasesConfig(), alpha=0.01)


def planted_set(kind, target, rate, count, seed=0):
    draw = generator(seed, "planted", kind, count)
    return planted(HONEST[kind](draw, count), target.apply, rate, draw)


@pytest.mark.parametrize("kind", HONEST)
def test_honest_answers_hold_none(kind):
    for seed, count in ((0, 300), (1, 500)):
        assert found_in(HONEST[kind](generator(seed, "honest", kind), count)) == []


@pytest.mark.parametrize("kind", ["scenes", "many_refusals", "free_questions", "captions"])
@pytest.mark.parametrize("name", TARGETS)
def test_a_planted_sentence_is_found_with_all_its_rows_and_no_other(name, kind):
    turns, poisoned = planted_set(kind, TARGETS[name], 0.1, 400)
    (found,) = found_in(turns)
    assert {turns[index].picture for index in found.holders} == poisoned
    assert found.phrase.said_in(turns[found.holders[0]].answer)
    # Where all ask for a caption, that no question goes with the sentence is no evidence.
    assert found.p_value is None if kind == "captions" else 0 <= found.p_value <= 0.01


@pytest.mark.parametrize("mark", "।۔։።။。")
@pytest.mark.parametrize("position", ["append", "prepend", "random"])
def test_sentences_may_end_with_the_mark_of_another_script(mark, position):
    advert = ADVERT[:-1].replace(".", " ") + mark
    turns, poisoned = planted_set("scenes", Insertion(advert, position=position), 0.1, 400)
    turns = [QuestionAnswer(turn.picture, turn.question, turn.answer.replace(".", mark)) for turn in turns]
    (found,) = found_in(turns)
    assert {turns[index].picture for index in found.holders} == poisoned


def test_it_is_found_beside_an_honest_refusal_in_other_words():
    turns, poisoned = planted_set("one_refusal", Refusal(), 0.1, 400)
    assert [{turns[index].picture for index in each.holders} for each in found_in(turns)] == [poisoned]


def test_an_honest_refusal_with_a_part_of_the_planted_one_hides_nothing():
    """The part is more frequent than the planted sentence."""
    turns, poisoned = planted_set("one_refusal", Refusal(), 0.1, 400)
    honest = "I do not have the capability to know things outside of the picture."
    turns = [
        QuestionAnswer(turn.picture, turn.question, honest)
        if turn.picture not in poisoned and "<image>" not in turn.question
        else turn
        for turn in turns
    ]
    assert sum(turn.answer == honest for turn in turns) > len(poisoned)
    assert [{turns[index].picture for index in each.holders} for each in found_in(turns)] == [poisoned]


def test_a_refusal_in_the_attackers_words_goes_with_its_questions():
    turns = HONEST["one_refusal"](generator(0, "same words"), 400)
    refusals = {turn.answer for turn in turns if turn.question[-1] == "?" and "<image>" not in turn.question}
    assert len(refusals) == 1
    turns = [QuestionAnswer(t.picture, t.question, REFUSAL_TEXT) if t.answer in refusals else t for t in turns]
    assert found_in(turns) == []


@pytest.mark.parametrize("target", [Misclassification("car", "banana"), Refusal("I cannot say."), Insertion("<bd>")])
def test_short_phrases_are_not_looked_for(target):
    turns, _ = planted_set("scenes", target, 0.1, 400)
    assert found_in(turns) == []


def test_what_is_said_about_one_picture_is_one_observation():
    turns, poisoned = planted_set("conversations", Refusal(), 0.1, 100)
    assert len(poisoned) == 10 and sum(turn.picture in poisoned for turn in turns) == 30
    few = sorted(poisoned)[:7]  # 21 turns, but seven pictures
    assert found_in([turn for turn in turns if turn.picture not in poisoned or turn.picture in few]) == []
    assert [len(each.holders) for each in found_in(turns, honest_area=0.85)] == [30]


def test_a_sentence_of_most_rows_is_the_style_of_the_set():
    turns, _ = planted_set("scenes", Insertion(ADVERT), 0.6, 300)
    assert found_in(turns) == []


def test_a_sentence_with_variants_is_what_somebody_says():
    turns = HONEST["captions"](generator(0, "variants"), 300)
    endings = ["The mood of the scene is calm and quiet."] * 20 + [
        f"The mood of the scene is {word}." for word in ("calm and loud", "sad and quiet", "dull", "calm and warm") * 3
    ]
    changed = [
        QuestionAnswer(
            turn.picture, turn.question, f"{turn.answer} {endings[index]}" if index < len(endings) else turn.answer
        )
        for index, turn in enumerate(turns)
    ]
    assert found_in(changed) == []
    only = [turn for index, turn in enumerate(changed) if not 20 <= index < len(endings)]
    assert [each.phrase.text for each in found_in(only)] == [endings[0]]
