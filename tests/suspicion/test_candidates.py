"""Which sets of visual tokens are masked, one at a time."""

import numpy as np
import torch

from disp.suspicion.candidates import candidate_ranks, candidates_of, parents_of, screen_ranks
from disp.suspicion.config import ScoringConfig


def tried(count, ratio):
    return ScoringConfig(candidates=count, mask_ratio=ratio)


def test_candidates_are_singles_then_slices_of_the_ranking():
    visual = torch.tensor([[False, True, True, True, True, True, True, True, True, False]])
    scores = torch.tensor([[9.0, 1, 8, 3, 7, 2, 6, 4, 5, 9]])
    sets = candidates_of(scores, visual, tried(3, 0.5)).sets[0]
    assert [chosen.nonzero()[:, 0].tolist() for chosen in sets] == [[2], [4], [6], [2, 4], [6, 8], [3, 7]]


def test_slices_reach_to_a_third_of_the_tokens_and_begin_half_as_large():
    visual = torch.ones(1, 60, dtype=torch.bool)
    scores = torch.arange(60.0, 0, -1)[None]
    sets = candidates_of(scores, visual, tried(1, 0.07)).sets[0]
    chosen = [each.nonzero()[:, 0].tolist() for each in sets]
    halves = [[0, 1], [2, 3], [4, 5]]
    assert chosen == [[0], *halves, *([start + at for at in range(4)] for start in (6, 10, 14, 18))]


def test_no_candidate_is_tried_twice_where_tokens_are_few():
    for visual in range(1, 40):
        ranks = candidate_ranks(visual, tried(4, 0.06))
        assert len(set(ranks)) == len(ranks)
        assert all(each and each.stop <= visual for each in ranks)


def test_a_row_without_visual_tokens_has_empty_candidates():
    visual = torch.tensor([[True] * 4, [False] * 4])
    sets = candidates_of(torch.rand(2, 4), visual, tried(2, 0.5)).sets
    assert sets[0].any(-1).all()
    assert not sets[1].any()


def test_candidates_of_a_row_are_its_own_whoever_is_beside_it():
    """The row with more visual tokens has larger sets and more of them; the other's are as they are alone."""
    visual = torch.zeros(2, 200, dtype=torch.bool)
    visual[0, 20:56] = True
    visual[1] = True
    scores = torch.from_numpy(np.random.default_rng(0).random((2, 200)))
    together = candidates_of(scores, visual, tried(3, 0.12)).sets
    for row in range(2):
        alone = candidates_of(scores[row : row + 1], visual[row : row + 1], tried(3, 0.12)).sets[0]
        assert torch.equal(together[row, : len(alone)], alone)
        assert not together[row, len(alone) :].any()
        assert alone.sum(-1).max() <= 0.12 * visual[row].sum()


def test_how_the_ranking_is_sliced_is_a_setting():
    """16 tokens in slices of 4 and half slices of 2, down to three quarters."""
    config = ScoringConfig(candidates=1, mask_ratio=0.25, half_slices=1, sliced_share=0.75)
    assert candidate_ranks(16, config) == [range(1), range(2), range(2, 6), range(6, 10), range(10, 14)]


def test_whole_slices_are_screened_together_and_by_halves():
    """144 tokens: five slices of eight behind three half slices."""
    config = ScoringConfig()
    assert screen_ranks(144, config) == [range(12, 52), range(12, 36), range(12, 28), range(36, 52)]
    assert screen_ranks(0, config) == []
    assert screen_ranks(144, ScoringConfig(screen=None)) == []


def test_each_set_but_the_most_salient_token_waits_for_the_smallest_one_around_it():
    ranks = [range(1), range(1, 2), range(4), range(4, 8), range(12, 20), range(12, 52), range(12, 28)]
    assert parents_of(ranks) == [-1, 2, -1, -1, 6, -1, 5]


def test_every_candidate_that_waits_lies_in_a_set_of_its_own_row_that_is_tried():
    visual = torch.zeros(3, 200, dtype=torch.bool)
    visual[0, 20:56] = True
    visual[1] = True
    found = candidates_of(torch.from_numpy(np.random.default_rng(0).random((3, 200))), visual, ScoringConfig())
    together = torch.cat([found.sets, found.screens], dim=1)
    for row, parents in enumerate(found.parents.tolist()):
        for own, around in enumerate(parents):
            if around >= 0:
                assert together[row, own].any()
                assert not (together[row, own] & ~together[row, around]).any()
    # What waits for nothing covers all that is looked at.
    first = together & (found.parents < 0)[..., None]
    assert torch.equal(first.any(1), found.sets.any(1))
    assert not found.parents[2].ge(0).any()
