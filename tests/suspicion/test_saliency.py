"""Saliency against dense Fisher-Jacobian matrices, against true KL divergences, and its invariances."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from disp.errors import DispError
from disp.models.interface import Prefix
from disp.suspicion.saliency import (
    SaliencyConfig,
    factor_product,
    first_step,
    rank_tokens,
    saliency,
    vector_jacobian_products,
)

LENGTH, VOCAB, POSITIONS, VISUAL = 3, 40, 7, slice(1, 5)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(vocab_size=VOCAB).double()


@pytest.fixture(scope="module")
def prefix(model) -> Prefix:
    """One row: a text token, four visual tokens, two text tokens."""
    embeds = torch.randn(1, POSITIONS, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.3
    visual = torch.zeros(1, POSITIONS, dtype=torch.bool)
    visual[:, VISUAL] = True
    return Prefix(embeds, torch.ones_like(visual), visual, torch.full((1, POSITIONS, 4), -1))


def log_probabilities(model, prefix: Prefix, embeds: Tensor) -> Tensor:
    response = torch.full((1, LENGTH), model.mask_token_id)
    return model.denoise(replace(prefix, embeds=embeds), response).log_softmax(-1)[0]


@pytest.fixture(scope="module")
def dense(model, prefix) -> Tensor:
    """G_i of every position, ``[P, d, d]``, from explicit Jacobians and explicit Fisher matrices."""
    response = torch.full((1, LENGTH), model.mask_token_id)
    embeds = prefix.embeds.clone().requires_grad_()
    logits = model.denoise(replace(prefix, embeds=embeds), response)[0]
    jacobian = torch.stack(
        [
            torch.stack([torch.autograd.grad(logits[j, v], embeds, retain_graph=True)[0][0] for v in range(VOCAB)])
            for j in range(LENGTH)
        ]
    )  # [L, V, P, d]
    total = torch.zeros(POSITIONS, 32, 32, dtype=torch.float64)
    for j in range(LENGTH):
        p = logits[j].detach().softmax(-1)
        fisher = torch.diag(p) - torch.outer(p, p)
        for i in range(POSITIONS):
            total[i] += jacobian[j, :, i].T @ fisher @ jacobian[j, :, i]
    return total


@pytest.fixture(scope="module")
def truth(model, prefix, dense) -> dict[str, Tensor]:
    direction = (model.mask_embedding - prefix.embeds[0]).detach()  # [P, d]
    return {
        "isotropic": torch.stack([torch.trace(matrix) for matrix in dense]),
        "directional": torch.stack([d @ matrix @ d / 2 for d, matrix in zip(direction, dense, strict=True)]),
    }


def test_model_keeps_float64(model, prefix):
    assert first_step(model, prefix, LENGTH)[1].dtype == torch.float64


def test_factor_squares_to_the_fisher_matrix():
    p = torch.tensor([0.7, 0.2, 0.1, 0.0], dtype=torch.float64)
    factor = torch.stack([factor_product(p, basis) for basis in torch.eye(4, dtype=torch.float64)], dim=1)
    assert torch.allclose(factor @ factor.T, torch.diag(p) - torch.outer(p, p), atol=1e-15)


def test_enumerating_a_basis_gives_the_dense_matrices(model, prefix, dense):
    # Rows are independent, so row k of a batch of V equal rows carries basis vector e_k of the vocabulary.
    embeds, logits = first_step(model, prefix.select(torch.zeros(VOCAB, dtype=torch.int64)), LENGTH)
    basis = torch.eye(VOCAB, dtype=torch.float64)

    def probe_of(position: int) -> Tensor:
        probe = torch.zeros(VOCAB, LENGTH, VOCAB, dtype=torch.float64)
        probe[:, position] = basis
        return probe

    total = torch.zeros_like(dense)
    for product in vector_jacobian_products(embeds, logits, probe_of, LENGTH):
        total += torch.einsum("bpd,bpe->pde", product, product)
    assert torch.allclose(total, dense, rtol=1e-9, atol=1e-9 * dense.abs().max())


@pytest.mark.parametrize("score", ["isotropic", "directional"])
def test_estimate_is_unbiased(model, prefix, truth, score):
    rows = 80
    keys = [f"copy-{row}" for row in range(rows)]
    many = prefix.select(torch.zeros(rows, dtype=torch.int64))
    got = saliency(model, many, keys, SaliencyConfig(score, probes=8), LENGTH)[:, VISUAL].double()  # 640 probes
    standard_error = got.std(0) / rows**0.5
    assert ((got.mean(0) - truth[score][VISUAL]).abs() < 5 * standard_error).all()
    # And the test has teeth: the standard error is a small part of the value.
    assert (standard_error < 0.1 * truth[score][VISUAL]).all()


def test_curvature_is_the_kl_divergence_of_a_small_step(model, prefix, truth):
    with torch.no_grad():
        before = log_probabilities(model, prefix, prefix.embeds)
        for token in range(VISUAL.start, VISUAL.stop):
            step = torch.zeros_like(prefix.embeds)
            step[0, token] = model.mask_embedding - prefix.embeds[0, token]
            errors = []
            for size in (1e-1, 1e-2, 1e-3):
                after = log_probabilities(model, prefix, prefix.embeds + size * step)
                divergence = (before.exp() * (before - after)).sum()
                errors.append(abs(float(divergence / (size**2 * truth["directional"][token])) - 1))
            assert errors[2] < 0.02 and errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("score", ["isotropic", "directional"])
def test_scores_do_not_depend_on_batch_or_padding(tiny_model64, queries, score):
    config = SaliencyConfig(score, probes=3, seed=5)
    keys = [query.key for query in queries]
    together = saliency(tiny_model64, tiny_model64.encode(queries), keys, config)
    assert together.dtype == torch.float32
    for row, query in enumerate(queries):
        alone = saliency(tiny_model64, tiny_model64.encode([query]), [query.key], config)
        padding = together.shape[1] - alone.shape[1]
        assert torch.allclose(together[row, padding:], alone[0], rtol=1e-6, atol=0)
        assert not together[row, :padding].any()
    backwards = saliency(tiny_model64, tiny_model64.encode(queries[:2][::-1]), keys[:2][::-1], config)
    width = backwards.shape[1]
    assert torch.allclose(backwards.flip(0), together[:2, -width:], rtol=1e-6, atol=0)


def test_scores_are_positive_at_visual_tokens_and_zero_elsewhere(tiny_model, queries):
    prefix = tiny_model.encode(queries)
    scores = saliency(tiny_model, prefix, [query.key for query in queries], SaliencyConfig(probes=2))
    assert torch.equal(scores > 0, prefix.visual_mask)


def test_model_and_prefix_are_left_as_they_were(make_model, queries):
    model = make_model()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    for parameter in parameters[1:]:
        parameter.grad = torch.full_like(parameter, 0.5)
    weights = [parameter.detach().clone() for parameter in parameters]
    flags = [parameter.requires_grad for parameter in parameters]
    prefix = model.encode(queries)
    embeds = prefix.embeds.clone()

    def check() -> None:
        assert [parameter.requires_grad for parameter in parameters] == flags
        assert parameters[0].grad is None
        assert all((parameter.grad == 0.5).all() for parameter in parameters[1:])
        assert all(torch.equal(old, new) for old, new in zip(weights, parameters, strict=True))
        assert torch.equal(prefix.embeds, embeds) and not prefix.embeds.requires_grad and prefix.embeds.grad is None

    keys = [query.key for query in queries]
    saliency(model, prefix, keys, SaliencyConfig(probes=2))
    check()
    model.denoise = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        saliency(model, prefix, keys, SaliencyConfig(probes=2))
    check()


def test_works_without_gradients_and_is_deterministic(tiny_model, queries):
    prefix, keys = tiny_model.encode(queries), [query.key for query in queries]
    first = saliency(tiny_model, prefix, keys, SaliencyConfig(probes=2))
    with torch.no_grad():
        second = saliency(tiny_model, prefix, keys, SaliencyConfig(probes=2))
        assert not torch.is_grad_enabled()
    assert torch.equal(first, second) and not second.requires_grad
    assert not torch.equal(first, saliency(tiny_model, prefix, keys, SaliencyConfig(probes=2, seed=1)))
    assert not torch.equal(first, saliency(tiny_model, prefix, keys, SaliencyConfig(probes=2), gen_length=3))


def test_invalid_configurations():
    with pytest.raises(DispError, match="'isotropic' or 'directional', got 'trace'"):
        SaliencyConfig(score="trace")
    with pytest.raises(DispError, match="at least 1, got 0"):
        SaliencyConfig(probes=0)


def test_ranking_puts_ties_in_order_and_pads():
    scores = torch.tensor([[9.0, 1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 7.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    visual = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    got = rank_tokens(scores, visual)
    assert got.dtype == torch.int64
    assert got.tolist() == [[2, 3, 4, 1], [0, 1, -1, -1], [-1, -1, -1, -1]]
    assert rank_tokens(scores[2:], visual[2:]).shape == (1, 0)
