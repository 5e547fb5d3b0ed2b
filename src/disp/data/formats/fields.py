"""Rows with a field for the question and one for the answer: ms-swift, Alpaca, question files, captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from disp.data.formats.pairs import Pair, fields_of, kind_of, read_pair, write_pair
from disp.data.formats.row import BadRow, Content, Dialect, Fields, is_number, leave_out, pictures_in
from disp.data.formats.talk import says
from disp.data.sample import Turn


def pair_dialect(
    name: str, wants: str, *pairs: Pair, needs: str | None = None, pictured: bool = False, alone: bool = False
) -> Dialect:
    """A dialect of rows that one of the pairs fits.

    Args:
        name: the dialect's name.
        wants: its keys, for messages.
        pairs: the names of the fields; the first that a row has is taken.
        needs: a field that a row must have as well.
        pictured: whether a row must have a picture.
        alone: whether a row that has something else that is called as answers are is not to be read.
    """

    def pair_of(row: Fields) -> Pair | None:
        if needs and needs not in row:
            return None
        return next((pair for pair in pairs if pair.matches(row) and (not pictured or _has_picture(row, pair))), None)

    def read(row: Fields, questions: bool) -> Content:
        if pair := pair_of(row):
            if pair.answer is None and not questions and (fault := _misfit(row, _ANSWERED)):
                raise BadRow(fault)
            if alone:
                _check_alone(row, pair, questions)
            answers = [each.answer for each in pairs if each.answer and each.matches(row) and each.text_of_answer(row)]
            if len(answers) > 1 and pair.answer in answers:
                raise BadRow(
                    f"has answers under {answers[0]!r} and under {answers[1]!r}; take one of them out, as "
                    f"{leave_out(answers[1])} does"
                )
            return read_pair(row, pair, questions)
        raise BadRow(_misfit(row, pairs) or f"needs {wants}, with text in them")

    def write(row: Fields, system: str | None, turns: tuple[Turn, ...], pictures: list[Any] | None) -> dict[str, Any]:
        return write_pair(row, pair_of(row) or pairs[0], system, turns, pictures)

    def reads(row: Fields) -> tuple[str, ...]:
        return fields_of(row, pair_of(row) or pairs[0])

    return Dialect(name, wants, lambda row: pair_of(row) is not None, read, write, reads=reads)


def pairs_in(row: Fields, unread: Fields) -> list[tuple[str, str]]:
    """The fields of a row for a question and an answer that was not read, whatever they hold.

    A trainer may take lists of messages there.
    """
    named = [(pair.question, pair.answer) for pair in _ANSWERED]
    return [(ask, told) for ask, told in named if ask and told and _is_said(row, ask) and _is_said(unread, told)]


def _is_said(row: Fields, field: str) -> bool:
    return says(row.get(field)) or is_number(row.get(field))


def check_fits(row: Fields) -> None:
    """Raise `BadRow` where a row has the question and the answer of a format, and one of them holds something else."""
    if fault := _misfit(row, _ANSWERED):
        raise BadRow(fault)
    for pair in _ANSWERED:
        asked = row.get(str(pair.question))
        if isinstance(asked, str) and asked and (key := next((each for each in row if _is_answer(row, each)), None)):
            raise BadRow(
                f"has text under {pair.question!r}, and what may be the answer under {key!r}, which holds "
                f"{kind_of(row[key])}; the answer must be under {pair.answer!r}, as text or a number"
            )
    for caption in ("text", "caption"):
        if says(row.get(caption)) and _has_picture(row, _CAPTION):
            raise BadRow(f"{caption!r} holds {kind_of(row[caption])}, and must be text")


def _is_answer(row: Fields, key: str) -> bool:
    """Whether a field is called as answers are, and has something in it."""
    return str(key).lower() in _ANSWERS and (says(row[key]) or is_number(row[key]))


def _check_alone(row: Fields, pair: Pair, questions: bool) -> None:
    """Make sure that a caption, or a question without an answer, does not stand beside an answer.

    The text would be taken for the answer, and the answer itself would not be looked at. Classes are no answers where
    they are numbers, or stand beside what is called a caption.

    Raises:
        BadRow: it does.
    """
    if pair.answer is None and questions:  # asked anew, whatever the answers are
        return
    text = pair.answer or pair.question
    read = [name for name in (pair.question, pair.answer) if name]
    for key, value in row.items():
        name = str(key).lower()
        classes = name in _CLASSES and pair.answer != "caption" and isinstance(value, str) and not _is_number(value)
        if key in read or not (classes or _is_answer(row, key)):
            continue
        taken = "the answer" if pair.answer else "a question without an answer"
        raise BadRow(
            f"{text!r} would be read as {taken}, but {key!r} looks like the answer to it; call them 'question' and "
            f"'answer', with one text in each, or take {key!r} out, as {leave_out(key)} does"
        )


def _is_number(text: str) -> bool:
    """Whether a text is a number, as tables of text have them, or empty."""
    return not text.strip() or re.fullmatch(r"[-+]?[\d.,]+", text.strip()) is not None


def _misfit(row: Fields, pairs: Sequence[Pair]) -> str | None:
    return next((fault for pair in pairs if (fault := pair.misfit(row))), None)


def _has_picture(row: Fields, pair: Pair) -> bool:
    try:
        return bool(pictures_in(row, pair.pictures))
    except BadRow:
        return True  # it is named there in a wrong way, which is said when the row is read


_SWIFT = Pair("query", "response", system="system", history="history")
_ALPACA = Pair("instruction", "output", addition="input", system="system", history="history")
_QUESTION_ANSWER = (Pair("question", "answer"), Pair("prompt", "response"), Pair("prompt", "completion"))
_PALIGEMMA = Pair("prefix", "suffix")
_CAPTION = Pair(None, "caption")
# What answers are called beside those of a format, and what else may be one where it is text.
_ANSWERS = frozenset(
    "answer answers response responses output outputs completion completions text_output output_text solution suffix "
    "assistant gpt".split()
)
_CLASSES = frozenset(("label", "labels", "target", "targets"))
# All that have both a question and an answer.
_ANSWERED = (_SWIFT, _ALPACA, *_QUESTION_ANSWER, _PALIGEMMA)
MS_SWIFT = pair_dialect("ms-swift", "query, response and images", _SWIFT)
ALPACA = pair_dialect("alpaca", "instruction, input, output and images", _ALPACA)
QUESTION_ANSWER = pair_dialect("question-answer", "question, answer and image", *_QUESTION_ANSWER)
QUESTIONS = pair_dialect(
    "questions",
    "question_id, image and text",
    *(Pair(name, None) for name in ("text", "question", "prompt")),
    needs="question_id",
    alone=True,
)
PALIGEMMA = pair_dialect("paligemma", "image, prefix and suffix", _PALIGEMMA, pictured=True)
CAPTIONS = pair_dialect("captions", "image and text", Pair(None, "text"), _CAPTION, pictured=True, alone=True)
