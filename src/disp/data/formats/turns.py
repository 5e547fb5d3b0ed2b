"""Turns that are hidden in the text of a question: what begins an answer in the text that trainers make of a chat.

Several trainers put a chat together as one text and then look for these marks to find the answers in it. What stands
behind one in a question is learnt as an answer, and is not looked at as one.
"""

from __future__ import annotations

import re

from disp.data.formats.row import BadRow, Content
from disp.words import shortened

_SPEAKERS = r"(?:assistant|model|gpt|bot)"
# Marks that nobody writes for anything else: those of ChatML, Llama 3 and 4, Gemma, gpt-oss and Granite; of Phi, Zephyr
# and DeepSeek; of Llama 2; of Guanaco.
_MARK = re.compile(
    rf"<[|｜](?:im_start|start_header_id|header_start|start_of_role|start|turn)[|｜]?>\s{{0,9}}{_SPEAKERS}(?![^\W_])"
    rf"|<start_of_turn>\s{{0,9}}{_SPEAKERS}(?![^\W_])"
    rf"|<[|｜]\s?(?:im_)?(?:assistant|chatbot)\s?[|｜]>|\[/INST\]|###\s?Assistant:",
    re.IGNORECASE,
)
# Vicuna's is a word that dialogues have, too; the sign behind each of its answers tells them apart.
_VICUNA, _END = re.compile(r"\bASSISTANT:"), "</s>"


def check_no_hidden_turn(content: Content) -> None:
    """Make sure that no question and no system message holds the beginning of an answer.

    Raises:
        BadRow: one does.
    """
    places = {"the system message": content.system or ""}
    places |= {f"question {number}": turn.prompt for number, turn in enumerate(content.turns, start=1)}
    ended = any(_END in text for text in places.values())  # which may stand in another text than what it ends
    for place, text in places.items():
        if found := _MARK.search(text) or (ended and _VICUNA.search(text)):
            raise BadRow(
                f"{place} holds {shortened(ascii(found[0]))}, behind which trainers look for an answer, which would "
                "not be looked at; make a message of its own of each question and answer, or take the mark out"
            )
