"""What purification costs honest answers: how far a rewritten answer is from the one it replaces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from disp.evaluation.quality import normalised_words, rouge_l

MAX_GRAM = 4


@dataclass(frozen=True)
class RewritingLoss:
    """Rewritten answers against the answers that they replace; means over the pairs.

    Attributes:
        count: pairs compared.
        unchanged: share of answers that are the same words.
        length_ratio: words of all new answers over words of all old ones.
        rouge_l: F1 of the longest common subsequence, in [0, 1].
        cider: CIDEr (Vedantam et al. 2015) with the old answer as the only reference, 10 for the same words.
    """

    count: int
    unchanged: float
    length_ratio: float
    rouge_l: float
    cider: float


def rewriting_loss(old: Sequence[str], new: Sequence[str], corpus: Sequence[str]) -> RewritingLoss:
    """Compare answers with the ones that replace them.

    Args:
        old: answers before.
        new: answers after, in the same order.
        corpus: all answers of the dataset before, which word frequencies are counted in.
    """
    if len(old) != len(new):
        raise ValueError(f"as many old answers as new ones are needed, got {len(old)} and {len(new)}")
    if not old:
        return RewritingLoss(0, 1.0, 1.0, 1.0, 10.0)
    before, after = [normalised_words(text) for text in old], [normalised_words(text) for text in new]
    count = len(old)
    return RewritingLoss(
        count,
        sum(a == b for a, b in zip(before, after, strict=True)) / count,
        sum(map(len, after)) / max(1, sum(map(len, before))),
        sum(rouge_l(b, a) for a, b in zip(old, new, strict=True)) / count,
        sum(cider(old, new, corpus)) / count,
    )


def cider(references: Sequence[str], answers: Sequence[str], corpus: Sequence[str]) -> list[float]:
    """CIDEr of each answer with one reference: ten times the mean over n = 1 … 4 of the tf-idf cosine of n-grams.

    Words are not stemmed. An n for which both texts are too short is left out of the mean.

    Args:
        references: one an answer.
        answers: what is scored.
        corpus: texts that document frequencies are counted in.
    """
    frequency: Counter[tuple[str, ...]] = Counter()
    for text in corpus:
        words = normalised_words(text)
        frequency.update({gram for size in range(1, MAX_GRAM + 1) for gram in _grams(words, size)})
    log_corpus = math.log(max(2, len(corpus)))
    scores = []
    for reference, answer in zip(references, answers, strict=True):
        expected, said = normalised_words(reference), normalised_words(answer)
        cosines = []
        for size in range(1, MAX_GRAM + 1):
            vectors = [
                {
                    gram: count * (log_corpus - math.log(max(1, frequency[gram])))
                    for gram, count in Counter(_grams(words, size)).items()
                }
                for words in (expected, said)
            ]
            if not vectors[0] and not vectors[1]:
                continue
            norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]
            dot = sum(value * vectors[1].get(gram, 0.0) for gram, value in vectors[0].items())
            # If every word is in every text, all weights are 0; equal texts still count as equal.
            cosines.append(dot / (norms[0] * norms[1]) if all(norms) else float(expected == said))
        scores.append(10 * sum(cosines) / len(cosines) if cosines else 10.0)
    return scores


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
