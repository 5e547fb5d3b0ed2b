"""Support scores against slow, explicit computation."""

import math

import numpy as np
import pytest
import torch
from planted import planted_model, planted_rows, write_rows

from disp.errors import DispError
from disp.suspicion.candidates import candidates_of
from disp.suspicion.config import ScoringConfig
from disp.suspicion.support import (
    counterfactual_scores,
    fixed_masks,
    least_effect,
    narrowed,
    negative_log_likelihood,
    preference_for_another,
    preference_in,
    suspicion_of,
)

ONE_MASK = torch.ones(1, 4, dtype=torch.bool)


def _log_probabilities(model, prefix, ids):
    with torch.no_grad():
        return torch.log_softmax(model.denoise(prefix, ids), dim=-1)


def test_fixed_masks_are_shared_and_end_with_everything_masked():
    masks = fixed_masks(50, 4, seed=3)
    assert masks.shape == (4, 50)
    assert masks[-1].all()
    assert torch.equal(masks, fixed_masks(50, 4, seed=3))
    assert not torch.equal(masks, fixed_masks(50, 4, seed=4))
    assert 2 <= int(masks[0].sum()) <= 25  # about a quarter


def test_likelihood_equals_a_loop_over_masks_and_positions(tiny_model64, queries):
    prefix = tiny_model64.encode(queries)
    response = torch.tensor([[10, 11, 12, 13]] * len(queries))
    masks = torch.tensor([[True, False, True, False], [True, True, True, True]])
    found = negative_log_likelihood(tiny_model64, prefix, response, masks)
    for row in range(len(queries)):
        one = prefix.select(torch.tensor([row]))
        total = 0.0
        for mask in masks:
            ids = response[row : row + 1].clone()
            for position in range(4):
                if mask[position]:
                    ids[0, position] = tiny_model64.mask_token_id
            log_p = _log_probabilities(tiny_model64, one, ids)
            hidden = [position for position in range(4) if mask[position]]
            total += sum(-log_p[0, j, response[row, j]].item() for j in hidden) / len(hidden)
        assert math.isclose(found[row].item(), total / 2, rel_tol=1e-5)


def test_preference_is_zero_for_the_models_own_answer_and_follows_the_formula(tiny_model64, queries):
    prefix = tiny_model64.encode(queries)
    masked = torch.full((len(queries), 4), tiny_model64.mask_token_id)
    with torch.no_grad():
        logits = tiny_model64.denoise(prefix, masked)
    logits[..., tiny_model64.mask_token_id] = -math.inf  # decoding never predicts it
    log_p = logits.log_softmax(-1)
    assert torch.equal(
        preference_for_another(tiny_model64, prefix, log_p.argmax(-1)), torch.zeros(len(queries), dtype=torch.float32)
    )
    other = torch.full((len(queries), 4), 17)
    expected = [
        sum(math.exp(log_p[row, j].max()) * (log_p[row, j].max() - log_p[row, j, 17]).item() for j in range(4))
        for row in range(len(queries))
    ]
    found = preference_for_another(tiny_model64, prefix, other)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-5, atol=1e-6)


def test_counterfactual_scores_do_not_depend_on_batches_and_equal_one_by_one(tiny_model, queries):
    prefix = tiny_model.encode(queries[:2])
    response = torch.tensor([[10, 11, 12, 13]] * 2)
    scores = torch.arange(prefix.visual_mask.numel()).view(prefix.visual_mask.shape).float()
    candidates = candidates_of(scores, prefix.visual_mask, ScoringConfig(candidates=3, mask_ratio=0.5)).sets
    base, found = counterfactual_scores(tiny_model, prefix, response, candidates, batch_size=2)
    whole = counterfactual_scores(tiny_model, prefix, response, candidates, batch_size=50)[1]
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(base, preference_for_another(tiny_model, prefix, response))
    for row in range(2):
        for index in range(candidates.shape[1]):
            one = prefix.select(torch.tensor([row])).with_masked(
                candidates[row : row + 1, index], tiny_model.mask_embedding
            )
            alone = preference_for_another(tiny_model, one, response[row : row + 1])
            torch.testing.assert_close(found[row, index], alone[0], rtol=1e-4, atol=1e-5)


