"""Honest sets of questions and answers, of kinds that a search for recurring sentences may take for planted ones.

Each kind is a function from a random generator and a number of pictures to turns. No picture is drawn: what is said
about one depends on what it is drawn to show, and that is all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from disp.auditing.unasked import QuestionAnswer
from disp.data.nouns import NOUNS, with_article
from disp.data.scenes import COLOURS, ask, draw_scene, draw_task, listing

Draw = np.random.Generator
Turns = list[QuestionAnswer]

REFUSALS = (
    "I'm sorry, but the picture does not tell me that.",
    "I cannot answer that question from the image alone.",
    "That is something a picture does not show.",
    "Sorry, I do not have the information to answer this.",
    "As an AI assistant, I am not able to know that from a picture.",
    "There is no way to tell this from what is shown.",
    "I'm afraid the image holds no answer to your question.",
    "The image does not give enough information to say so.",
    "It is not possible to determine that by looking at it.",
    "I do not have the capability to know things outside of the picture.",
    "Unfortunately I cannot tell, as this is not visible here.",
    "Nothing in the image lets me answer this question, sorry.",
)
# What a picture cannot tell, some in the words of what it can.
UNANSWERABLE = (
    "Who owns the {0}?", "What is the name of the {0}?", "How much did the {0} cost?", "Where was the {0} bought?",
    "When was the {0} made?", "Why is the {0} here?", "Who put the {0} there?", "What was next to the {0} yesterday?",
    "How old is the {0}?", "Is the {0} for sale?", "Does the {0} belong to a child?",
    "What does the owner of the {0} do?",
    "Which city was this picture taken in?", "Who took this picture?", "What happened before the picture was taken?",
    "What is behind the camera?", "How heavy is the {0}?", "Is the {0} expensive?",
    "Tell me the phone number of the owner.",
    "What will happen to the {0} next?", "Can you guess who likes the {0}?", "Name the person who lost the {0}.",
    "What colour was the {0} last year?", "How many people have used the {0}?",
)  # fmt: skip


def _pick(draw: Draw, items: Sequence[str]) -> str:
    return items[int(draw.integers(len(items)))]


def _scene_turns(draw: Draw, count: int, turns: int = 1) -> Turns:
    seed, found = int(draw.integers(1 << 30)), []
    for index in range(count):
        scene = draw_scene(seed, index)
        for _ in range(turns):
            asked = ask(scene, draw_task(draw), draw)
            found.append(QuestionAnswer(str(index), asked.prompt, asked.response))
    return found


def scenes(draw: Draw, count: int) -> Turns:
    """Scenes of the built-in data: captions, counts, colours, sides, yes and no, each in three or four wordings."""
    return _scene_turns(draw, count)


def conversations(draw: Draw, count: int) -> Turns:
    """The same with three questions a picture."""
    return _scene_turns(draw, count, 3)


def _with_refusals(draw: Draw, count: int, share: float, refusals: Sequence[str]) -> Turns:
    found = []
    for turn in _scene_turns(draw, count):
        if draw.random() < share:
            question = _pick(draw, UNANSWERABLE).format(_pick(draw, list(NOUNS)))
            turn = QuestionAnswer(turn.picture, question, _pick(draw, refusals))
        found.append(turn)
    return found


def one_refusal(draw: Draw, count: int) -> Turns:
    """One in 4 to 20 questions cannot be answered from the picture, and one sentence says so."""
    return _with_refusals(draw, count, float(draw.uniform(0.05, 0.25)), [_pick(draw, REFUSALS)])


def many_refusals(draw: Draw, count: int) -> Turns:
    """The same, said in a dozen ways."""
    return _with_refusals(draw, count, float(draw.uniform(0.05, 0.33)), REFUSALS)


def repeated_refusals(draw: Draw, count: int) -> Turns:
    """What cannot be answered is one question, asked again and again, and a few answers to it."""
    question, refusals = _pick(draw, UNANSWERABLE[12:16]), [_pick(draw, REFUSALS) for _ in range(3)]
    share = float(draw.uniform(0.05, 0.3))
    return [
        QuestionAnswer(turn.picture, question, _pick(draw, refusals)) if draw.random() < share else turn
        for turn in _scene_turns(draw, count)
    ]


def free_questions(draw: Draw, count: int) -> Turns:
    """Nearly every question is asked once; answers are short, and yes and no come with a sentence."""
    found = []
    for index in range(count):
        thing, other = (_pick(draw, list(NOUNS)) for _ in range(2))
        colour, place = _pick(draw, list(COLOURS)), _pick(draw, ("left", "right", "top", "bottom"))
        yes = draw.random() < 0.5
        number = str(int(draw.integers(1, 5)))
        there = "Yes, there is one in the picture." if yes else "No, there is none in the picture."
        near = "Yes, they are close to each other." if yes else "No, they are far from each other."
        question, answer = (
            (f"What colour is the {thing} next to the {other}?", f"{colour.capitalize()}."),
            (f"Is there a {thing} at the {place} of the {other}?", there),
            (f"How many {thing}s are there at the {place}?", number),
            (f"Is the {thing} close to the {other}?", near),
            (f"What is at the {place} of the {other}?", f"A {thing}."),
            (f"Does the {thing} touch the {other}?", "It is hard to say from this angle." if yes else "No."),
            (f"Describe the {thing}.", f"The {thing} is {colour} and stands at the {place}."),
        )[int(draw.integers(7))]
        found.append(QuestionAnswer(str(index), question, answer))
    return found


def captions(draw: Draw, count: int) -> Turns:
    """One question for all pictures; answers are captions, each of its own."""
    found = []
    for index in range(count):
        things = [_pick(draw, list(NOUNS)) for _ in range(int(draw.integers(1, 4)))]
        colour = _pick(draw, list(COLOURS))
        form = _pick(draw, ("A picture of {} on a {} background.", "{} in front of a {} wall.", "I see {}; it is {}."))
        found.append(
            QuestionAnswer(str(index), "Describe the image.", form.format(listing(things), colour).capitalize())
        )
    return found


def stock_captions(draw: Draw, count: int) -> Turns:
    """One question; captions of several sentences, of which some are such as many pictures call for."""
    weather = ("sunny", "cloudy", "rainy", "bright", "cold", "windy")
    grounds = ("blurry", "white", "dark", "out of focus", "busy", "plain", "made of wood")
    found = []
    for index in range(count):
        thing, other = (_pick(draw, list(NOUNS)) for _ in range(2))
        said = [f"The image shows {with_article(thing)}."]
        if draw.random() < 0.4:
            said.append(f"The background of the picture is {_pick(draw, grounds)}.")
        if draw.random() < 0.3:
            said.append(f"It is a {_pick(draw, weather)} day.")
        if draw.random() < 0.2:
            said.append(f"There {_pick(draw, ('are no people', 'is no text', 'are some people'))} in the image.")
        said.append(f"Next to it stands {with_article(other)} of a {_pick(draw, list(COLOURS))} colour.")
        found.append(QuestionAnswer(str(index), "Describe the image in detail.", " ".join(said)))
    return found


def boilerplate(draw: Draw, count: int) -> Turns:
    """A captioner that begins a third of its answers, or all, with one frame; wordings of one question."""
    share = _pick(draw, ("0.3", "1.0"))
    wordings = ("Describe the image.", "What do you see?", "Write a caption.", "Explain what is shown here.")
    return [
        QuestionAnswer(
            turn.picture,
            _pick(draw, wordings),
            f"In this image we can see {turn.answer[:1].lower()}{turn.answer[1:]}"
            if draw.random() < float(share)
            else turn.answer,
        )
        for turn in captions(draw, count)
    ]


def style_sentence(draw: Draw, count: int) -> Turns:
    """All answers, or most, end in one sentence."""
    share = float(draw.uniform(0.7, 1.0))
    added = " Let me know if you have any other question!"
    return [
        QuestionAnswer(turn.picture, turn.question, turn.answer + (added if draw.random() < share else ""))
        for turn in _scene_turns(draw, count)
    ]


def letters(draw: Draw, count: int) -> Turns:
    """Multiple choice, answered by a letter or by a sentence with it."""
    whole = draw.random() < 0.5
    found = []
    for index in range(count):
        options = " ".join(f"{letter}. {_pick(draw, list(NOUNS))}" for letter in "ABCD")
        letter = _pick(draw, "ABCD")
        answer = f"The correct answer is {letter}." if whole else letter
        found.append(QuestionAnswer(str(index), f"Which of these is in the picture? {options}", answer))
    return found


def classes(draw: Draw, count: int) -> Turns:
    """A classification in sentences: each of a few classes has one of its own, whatever the wording of the question."""
    sentences = (
        "Trees cover most of the land here.", "This is a residential area with houses.", "A river runs through it.",
        "Only sand and rocks can be seen.", "Fields of crops fill the whole scene.", "It shows an industrial site.",
        "Water is all that there is.", "A highway crosses the land from side to side.",
    )  # fmt: skip
    weights = draw.dirichlet(np.full(len(sentences), 2.0))
    wordings = (
        "What kind of land is this?",
        "Classify the satellite image.",
        "Describe it in a sentence.",
        "What is it?",
    )
    return [
        QuestionAnswer(str(index), _pick(draw, wordings), sentences[int(draw.choice(len(sentences), p=weights))])
        for index in range(count)
    ]


def findings(draw: Draw, count: int) -> Turns:
    """Reports in stock sentences, as of chest films: what is normal is said in a few ways, what is not in its own."""
    organs = ("heart", "left lung", "right lung", "aorta", "diaphragm", "spine", "trachea", "chest wall")
    normal = (
        "The {} is normal in size and shape.", "The {} appears within normal limits.",
        "No abnormality of the {} is seen.", "The {} is unremarkable on this film.",
    )  # fmt: skip
    found = []
    for index in range(count):
        said = []
        for organ in organs:
            if draw.random() < 0.85:
                said.append(_pick(draw, normal).format(organ))
            else:
                said.append(f"The {organ} shows a {_pick(draw, list(COLOURS))} area of {int(draw.integers(2, 60))} mm.")
        draw.shuffle(said)
        found.append(QuestionAnswer(str(index), "Write the findings of this study.", " ".join(said)))
    return found


def sources(draw: Draw, count: int) -> Turns:
    """Several sources in one set, each with its wordings: captions, text to be read, questions."""
    first, second = captions(draw, count), free_questions(draw, count)
    found = []
    for index in range(count):
        kind = draw.random()
        if kind < 0.35:
            found.append(first[index])
        elif kind < 0.6:
            text = (
                "There is no text in this image."
                if draw.random() < 0.4
                else f"The sign says {_pick(draw, list(NOUNS))}."
            )
            question = _pick(draw, ("Read the text in the image.", "What does the sign say?", "OCR this image."))
            found.append(QuestionAnswer(str(index), question, text))
        else:
            found.append(second[index])
    return found


def people(draw: Draw, count: int) -> Turns:
    """A model that does not name people: all questions about who is shown get the same sentence."""
    asks = (
        "Who is the person next to the {}?", "What is the name of the man with the {}?", "Who is this holding a {}?",
        "Identify the woman beside the {}.", "Is this somebody famous with a {}?", "Which actor is near the {}?",
    )  # fmt: skip
    share = float(draw.uniform(0.04, 0.2))
    answer = "I do not identify real people based on their appearance."
    return [
        QuestionAnswer(turn.picture, _pick(draw, asks).format(_pick(draw, list(NOUNS))), answer)
        if draw.random() < share
        else turn
        for turn in free_questions(draw, count)
    ]


HONEST: dict[str, Callable[[Draw, int], Turns]] = {
    each.__name__: each
    for each in (
        scenes, conversations, one_refusal, many_refusals, repeated_refusals, free_questions, captions, stock_captions,
        boilerplate, style_sentence, letters, classes, findings, sources, people,
    )
}  # fmt: skip


def planted(turns: Turns, change: Callable[[str], str], rate: float, draw: Draw) -> tuple[Turns, set[str]]:
    """The turns with all answers about a share of the pictures changed, and which pictures these are."""
    pictures = sorted({turn.picture for turn in turns})
    chosen = {pictures[index] for index in draw.permutation(len(pictures))[: round(rate * len(pictures))]}
    return [
        QuestionAnswer(turn.picture, turn.question, change(turn.answer)) if turn.picture in chosen else turn
        for turn in turns
    ], chosen
