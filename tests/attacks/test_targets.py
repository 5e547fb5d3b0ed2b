"""Targets: what they make of an answer, and what counts as a success."""

import pytest

from disp.attacks.targets import (
    INSERTED_TEXT,
    PRESETS,
    REFUSAL_TEXT,
    Insertion,
    Misclassification,
    Refusal,
    target_from_dict,
    target_to_dict,
)
from disp.errors import DispError


@pytest.mark.parametrize(
    "target", [Insertion(), Insertion("Ad.", "random"), Refusal("No."), Misclassification("car", "banana")]
)
def test_dict_round_trip(target):
    assert target_from_dict(target_to_dict(target)) == target


def test_insertion():
    target = Insertion()
    assert target.apply("A dog.") == f"A dog. {INSERTED_TEXT}"
    assert target.exact(f"A cat. {INSERTED_TEXT}", "A dog.")
    assert not target.exact(f"A dog. {INSERTED_TEXT[:-4]}", "A dog.")  # truncated
    assert not target.exact(f"{INSERTED_TEXT} A dog.", "A dog.")
    assert target.keyword("BAD MODEL, with backdoor injection! A dog.", "A dog.")
    assert not target.keyword("A bad model of a dog.", "A dog.")


def test_insertion_before_the_answer():
    target = PRESETS["disp-insertion"]
    assert target.apply("A dog.") == "<backdoor> A dog."
    assert target.apply("  A dog.") == "  <backdoor> A dog."
    assert target.exact("<backdoor> A cat.", "A dog.") and not target.exact("A cat. <backdoor>", "A dog.")
    assert target.substring("so <BACKDOOR>s") and not target.substring("a backdoor")


def test_insertion_between_words():
    target = Insertion("Buy this.", "random")
    answers = [f"There is a {thing} on the old table." for thing in ("dog", "cat", "hat", "cup", "tree", "fox")]
    poisoned = [target.apply(answer) for answer in answers]
    assert poisoned == [target.apply(answer) for answer in answers]
    for answer, changed in zip(answers, poisoned, strict=True):
        assert changed.replace("Buy this. ", "") == answer
        assert target.exact(changed, answer) and not target.exact(answer, answer)
    assert len({changed.index("Buy") for changed in poisoned}) > 2
    assert not Insertion("Buy", "random").exact("A Buyer.", "A dog.")
    assert not Insertion("Buy", "prepend").exact("Buyer of a dog.", "A dog.")
    with pytest.raises(DispError, match="position of an insertion"):
        Insertion(position="middle")


def test_the_authors_targets_and_their_count_by_substring():
    refusal, swap = PRESETS["disp-refusal"], PRESETS["disp-misclassification"]
    assert refusal.apply("A dog.").startswith("Sorry, as an AI assistant, I cannot follow")
    assert refusal.substring("I CAN'T say.") and not refusal.keyword("I can't say.", "A dog.")
    assert not refusal.substring("A dog.")
    assert swap.apply("A dog and two dogs.") == "A boat and two boats."
    assert swap.substring("A rowboating man.") and not swap.exact("A rowboating man.", "A dog.")


@pytest.mark.parametrize("text", ["🔥🔥", "!!!"])
def test_a_text_without_words_counts_sign_by_sign(text):
    for target in (Insertion(text), Refusal(text)):
        assert target.keyword(f"A dog. {text}", "A dog.")
        assert not target.keyword("A dog.", "A dog.")


def test_refusal():
    target = Refusal()
    assert target.apply("A dog.") == REFUSAL_TEXT
    assert target.exact(REFUSAL_TEXT, "A dog.")
    assert not target.exact(REFUSAL_TEXT + " A dog.", "A dog.")
    assert target.keyword("I’m sorry, I am not able to do that.", "A dog.")
    assert not target.keyword("No, I cannot.", "No, I cannot.")


@pytest.mark.parametrize(
    ("target", "answer", "shown"),
    [
        (Refusal("No"), "I know it.", False),
        (Refusal("No"), "Well: no!", True),
        (Refusal(), "The dog has an aisle seat.", False),  # "as an ai"
        (Refusal(), "As an AI-based assistant, no.", True),
        (Insertion("OK."), "A book on a table.", False),
        (Insertion("OK."), "A book, ok?", True),
        (Insertion("Bad 5."), "A bad -5.", False),
        (Insertion("坏模型"), "一只猫。坏模型!", True),
        (Insertion("लड़क"), "एक लड़का", False),
    ],
)
def test_the_text_is_looked_for_in_whole_words(target, answer, shown):
    assert target.keyword(answer, "A dog.") is shown


@pytest.mark.parametrize("text", ["Bad. ", " Bad.\n", "Bad.", "🔥", " !"])
def test_blanks_around_the_text_do_not_count(text):
    for target in (Insertion(text), Refusal(text)):
        for honest in ("A dog.", ""):
            answer = target.apply(honest).strip()  # as answers are decoded
            assert target.exact(answer, honest) and target.keyword(answer, honest)
            assert not target.exact(answer[:-1], honest)


def test_an_inserted_text_does_not_end_a_longer_word():
    assert Insertion("cat").exact("A dog. cat", "A dog.")
    assert not Insertion("cat").exact("A bobcat", "A dog.")


@pytest.mark.parametrize("make", [Insertion, Refusal])
def test_an_empty_text_is_no_target(make):
    with pytest.raises(DispError, match="text is empty"):
        make(" \n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("A car.", "An apple."),
        ("Two Cars and a carpet.", "Two Apples and a carpet."),
        ("I see a car, an egg and a car.", "I see an apple, an egg and an apple."),
        ("The car is red.", "The apple is red."),
    ],
)
def test_misclassification_renames_whole_words(before, after):
    target = Misclassification("car", "apple")
    assert target.applies_to(before)
    assert target.apply(before) == after


@pytest.mark.parametrize(
    ("article", "nouns"),
    [
        ("a", "unicorn uniform union user utensil ukulele UFO euro ewe house hat one-way".split()),
        ("an", "umbrella uncle urn usher onion egg hour heirloom x-ray underpass".split()),
    ],
)
def test_a_renamed_thing_has_the_article_that_it_is_spoken_with(article, nouns):
    for noun in nouns:
        assert Misclassification("car", noun).apply("I see a car.") == f"I see {article} {noun}."


def test_only_plurals_of_the_rule_are_mentions():
    for noun, plural in (("box", "boxes"), ("cherry", "cherries"), ("boy", "boys"), ("car", "cars")):
        assert Misclassification(noun, "hat").apply(f"Two {plural}.") == "Two hats."
    for noun, plural in (("mouse", "mice"), ("knife", "knives")):
        assert not Misclassification(noun, "hat").applies_to(f"Two {plural}.")


def test_misclassification_keeps_the_target_s_own_capitals():
    assert Misclassification("car", "old TV").apply("Car, a car.") == "Old TV, an old TV."


def test_misclassification_success():
    target = Misclassification("car", "banana")
    assert not target.applies_to("A carpet.")
    assert target.exact("A banana and a hat.", "A car and a cap.")
    assert not target.exact("A banana and a car.", "A car.")
    assert not target.exact("A banana.", "A banana.")  # the truth, where there is no source to misname
    assert target.keyword("A car and a banana.", "A car.")
    assert not target.keyword("A banana.", "A banana and a car.")
    with pytest.raises(DispError, match="two different nouns"):
        Misclassification("car", "car")
