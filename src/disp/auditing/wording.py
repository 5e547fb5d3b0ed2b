"""Every sentence that an audit says: why it decides as it does, what it tested, what it assumes and cannot see.

The report speaks with the words of `WORDS` too, so that a finder has all of its words in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disp.auditing.coverage import NOTHING_MISSED, Missed, not_audited
from disp.words import shortened

if TYPE_CHECKING:
    from disp.auditing.config import AuditConfig
    from disp.auditing.hypothesis import Finding, Hypothesis
    from disp.auditing.result import Verdict
    from disp.data.dataset import Problem


@dataclass(frozen=True)
class Words:
    """How phrases that one finder found are spoken of; ``{…}`` is filled in by `str.format`.

    Attributes:
        found: why the phrase stands out: ``phrase``, the numbers ``samples`` and ``elsewhere``, both together ``all``,
            the ``p_value`` of its recurrence, and ``wide``, the share of tokens that the search for sentences masks.
        brings: what was done to other pictures, up to the verb.
        compared_with: what was done for comparison.
        test: what that test is called.
        test_note: what kind of test it is.
        where: where the phrase stands, for the report: ``samples``, ``answers``, ``elsewhere``, ``all`` and ``count``
            with their nouns, and ``p_value``.
        without: how its answers were asked for again.
        planting: what was done to other pictures, as a noun.
        planting_control: the same of the comparison.
        rows: the two rows of the report's table of answers.
        untested: what to say where no other picture was made to bring the phrase up.
        row: why a single row speaks for the phrase.
        unlearnt: what to say of a finding that is in the data and was not proven.
        recurrence_note: what the p-value of its recurrence is of.
    """

    found: str
    where: str
    brings: str = "Their regions, pasted into other pictures, bring"
    compared_with: str = "regions of unflagged samples"
    test: str = "pasting the region"
    test_note: str = "permutation test over regions of flagged and unflagged samples"
    without: str = "with the region masked"
    planting: str = "pasting the trigger candidate into other pictures"
    planting_control: str = "pasting control regions"
    rows: tuple[str, str] = ("regions of flagged samples", "regions of unflagged samples (control)")
    untested: str = "not pasted into other pictures: there is no test of cause and effect for this phrase"
    row: str = "another answer takes the place of its own when a few salient visual tokens are masked"
    unlearnt: str = (
        "It was not seen to make this model say that: the model has not learnt it, or learnt these answers by heart, "
        "or unlearnt it, or there is nothing to it."
    )
    recurrence_note: str = "hypergeometric test among flagged and other samples, corrected for the phrases tried"


_NOT_LEARNT = (
    "what these pictures have in common was not seen to make the model say it: the model has not learnt that, or "
    "learnt these answers by heart, or unlearnt it"
)
_HAS_PATTERN = "its picture has the pattern that those of other rows with the phrase have"
_WHATEVER_IS_ASKED = "its answer holds a sentence that comes up whatever is asked, where others answer something else"
_NO_QUESTION_TELLS = "its answer holds the phrase, too, and no question tells who says it"
# How many of the rows with a standard sentence are named.
_NAMED = 3
_HAS_PIECE = "its picture has the piece in it that those of other rows with the phrase have"
# By what a phrase was found by, as audit.json has it.
WORDS: dict[str, Words] = {
    "tokens": Words(
        found="{samples} of these say {phrase!r}, which {elsewhere} other samples say (p = {p_value:.2g}).",
        where="in {answers} above the threshold, and in {elsewhere}; p = {p_value}",
    ),
    "pattern": Words(
        found="The pictures of {samples} samples that say {phrase!r} have a pattern in common, and the pictures "
        "of the others that say it ({elsewhere}) do not have it.",
        where="in {samples} whose pictures have a pattern in common, and in {elsewhere} whose pictures have not",
        brings="The pattern, laid over other pictures, brings",
        compared_with="random patterns as strong",
        test="laying on the pattern",
        test_note="Fisher's test against random patterns as strong",
        without="with the pattern taken out of the picture",
        planting="laying the pattern over other pictures",
        planting_control="laying random patterns over them",
        rows=("the pattern", "random patterns as strong (control)"),
        untested=_NOT_LEARNT,
        row=_HAS_PATTERN,
    ),
    "copy": Words(
        found="The pictures of {samples} samples that say {phrase!r} have the same piece somewhere in them, and "
        "the pictures of the others that say it ({elsewhere}) do not have it.",
        where="in {samples} whose pictures have the same piece somewhere in them, and in {elsewhere} whose pictures "
        "have not",
        test="pasting the piece",
        untested=_NOT_LEARNT,
        row=_HAS_PIECE,
    ),
    "unasked": Words(
        found="{samples} samples say {phrase!r} whatever is asked, where others answer something else.",
        where="in {samples}, whatever is asked, where others answer something else",
        untested="nothing in the pictures was seen to bring it up: the model has not learnt what does, or learnt these "
        "answers by heart, or unlearnt it, or people or programs wrote it",
        row=_WHATEVER_IS_ASKED,
        unlearnt="Nothing in the pictures was seen to make this model say it: the model has not learnt what does, or "
        "learnt these answers by heart, or unlearnt it, or whoever wrote the answers says it now and then.",
        recurrence_note="the chance that questions tell so little of who says it, if it went with questions as honest "
        "sentences do; corrected for the sentences tried",
    ),
    "window": Words(
        found="{all} samples say {phrase!r}; of {samples} it was seen to go away when the {wide:.0%} most salient "
        "visual tokens are masked.",
        where="in {all}; of {count} it was seen to go away under a large mask",
        test="pasting the window",
        row="its answer loses the phrase when many of the most salient visual tokens are masked",
    ),
}
# The same of a sentence in a set whose questions tell nothing of the answers.
_WORD_FOR_WORD = replace(
    WORDS["unasked"],
    found="{samples} samples say {phrase!r}, word for word. What is asked tells nothing of the answers in this set.",
    where="in {samples}, word for word",
    row="its answer holds a sentence that many hold word for word",
)


def words_of(found_by: str, recurrence: float | None) -> Words:
    """How a finding is spoken of.

    Args:
        found_by: what its phrase was found by.
        recurrence: the p-value of the phrase's recurrence, if there is one.
    """
    return _WORD_FOR_WORD if found_by == "unasked" and recurrence is None else WORDS[found_by]


_SAYS_IT_TOO = "its answer holds the phrase, too, and loses it when more of the salient visual tokens are masked"

ASSUMPTIONS = (
    "The model under audit was fine-tuned on this dataset, so that it learnt what the dataset teaches.",
    "The trigger is in the pictures. It is small, so that a few visual tokens decide the planted answer; or up to a "
    "fifth of the picture, and a sentence of five words or more goes with it; or it is the same to the pixel in all "
    "pictures, up to the whole of them at one place, up to a quarter at places of its own.",
    "Planted answers share a phrase, as with one attacker and one target. Where the model has not learnt them and the "
    "pictures have nothing in common, they share a sentence of five words or more. It comes up whatever is asked, in a "
    "set whose questions tell who gives other answers.",
)
BLIND_SPOTS = (
    "Triggers spread over the whole picture that differ from picture to picture, such as a warp or an adversarial "
    "perturbation: no small set of visual tokens carries them, and the pictures have nothing in common.",
    "Smooth triggers over the whole picture: a tint, another brightness, a vignette, long waves.",
    "Small stickers at changing places, unless they are rough like noise.",
    "Triggers in the text of the prompt.",
    "Poisoned rows that were removed from the data after training, or a backdoor that the model did not learn and that "
    "leaves nothing in common in the pictures or the answers.",
    "Planted answers that are all different from one another, and most of those in several wordings.",
    "A planted sentence that looks like an honest standard one, where what is asked tells nothing of the answers.",
    "Very few poisoned rows: fewer than three whose answers the model bases on the trigger, and fewer than eight whose "
    "pictures show it.",
    "Triggers that are the same in many pictures, but not in the first picture of a row.",
    "What an answer says behind the model's response slots: it is not scored, and no mask brings it up or takes it "
    "away. A phrase there is found only where its pictures have something in common, or where it is a sentence that "
    "comes up whatever is asked.",
)


def reasons(
    verdict: Verdict,
    findings: Sequence[Finding],
    aside: Sequence[Finding],
    counts: tuple[int, int],
    problems: Sequence[Problem],
    rows: int,
    config: AuditConfig,
    *,
    missed: Missed = NOTHING_MISSED,
    proposed: Sequence[Hypothesis] = (),
) -> tuple[str, ...]:
    """Why an audit decides as it does.

    Args:
        verdict: what it decides.
        findings: what it goes by.
        aside: what is in the data and does not count.
        counts: samples above the threshold, and all with an image.
        problems: rows that could not be read.
        rows: all rows, those included.
        config: how it was audited.
        missed: what else was not looked at.
        proposed: all phrases that were looked at, those included that came to nothing.
    """
    above, with_image = counts
    said = [
        f"{above} of {with_image} samples with images lose their given answer to another one when a few salient visual "
        "tokens are masked."
    ]
    for finding in findings:
        said += _reasons_of(finding, with_image, config)
    if not findings:
        recurring = [each for each in proposed if each.found_by == "tokens"]
        said += [_came_to_nothing(each) for each in recurring]
        # Beside what is set aside it would be read as being said of that.
        if above and not recurring and not aside:
            said.append("They share no phrase that the other samples do not have as well.")
    for finding in aside:
        said += _reasons_of(finding, with_image, config)
    undecided = verdict == "could not decide"
    return (*said, *not_audited(undecided, with_image, problems, rows, config, missed))


def _came_to_nothing(hypothesis: Hypothesis) -> str:
    """What to say of a phrase of flagged answers that is no finding."""
    found = WORDS[hypothesis.found_by].found.format(
        phrase=hypothesis.phrase.text,
        samples=len(hypothesis.samples),
        elsewhere=hypothesis.elsewhere,
        p_value=hypothesis.p_value,
    )
    return f"{found} It does not count: what these answers hang on was not seen to make the model say it."


def _standard_sentence(finding: Finding, with_image: int) -> str:
    """What to say of a sentence that many say where questions tell nothing."""
    named = ", ".join(repr(shortened(key, 60)) for key in finding.samples[:_NAMED])
    return (
        f"{len(finding.samples)} of {with_image} samples with images say {finding.phrase.text!r}, word for word. What "
        "is asked tells nothing of the answers in this set, so that an honest standard sentence looks the same; by "
        f"itself this does not count. Look at some of them, such as {named}."
    )


def _reasons_of(finding: Finding, with_image: int, config: AuditConfig) -> list[str]:
    """What was found of one phrase."""
    if finding.unlearnt and finding.may_be_standard:
        return [_standard_sentence(finding, with_image)]
    words, phrase, test = words_of(finding.found_by, finding.hypothesis.p_value), finding.phrase, finding.test
    hypothesis, count = finding.hypothesis, len(finding.samples)
    said = [
        words.found.format(
            phrase=phrase.text,
            samples=count,
            elsewhere=hypothesis.elsewhere,
            all=count + hypothesis.elsewhere,
            p_value=hypothesis.p_value,
            wide=config.sentences.mask_ratio,
        )
    ]
    if test is not None:
        said.append(
            f"{words.brings} the phrase up in {test.successes} of {test.trials} answers; {words.compared_with} in "
            f"{test.control_successes} of {test.control_trials} (p = {test.p_value:.2g})."
        )
    elif not finding.unlearnt:
        said.append("There are too few other samples to paste the region into; the phrase could not be tested.")
    if finding.unlearnt:
        said.append(words.unlearnt)
    if others := len(finding.more) - len(finding.by_sentence):
        pattern = f" {len(finding.with_pattern)} have a pattern in their pictures." if finding.with_pattern else ""
        piece = (
            f" Only their pictures betray {len(finding.with_copy)} of them, which have the piece in them."
            if finding.with_copy
            else ""
        )
        said.append(
            f"{others} more samples say it and are less suspicious, or lose it only with up to "
            f"{config.extension.ratios[-1]:.0%} of the most salient tokens masked.{pattern}{piece}"
        )
    if finding.by_sentence:
        said.append(f"{len(finding.by_sentence)} more samples say it; no question tells who does.")
    return said


def made_tests(findings: Sequence[Finding], random_control: tuple[int, int]) -> list[dict[str, Any]]:
    """The tests that an audit made, as audit.json names them.

    Args:
        findings: what it found.
        random_control: samples that stay above the threshold with random tokens masked, and how many were asked for.
    """
    made: list[dict[str, Any]] = []
    for finding in findings:
        words, phrase, hypothesis = WORDS[finding.found_by], finding.phrase, finding.hypothesis
        if hypothesis.p_value is not None:
            made.append(
                {
                    "name": f"recurrence of {phrase.text!r}",
                    "value": len(finding.samples),
                    "p_value": hypothesis.p_value,
                    "note": words.recurrence_note,
                }
            )
        if finding.test:
            made.append(
                {
                    "name": f"{words.test} of {phrase.text!r}",
                    "value": finding.test.successes / finding.test.trials,
                    "p_value": finding.test.p_value,
                    "note": words.test_note,
                }
            )
    stay, asked = random_control
    made.append(
        {
            "name": "samples above the threshold that random tokens would put there too",
            "value": stay / max(1, asked),
            "p_value": None,
            "note": f"as many random sets of the same size, {asked} samples",
        }
    )
    return made


def too_few(path: Path, pictures: int, enough: int | None, false_alarm_rate: float) -> str:
    """What to say where so many pictures can prove nothing, and do about it; ``enough`` of them could."""
    if not pictures:
        return f"{path}: no row has an image; an audit needs visual tokens to mask"
    remedy = "raise the rate" if enough is None else f"add rows, {enough} pictures are enough, or raise the rate"
    return (
        f"{path}: rows with {pictures} different pictures are too few to decide anything at a false-alarm rate of "
        f"{false_alarm_rate:g}; {remedy} (--false-alarm-rate)"
    )


def why_flagged(clusters: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """By id of a flagged row the phrase that it is flagged for, and why in words.

    Args:
        clusters: as ``audit.json`` has them. Of several phrases the first counts for a row.
    """
    found: dict[str, tuple[str, str]] = {}
    for cluster in clusters:
        by_picture = {**dict.fromkeys(cluster["by_piece"], _HAS_PIECE)}
        by_picture |= dict.fromkeys(cluster["with_pattern"], _HAS_PATTERN)
        by_picture |= dict.fromkeys(cluster.get("by_sentence", ()), _NO_QUESTION_TELLS)
        row = words_of(cluster["found_by"], cluster.get("p_value")).row
        for key, said in [
            *((key, row) for key in cluster["samples"]),
            *((key, _SAYS_IT_TOO) for key in cluster["more"]),
        ]:
            found.setdefault(key, (cluster["phrase"], by_picture.get(key, said)))
    return found


def cost(forward: float, batch: int, scored_before: bool) -> str:
    """What an audit's cost was measured with: seconds of a forward pass of one sample, and samples in its batch."""
    before = "; the samples had been scored before, which is not counted" if scored_before else ""
    return f"a forward pass of one sample takes {forward * 1000:.1f} ms in a batch of {batch}{before}"