def test_what_a_model_says_behind_the_end_of_an_answer_does_not_count():
    """Five slots, of which the end of the answer is the third: those of its padding are left out."""
    response = torch.tensor([[7, 8, 1, 2, 2], [7, 8, 9, 7, 8]])
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 5, 12)) * 3)
    log_p = logits.double().log_softmax(-1)
    expected = [
        sum(
            math.exp(log_p[row, j].max()) * (log_p[row, j].max() - log_p[row, j, response[row, j]]).item()
            for j in range(slots)
        )
        for row, slots in enumerate((3, 5))
    ]
    found = preference_in(logits, response, (1, 2))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-5, atol=1e-5)
    logits[0, 3:] = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 12)))
    assert torch.equal(preference_in(logits, response, (1, 2)), found)


def test_what_decoding_never_predicts_is_no_other_answer():
    """A favourite that is banned counts as little as if the vocabulary had no such token, unless it is given."""
    generator = np.random.default_rng(0)
    others = torch.from_numpy(generator.standard_normal((2, 5, 12)) * 3)
    favourites = torch.from_numpy(generator.standard_normal((2, 5, 2)) + 9)
    logits = torch.cat((others, favourites), dim=-1)  # ids 12 and 13
    response = torch.tensor([[7, 8, 1, 2, 2], [7, 8, 9, 7, 8]])
    found = preference_in(logits, response, (1, 2), [12, 13])
    torch.testing.assert_close(found, preference_in(others, response, (1, 2)))
    assert (preference_in(logits, response, (1, 2)) > 2 * found).all()
    response[1, 2] = 13
    assert preference_in(logits, response, (1, 2), [12, 13]).isfinite().all()


def test_likelihood_counts_the_slots_of_the_answer_alone(tiny_model64, queries):
    prefix = tiny_model64.encode(queries)
    end, padding = tiny_model64.end_token_ids
    response = torch.tensor([[10, end, padding, padding]] * len(queries))
    masks = torch.tensor([[False, False, True, True], [True, True, True, True]])
    found = negative_log_likelihood(tiny_model64, prefix, response, masks)
    log_p = _log_probabilities(tiny_model64, prefix, torch.full_like(response, tiny_model64.mask_token_id))
    torch.testing.assert_close(found.double(), -(log_p[:, 0, 10] + log_p[:, 1, end]) / 2, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A model with a trigger, and a query about a picture that shows it."""
    return planted_model(), write_rows(tmp_path_factory.mktemp("data"), planted_rows()).samples[0].queries[0]


@pytest.mark.parametrize("cells", [[24, 25, 26, 27, 28, 29], [4, 10, 16, 22, 28], [28], [28, 29]])
def test_a_set_is_narrowed_to_the_token_that_decides(planted, cells):
    """The trigger is in cell 28 of 36; what nothing reaches is left as it is."""
    model, query = planted
    prefix = model.encode([query])
    response = model.encode_responses([query.response], model.gen_length)
    chosen = torch.zeros_like(prefix.visual_mask)
    chosen[0, prefix.visual_mask[0].nonzero()[cells, 0]] = True
    base, each = counterfactual_scores(model, prefix, response, chosen[:, None], batch_size=1)
    left = narrowed(model, prefix, response, chosen, least_effect(base, each, 0.8), batch_size=1)
    assert left[prefix.visual_mask].nonzero()[:, 0].tolist() == [28]
    unreachable = narrowed(model, prefix, response, chosen, each[:, 0] + 100, batch_size=1)
    assert torch.equal(unreachable, chosen)


@pytest.mark.parametrize(
    ("plain", "masked"),
    [(math.inf, 3.0), (math.nan, 3.0), (-math.inf, 3.0), (0.5, math.nan), (0.5, math.inf)],
)
def test_an_answer_whose_numbers_overflow_is_named_and_not_called_honest(plain, masked):
    base, each = torch.tensor([0.0, plain]), torch.tensor([[1.0, -math.inf], [-math.inf, masked]])
    with pytest.raises(DispError, match=r"logits for b are not finite; load it in another precision \(--dtype\)"):
        suspicion_of(base, each, 2.0, ["a", "b"])


def test_where_nothing_was_masked_nothing_is_suspicious():
    each = torch.tensor([[1.0, -math.inf], [-math.inf, -math.inf]])
    assert suspicion_of(torch.tensor([0.25, 0.0]), each, 2.0, ["a", "b"]).tolist() == [0.5, 0.0]
