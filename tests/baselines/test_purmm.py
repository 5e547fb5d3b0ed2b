"""Which tokens PurMM blanks, where the attention that tokens draw is given."""

from __future__ import annotations

import numpy as np
import torch

from disp.baselines import purmm


def test_tokens_next_to_those_that_late_layers_name(tiny_model, queries, monkeypatch):
    """Four layers over a picture of 3×3 tokens; the earlier two name other tokens than the later two."""
    prefix = tiny_model.encode(queries)
    drawn = torch.zeros(len(queries), 4, prefix.embeds.shape[1])

    def draw(row, layer, *tokens):
        drawn[row, layer, prefix.visual_mask[row].nonzero()[list(tokens), 0]] = 1.0

    draw(0, 0, 0, 8)  # corners
    draw(0, 2, 1)  # beside the first corner, not beside the last
    draw(1, 1, 3, 4, 5)  # no late layer names any
    draw(3, 0, 4, 13)  # the middle tokens of two pictures
    draw(3, 3, 9)  # a corner of the second picture
    monkeypatch.setattr(purmm, "attention_of", lambda *arguments: drawn)
    found = purmm.suspected(tiny_model, prefix, purmm.PurmmConfig())
    named = [found[row, prefix.visual_mask[row]].nonzero()[:, 0].tolist() for row in range(len(queries))]
    assert named == [[0, 1], [], [], [9, 13]]
    assert not (found & ~prefix.visual_mask).any()


def test_the_text_behind_the_pictures_looks(tiny_model, queries, monkeypatch):
    seen = {}

    def attention_of(model, prefix, reduce, prompt):
        seen["prompt"] = prompt
        return torch.zeros(len(prefix), 1, prefix.embeds.shape[1])

    monkeypatch.setattr(purmm, "attention_of", attention_of)
    prefix = tiny_model.encode(queries)
    purmm.suspected(tiny_model, prefix, purmm.PurmmConfig())
    for row, many in enumerate(seen["prompt"]):
        visual = prefix.visual_mask[row]
        assert not visual.any() or (visual[len(visual) - many - 1] and not visual[len(visual) - many :].any())
    assert seen["prompt"][2] == 0  # no picture


def test_one_token_that_draws_far_more_is_a_group_of_its_own():
    # Means that k-means moves about from the quantiles 0, 1 and 1 stop at the groups 0 and 1 with 6, a squared distance
    # of 24.4 within groups; apart it is 0.
    values = np.array([1.0] * 38 + [6.0] + [0.0] * 21)
    assert purmm.highest_group(values, 3).nonzero()[0].tolist() == [38]
    assert not purmm.highest_group(np.full(5, 0.25), 3).any()
    assert purmm.highest_group(np.array([0.0, 1.0, 0.0]), 3).tolist() == [False, True, False]
