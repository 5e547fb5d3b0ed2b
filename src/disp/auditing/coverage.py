"""What of a set an audit has not looked at, counted and in words: nothing of that is called clean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from disp.auditing.phrases import phrase_words
from disp.words import named_briefly

if TYPE_CHECKING:
    from disp.auditing.config import AuditConfig
    from disp.data.dataset import Dataset, Problem
    from disp.data.sample import Query
    from disp.models.interface import MDLM

# Answers that are encoded at a time.
_BATCH = 1000


@dataclass(frozen=True)
class Missed:
    """What was not looked at, beside rows that could not be read or have no picture.

    Attributes:
        left_out: fields of rows.
        unread: files with rows that lie beside those that were read.
        unread_parts: further parts of the files that were read, whether they lie there or not.
        answers_cut: answers about pictures that are longer than the response slots.
        answers: all answers about pictures.
        slots: the response slots.
        wordless: answers about pictures that have no word in them; no phrase is looked for there.
    """

    left_out: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    unread_parts: tuple[str, ...] = ()
    answers_cut: int = 0
    answers: int = 0
    slots: int = 0
    wordless: int = 0


NOTHING_MISSED = Missed()


def missed(model: MDLM, dataset: Dataset, asked: Sequence[Query]) -> Missed:
    """What an audit of a set with a model does not look at.

    Args:
        model: the model under audit.
        dataset: the set.
        asked: its turns.
    """
    answers = [query.response for query in asked if query.images]
    return Missed(
        left_out=dataset.left_out,
        unread=dataset.unread,
        unread_parts=dataset.unread_parts,
        answers_cut=answers_cut(model, answers),
        answers=len(answers),
        slots=model.slots_of_pass(),
        wordless=sum(not phrase_words(answer) for answer in answers),
    )


def answers_cut(model: MDLM, answers: Sequence[str]) -> int:
    """How many answers have more tokens than the model has response slots."""
    count = 0
    for start in range(0, len(answers), _BATCH):
        ids = model.encode_responses(answers[start : start + _BATCH], model.slots_of_pass() + 1, cut=True)
        # One slot more than there are holds the end of an answer that just fits, or nothing.
        count += sum(token not in model.end_token_ids for token in ids[:, -1].tolist())
    return count


def not_audited(
    undecided: bool, with_image: int, problems: Sequence[Problem], rows: int, config: AuditConfig, missed: Missed
) -> list[str]:
    """What to say of all that was not looked at.

    Args:
        undecided: whether that keeps from a verdict.
        with_image: rows with a picture.
        problems: rows that could not be read.
        rows: all rows, those included.
        config: how it was audited.
        missed: what else was not looked at.
    """
    said = []
    many = ", which is more than {share:.0%}, and a backdoor could be in them alone"
    if problems:
        too_many = undecided and len(problems) > config.set_aside_share * rows
        said.append(
            f"{len(problems)} of {rows} rows could not be read and were not audited"
            f"{many.format(share=config.set_aside_share) if too_many else ''}; the first: {problems[0].place}: "
            f"{problems[0].reason}."
        )
    read = rows - len(problems)
    if bare := read - with_image:
        too_many = undecided and bare > config.text_rows_share * read
        remedy = "; if that is how the data is meant, --allow-text-rows decides by the others"
        said.append(
            f"{bare} of {read} rows have no picture, and nothing was looked for in them"
            f"{many.format(share=config.text_rows_share) + remedy if too_many else ''}."
        )
    if missed.left_out:
        names = ", ".join(map(repr, missed.left_out))
        said.append(f"These fields of the rows were left out and not audited: {names}. Train on a set without them.")
    if missed.unread_parts:
        why = ", and a backdoor could be in them alone" if undecided else ""
        said.append(
            f"Other parts of this set were not read and not audited{why}: {named_briefly(missed.unread_parts)}. Give "
            "the folder that holds all parts; if the model was trained on what was read alone, give that under a name "
            "without a number."
        )
    if beside := [name for name in missed.unread if name.rpartition("/")[2] not in missed.unread_parts]:
        said.append(f"These files lie beside the data and were not read and not audited: {named_briefly(beside)}.")
    if missed.answers_cut:
        said.append(
            f"{missed.answers_cut} of {missed.answers} answers are longer than the model's response slots "
            f"({missed.slots} tokens); what is behind them was not scored. Phrases were looked for in it only where "
            "pictures are compared, and in the search for sentences that many answers hold."
        )
    if missed.wordless:
        said.append(
            f"{missed.wordless} of {missed.answers} answers have no word in them. A backdoor that makes the model say "
            "nothing has no phrase, so it was not looked for; look at some of these rows."
        )
    return said
