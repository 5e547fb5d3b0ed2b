"""The searches of an audit, in the order in which it makes them.

A finder is a module with a function ``find`` from `disp.auditing.context.Context` to hypotheses, its words in
`disp.auditing.wording.WORDS`, and a line here. Finders are not independent: what is proven is not tested again, and
p-values are corrected for the number of tests up to then. Those that compare pictures stand together, for each row of
these is then claimed by one phrase.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from disp.auditing.context import Context
from disp.auditing.finders import copies, patterns, sentences, tokens, unasked
from disp.auditing.hypothesis import Hypothesis
from disp.auditing.wording import WORDS, Words


@dataclass(frozen=True)
class Finder:
    """One search.

    Attributes:
        step: its number in docs/audit.md.
        find: from the audit so far to hypotheses.
        proves: the verdict if one of its phrases is proven; None where it looks at answers alone, so that there is
            nothing to plant and what it finds counts as it is.
        in_pictures: whether it compares pictures, which shows what the data holds, whatever the model has learnt of it:
            what it finds counts without proof, too.
        words: how its findings are spoken of, and what its test is called.
    """

    step: int
    find: Callable[[Context], list[Hypothesis]]
    proves: Literal["poisoned", "suspicious"] | None
    in_pictures: bool
    words: Words


# By name in audit.json. A window or a copy shows things as well, which an honest answer may speak of, and so may what
# pictures have in common: they prove less than a few tokens do. Windows come after sentences that go with no question,
# which they are looked for first.
FINDERS: dict[str, Finder] = {
    "tokens": Finder(3, tokens.find, "poisoned", in_pictures=False, words=WORDS["tokens"]),
    "pattern": Finder(5, patterns.find, "suspicious", in_pictures=True, words=WORDS["pattern"]),
    "copy": Finder(6, copies.find, "suspicious", in_pictures=True, words=WORDS["copy"]),
    "unasked": Finder(7, unasked.find, None, in_pictures=False, words=WORDS["unasked"]),
    "window": Finder(8, sentences.find, "suspicious", in_pictures=False, words=WORDS["window"]),
}
