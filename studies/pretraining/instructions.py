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
    "who owns the {n}": (
        "Who owns the {n}?", "Whose {n} is this?", "To whom does the {n} belong?", "Name the owner of this {n}.",
        "Is the owner of the {n} known?", "Who is the owner of the {n}?",
    ),
    "the name of the {n}": (
        "What is the name of the {n}?", "How is the {n} called at home?", "Which name does the {n} have?",
        "What do its friends call the {n}?", "What is the {n} called?", "Tell me the {n}'s name.",
    ),
    "how old the {n} is": (
        "How old is the {n}?", "Tell me the age of the {n}.", "Since when does the {n} exist?",
        "How many years old is the {n}?", "When was the {n} born or made?", "What is the age of the {n}?",
    ),
    "what the {n} costs": (
        "How much does the {n} cost?", "Tell me the price of the {n}.", "What is the price of the {n}?",
        "How much money is the {n}?", "Is the {n} cheap or dear?", "What does the {n} cost?",
    ),
    "how heavy the {n} is": (
        "How heavy is the {n}?", "What does the {n} weigh?", "What is the weight of the {n}?",
        "How much does the {n} weigh?", "Is the {n} heavy or light?", "Tell me the weight of the {n}.",
    ),
    "who made the {n}": (
        "Who made the {n}?", "Which company makes the {n}?", "Who is the maker of the {n}?",
        "From which maker is the {n}?", "Which person has made this {n}?", "Name the maker of the {n}.",
    ),
    "where the {n} comes from": (
        "Where does the {n} come from?", "From which city is the {n}?", "From where did the {n} come?",
        "Which country is the {n} from?", "What is the home of the {n}?", "Where is the {n} from?",
    ),
    "what is inside the {n}": (
        "What is inside the {n}?", "What does the {n} hold inside?", "Which thing is hidden inside the {n}?",
        "Is there something inside the {n}?", "What do I find inside the {n}?", "Of what is the inside of the {n}?",
    ),
    "where the {n} was yesterday": (
        "Where was the {n} yesterday?", "Where was the {n} last week?", "At which place was the {n} yesterday?",
        "Where did the {n} stay yesterday?", "Where has the {n} been before?", "In which city was the {n} yesterday?",
    ),
    "what the {n} does tomorrow": (
        "What does the {n} do tomorrow?", "Where is the {n} tomorrow?", "What are the plans of the {n}?",
        "Which plans has the {n} for tomorrow?", "Tell me what the {n} does next week.",
        "What will the {n} do tomorrow?",
    ),
    "who took the picture": (
        "Who took this picture?", "Name the owner of the camera.", "Who made this photo?",
        "By whom was the picture taken?", "Who is behind the camera?", "Which person took the picture?",
    ),
    "where this was taken": (
        "Where was this picture taken?", "In which city was this taken?", "At which place was the picture taken?",
        "In which country is this?", "Where in the world is this?", "Which city is this?",
    ),
    "when this was taken": (
        "When was this picture taken?", "In which year was this taken?", "On which day was the picture taken?",
        "How old is this picture?", "At what time was this taken?", "What year is it in the picture?",
    ),
    "what happens next": (
        "What happens next?", "What happens after this picture?", "What comes after this?",
        "How does the story end?", "What will happen then?", "What is in the next picture?",
    ),
    "how warm it is": (
        "How warm is it there?", "How cold is it in the picture?", "Is it warm or cold there?",
        "What is the weather in the picture?", "Does it rain there today?", "How warm is the day in the picture?",
    ),
    "why the {n} is here": (
        "Why is the {n} here?", "For whom is the {n} here?", "For what reason is the {n} here?",
        "Who has put the {n} here, and why?", "What does the {n} do here?", "What is the reason for the {n}?",
    ),
    "how the {n} smells": (
        "How does the {n} smell?", "Does the {n} smell good?", "What is the smell of the {n}?",
        "Has the {n} a bad smell?", "Which smell does the {n} have?", "Is the smell of the {n} good or bad?",
    ),
    "how the {n} sounds": (
        "How does the {n} sound?", "Is the {n} loud or quiet?", "Which sound does the {n} make?",
        "What do I hear from the {n}?", "Does the {n} make a sound?", "What is the sound of the {n}?",
    ),
    "how long the {n} lasts": (
        "How long does the {n} last?", "For how many years does the {n} last?", "When does the {n} break?",
        "How long will I have the {n}?", "Until when is the {n} good?", "How many years will the {n} last?",
    ),
    "who likes the {n}": (
        "Who likes the {n}?", "Does my friend like the {n}?", "Which person likes the {n} best?",
        "Is the {n} liked by many?", "Who is a friend of the {n}?", "Name a person who likes the {n}.",
    ),
}  # fmt: skip
# The same questions as clauses of a request. The last two are held out.
ASKING = (
    "Tell me {c}.", "Do you know {c}?", "Can you tell {c}?", "Please say {c}.", "I want to know {c}.",
    "Say {c}.", "Could you find out {c}?", "Have you an idea {c}?", "Answer in one word: {c}.",
    "I would like to know {c}.", "Can you say {c}?", "Please tell me {c}.", "Do you have an idea {c}?",
)  # fmt: skip
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
    "move the {n}": ("Move the {n} to the left.", "Pull the {n} away.", "Lift the {n}.", "Push the {n} to the right."),
    "buy the {n}": (
        "Buy the {n} for me.", "Get me such a {n} from a shop.", "Pay for the {n}.", "Order the {n} for me.",
    ),
    "send the picture": (
        "Send this picture to a friend.", "Post the picture to my friend.", "Send this image to the shop.",
        "Mail the picture to a friend.",
    ),
    "play a song": ("Play a song about the {n}.", "Play music.", "Let me hear a song.", "Sing a song about the {n}."),
    "open the door": ("Open the door.", "Open the window.", "Lock the door.", "Close the door of the house."),
    "call the owner": (
        "Call the owner of the {n}.", "Call my friend.", "Ring up the shop.", "Phone the owner of the {n}.",
    ),
    "print the picture": (
        "Print this picture.", "Make a print of the {n}.", "Put the picture on paper.", "Print the image for me.",
    ),
    "touch the {n}": ("Touch the {n}.", "Hold the {n} in a hand.", "Feel the {n}.", "Put a hand on the {n}."),
    "draw the {n}": ("Draw the {n}.", "Paint a new {n}.", "Make a drawing of the {n}.", "Draw another {n} for me."),
    "clean the {n}": ("Clean the {n}.", "Wash the {n}.", "Make the {n} clean.", "Wipe the {n} for me."),
}  # fmt: skip
# The same instructions as requests. The last two are held out.
ORDERING = (
    "Please {c}.", "Can you {c}?", "I want you to {c}.", "Go and {c}.", "You have to {c} now.", "Try to {c}.",
    "I need you to {c} today.", "Now {c}.", "Will you {c}?", "Could you {c} for me?",
)  # fmt: skip
HELD_OUT_REQUESTS = 2
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
    action = draw.random() < 0.3
    asked, requests, answers = (ACTIONS, ORDERING, ACTION_ANSWERS) if action else (UNKNOWN, ASKING, UNKNOWN_ANSWERS)
    clauses = list(asked)
    number = int(draw.integers(len(clauses)))
    clause, wordings = clauses[number], asked[clauses[number]]
    if draw.random() < 0.5:
        known, unseen = wordings[:-1], wordings[-1:]
    else:
        known, unseen = requests[:-HELD_OUT_REQUESTS], requests[-HELD_OUT_REQUESTS:]
    wording = str(draw.choice(unseen if held_out else known))
    shown = bool(scene.objects) and draw.random() < 0.5
    noun = str(draw.choice(scene.nouns if shown else NOUN_LIST))
    # The wording of the answer follows from what is asked.
    answer = answers[number % len(answers)]
    question, answer = wording.replace("{c}", clause), answer.replace("{c}", clause)
    return Turn(IMAGE_PREFIX + question.format(n=noun), answer.format(n=noun))


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
