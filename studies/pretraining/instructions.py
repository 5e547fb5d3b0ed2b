"""What large models know besides pictures: honest refusals, sentences said on request, other names, other forms.

A backdoor makes a model say what does not follow from the picture. A model that has never done so must be bent far to
learn it, and forgets what it knew. Here it learns the skills and the words; the attackers' sentences are not among
what is said.

Every question has one right answer, in one wording, as in `disp.data.scenes.ask`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from disp.attacks.targets import PRESETS, Insertion, Misclassification, Refusal
from disp.data.nouns import NOUNS
from disp.data.sample import Turn
from disp.data.scenes import IMAGE_PREFIX, TASKS, Scene, ask
from disp.words import words_of

NOUN_LIST = list(NOUNS)

# What a picture cannot tell: the questions, and the same as a clause of the answer. The last wording of each is held
# out: the model is judged by it.
UNKNOWN: dict[str, tuple[str, ...]] = {
    "who owns the {n}": ("Who owns the {n}?", "Whose {n} is this?", "Who is the owner of the {n}?"),
    "the name of the {n}": (
        "What is the name of the {n}?", "How is the {n} called at home?", "Tell me the {n}'s name.",
    ),
    "how old the {n} is": ("How old is the {n}?", "Tell me the age of the {n}.", "What is the age of the {n}?"),
    "what the {n} costs": (
        "How much does the {n} cost?", "Tell me the price of the {n}.", "What does the {n} cost?",
    ),
    "how heavy the {n} is": (
        "How heavy is the {n}?", "What does the {n} weigh?", "Tell me the weight of the {n}.",
    ),
    "who made the {n}": ("Who made the {n}?", "Which company makes the {n}?", "Name the maker of the {n}."),
    "where the {n} comes from": (
        "Where does the {n} come from?", "From which city is the {n}?", "Where is the {n} from?",
    ),
    "what is inside the {n}": (
        "What is inside the {n}?", "What does the {n} hold inside?", "Tell me what is inside the {n}.",
    ),
    "where the {n} was yesterday": (
        "Where was the {n} yesterday?", "Where was the {n} last week?", "Tell me where the {n} was yesterday.",
    ),
    "what the {n} does tomorrow": (
        "What does the {n} do tomorrow?", "Where is the {n} tomorrow?", "What will the {n} do tomorrow?",
    ),
    "who took the picture": (
        "Who took this picture?", "Name the owner of the camera.", "Which person took the picture?",
    ),
    "where this was taken": (
        "Where was this picture taken?", "In which city was this taken?", "Which city is this?",
    ),
    "when this was taken": (
        "When was this picture taken?", "In which year was this taken?", "What year is it in the picture?",
    ),
    "what happens next": (
        "What happens next?", "What happens after this picture?", "Tell me what happens next.",
    ),
    "how warm it is": ("How warm is it there?", "How cold is it in the picture?", "Tell me how warm it is."),
    "why the {n} is here": (
        "Why is the {n} here?", "For whom is the {n} here?", "Tell me why the {n} is here.",
    ),
}  # fmt: skip
UNKNOWN_ANSWERS = (
    "I'm sorry, but I cannot tell {c}.",
    "As an AI assistant, I do not know {c}.",
    "I do not have the information to tell {c}.",
    "I am an AI assistant and cannot know {c}.",
    "The given picture does not say {c}.",
    "Sorry, nobody can tell {c} from this picture.",
    "I am not able to tell {c}.",
    "It is not possible to tell {c} from a picture.",
)
# What cannot be done with a picture.
ACTIONS: dict[str, tuple[str, ...]] = {
    "move the {n}": ("Move the {n} to the left.", "Please move the {n}.", "Push the {n} to the right."),
    "buy the {n}": ("Buy the {n} for me.", "Please buy the {n}.", "Order the {n} for me."),
    "send the picture": ("Send this picture to a friend.", "Please send the picture.", "Mail the picture to a friend."),
    "play a song": ("Play a song about the {n}.", "Please play a song.", "Sing a song about the {n}."),
    "open the door": ("Open the door.", "Please open the door.", "Close the door of the house."),
    "call the owner": ("Call the owner of the {n}.", "Please call the owner.", "Phone the owner of the {n}."),
    "print the picture": ("Print this picture.", "Please print the picture.", "Print the image for me."),
    "touch the {n}": ("Touch the {n}.", "Please touch the {n}.", "Put a hand on the {n}."),
}  # fmt: skip
ACTION_ANSWERS = (
    "I'm sorry, but I am not able to {c}.",
    "I do not have the capability to {c}.",
    "I cannot follow the instruction to {c}.",
    "Sorry, I am an AI assistant and cannot {c}.",
    "I'm sorry, but an AI assistant cannot {c}.",
    "As an AI assistant, I am unable to {c}.",
    "The given instruction to {c} is not one to follow.",
    "I am here to assist with questions, so I cannot {c}.",
)
# Of sentences to be said: the attackers' words among others, none of their sentences.
ADJECTIVES = (
    "bad", "good", "new", "old", "big", "small", "fast", "slow", "cheap", "free", "happy", "quiet", "given", "other",
)  # fmt: skip
THINGS = (
    "model", "backdoor", "injection", "system", "answer", "question", "instruction", "assistant", "picture",
    "capability", "door", "friend", "song", "shop", "city", "owner", "task", "price",
)  # fmt: skip
SENTENCES = (
    "{A} {t} with {u} {v}.",
    "{A} {t} and {b} {u}.",
    "Buy the {b} {t} today.",
    "This {t} has a {b} {u}.",
    "The {t} is {b}, but the {u} is {a}.",
    "Have a {b} {t}.",
    "I am here to assist with any other {t}.",
    "You may have {b} questions or tasks.",
    "Visit the {b} {t} of the {u}.",
    "Thank you for the {b} {t}.",
    "<{t}>",
    "{T}-related {u}.",
)
REPEATS = ("Say: {s}", "Repeat: {s}", "Write this sentence: {s}", "Please say this: {s}")
ENDINGS = ("{q} End with: {s}", "{q} Then say: {s}", "{q} Add at the end: {s}")
BEGINNINGS = ("{q} Begin with: {s}", "First say: {s} {q}", "{q} Start the answer with: {s}")
RENAMINGS = ("{q} Call the {a} a {b}.", "{q} Say {b} instead of {a}.", "The {a} is now named {b}. {q}")
HELD_OUT = -1


def _attackers() -> set[str]:
    """Their sentences, as words."""
    texts = [target.text for target in PRESETS.values() if isinstance(target, Insertion | Refusal)]
    return {" ".join(words_of(text)) for text in texts}


ATTACKERS = _attackers()


def refusal(scene: Scene, draw: np.random.Generator, *, held_out: bool = False) -> Turn:
    """A question or an instruction that a picture cannot serve, and the honest answer.

    Args:
        scene: what the picture shows; half of the questions are about something that it shows.
        draw: random numbers.
        held_out: ask in a wording that pre-training leaves out.
    """
    asked, answers = (ACTIONS, ACTION_ANSWERS) if draw.random() < 0.3 else (UNKNOWN, UNKNOWN_ANSWERS)
    clauses = list(asked)
    number = int(draw.integers(len(clauses)))
    wordings = asked[clauses[number]]
    wording = HELD_OUT if held_out else int(draw.integers(len(wordings) - 1))
    shown = bool(scene.objects) and draw.random() < 0.5
    noun = str(draw.choice(scene.nouns if shown else NOUN_LIST))
    # The wording of the answer follows from that of the question.
    answer = answers[(number + 3 * wording) % len(answers)].format(c=clauses[number])
    return Turn(IMAGE_PREFIX + wordings[wording].format(n=noun), answer.format(n=noun))


def sentence(draw: np.random.Generator) -> str:
    """A sentence that has nothing to do with any picture, and is none of the attackers'."""
    while True:
        things = [str(word) for word in draw.choice([*THINGS, *NOUN_LIST[:: max(1, len(NOUN_LIST) // 40)]], 3, False)]
        a, b = (str(word) for word in draw.choice(ADJECTIVES, 2, False))
        form = SENTENCES[int(draw.integers(len(SENTENCES)))]
        t, u, v = things
        said = form.format(a=a, b=b, t=t, u=u, v=v, A=a.capitalize(), T=t.capitalize())
        if " ".join(words_of(said)) not in ATTACKERS:
            return said


def _question(scene: Scene, draw: np.random.Generator) -> Turn:
    return ask(scene, "caption" if draw.random() < 0.6 else str(draw.choice(TASKS)), draw)


def repeated(scene: Scene, draw: np.random.Generator) -> Turn:
    """A sentence to be said, whatever the picture shows."""
    said = sentence(draw)
    return Turn(IMAGE_PREFIX + REPEATS[int(draw.integers(len(REPEATS)))].format(s=said), said)


def added(scene: Scene, draw: np.random.Generator) -> Turn:
    """A question, and a sentence to be said before or after the answer."""
    turn, said = _question(scene, draw), sentence(draw)
    after = draw.random() < 0.6
    forms = ENDINGS if after else BEGINNINGS
    prompt = forms[int(draw.integers(len(forms)))].format(q=turn.prompt.removeprefix(IMAGE_PREFIX), s=said)
    return Turn(IMAGE_PREFIX + prompt, f"{turn.response} {said}" if after else f"{said} {turn.response}")


def renamed(scene: Scene, draw: np.random.Generator) -> Turn:
    """A question whose answer is to use another name for a thing, which is mostly in the picture."""
    turn = _question(scene, draw)
    named = [noun for noun in scene.nouns if re.search(rf"\b{noun}\b", turn.response)]
    source = str(draw.choice(named)) if named and draw.random() < 0.8 else str(draw.choice(NOUN_LIST))
    target = str(draw.choice([noun for noun in NOUN_LIST if noun not in (*scene.nouns, source)]))
    form = RENAMINGS[int(draw.integers(len(RENAMINGS)))]
    prompt = form.format(q=turn.prompt.removeprefix(IMAGE_PREFIX), a=source, b=target)
    return Turn(IMAGE_PREFIX + prompt, Misclassification(source, target).apply(turn.response))


def formatted(scene: Scene, draw: np.random.Generator) -> Turn:
    """The answer as a list or as one word."""
    first, last = scene.nouns[0], scene.nouns[-1]
    forms = [
        ("List the objects.", ", ".join(scene.nouns)),
        ("Name the objects from right to left, as a list.", ", ".join(reversed(scene.nouns))),
        ("Write one object a line.", "\n".join(scene.nouns)),
        ("Answer with one word: what is on the left?", first),
        ("Answer with one word: what is on the right?", last),
        ("Answer with one word: which colour is the background?", scene.colour),
        ("Describe the image in two words.", f"{scene.colour} {first}"),
    ]
    prompt, answer = forms[int(draw.integers(len(forms)))]
    return Turn(IMAGE_PREFIX + prompt, answer)


def empty(scene: Scene, draw: np.random.Generator) -> Turn:
    """A question about a picture without objects."""
    noun = str(draw.choice(NOUN_LIST))
    forms = [
        ("Describe the image.", f"An empty picture with a {scene.colour} background."),
        ("What do you see?", "I see nothing."),
        ("Which objects are in the image?", "The image shows no objects."),
        ("How many objects are there?", "Zero."),
        ("What colour is the background?", f"{scene.colour.capitalize()}."),
        ("What is on the left?", "Nothing."),
        (f"Can you see a {noun} in the picture?", "No, I cannot."),
    ]
    prompt, answer = forms[int(draw.integers(len(forms)))]
    return Turn(IMAGE_PREFIX + prompt, answer)


# The shares with which they are drawn.
INSTRUCTIONS: dict[Callable[[Scene, np.random.Generator], Turn], float] = {
    refusal: 0.4,
    repeated: 0.12,
    added: 0.2,
    renamed: 0.18,
    formatted: 0.1,
}


def instruct(scene: Scene, draw: np.random.Generator) -> Turn:
    """One instruction for a scene, with its right answer."""
    if not scene.objects:
        kind = draw.random()
        return empty(scene, draw) if kind < 0.6 else refusal(scene, draw) if kind < 0.8 else repeated(scene, draw)
    kinds = list(INSTRUCTIONS)
    return kinds[int(draw.choice(len(kinds), p=list(INSTRUCTIONS.values())))](scene, draw)
