"""The forward process and the loss against loops, closed forms and expectations."""

import math

import pytest
import torch

from disp.diffusion.forward import MIN_RATIO, Noised, add_noise, diffusion_loss, draw_noise

MASK = 0


def random_batch(batch: int = 3, length: int = 5, vocab: int = 11):
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, length, vocab, generator=source) * 2
    response = torch.randint(1, vocab, (batch, length), generator=source)
    ratio = torch.tensor([0.25, 0.6, 1.0])[:batch]
    return logits, response, ratio, torch.rand(batch, length, generator=source)


def test_loss_against_loops():
    logits, response, ratio, uniforms = random_batch()
    noised = add_noise(response, ratio, uniforms, MASK)
    total = 0.0
    for row in range(3):
        for j in range(5):
            if uniforms[row, j] < ratio[row]:
                exponentials = [math.exp(value) for value in logits[row, j].tolist()]
                total -= math.log(exponentials[int(response[row, j])] / sum(exponentials)) / float(ratio[row]) / 5
    assert diffusion_loss(logits, response, noised).item() == pytest.approx(total / 3, rel=1e-5)


def test_noise_goes_where_the_uniforms_say():
    _, response, ratio, uniforms = random_batch()
    noised = add_noise(response, ratio, uniforms, MASK)
    for row in range(3):
        for j in range(5):
            masked = bool(uniforms[row, j] < ratio[row])
            assert bool(noised.masked[row, j]) == masked
            assert int(noised.ids[row, j]) == (MASK if masked else int(response[row, j]))
    assert (response != MASK).all()  # the input is untouched
    assert noised.masked[2].all()  # t = 1 masks everything


def test_loss_reads_masked_tokens_only():
    logits, response, ratio, uniforms = random_batch()
    noised = add_noise(response, ratio, uniforms, MASK)
    base = diffusion_loss(logits, response, noised)
    changed = torch.where(noised.masked[..., None], logits, torch.full_like(logits, 3.0))
    assert torch.equal(diffusion_loss(changed, response, noised), base)
    changed = torch.where(noised.masked[..., None], logits + torch.arange(11), logits)
    assert not torch.isclose(diffusion_loss(changed, response, noised), base)


def test_loss_at_the_edges():
    logits, response, _, _ = random_batch()
    nothing = Noised(response, torch.zeros_like(response, dtype=torch.bool), torch.full((3,), 0.5))
    assert diffusion_loss(logits, response, nothing) == 0
    everything = add_noise(response, torch.ones(3), torch.rand(3, 5), MASK)
    uniform = diffusion_loss(torch.zeros(3, 5, 11), response, everything)
    assert uniform.item() == pytest.approx(math.log(11), rel=1e-6)


def test_loss_is_unbiased_over_draws():
    # Whatever t is, 1/t undoes the masking probability: the expectation is the cross-entropy of all tokens.
    draws, length = 2000, 16
    noise = [draw_noise(0, f"sample-{index}", 0, length) for index in range(draws)]
    ratio, uniforms = torch.tensor([t for t, _ in noise]), torch.stack([u for _, u in noise])
    response = torch.ones(draws, length, dtype=torch.int64)
    noised = add_noise(response, ratio, uniforms, MASK)
    per_draw = (noised.masked / ratio[:, None]).mean(-1)
    assert abs(per_draw.mean() - 1) < 5 * per_draw.std() / draws**0.5
    loss = diffusion_loss(torch.zeros(draws, length, 7), response, noised)
    assert loss.item() == pytest.approx(math.log(7) * per_draw.mean().item(), rel=1e-5)


def test_draws_are_keyed():
    t, uniforms = draw_noise(1, "a#0", 2, 6)
    again, same = draw_noise(1, "a#0", 2, 6)
    assert t == again and torch.equal(uniforms, same) and uniforms.dtype == torch.float32
    assert torch.equal(draw_noise(1, "a#0", 2, 9)[1][:6], uniforms)
    for other in (draw_noise(2, "a#0", 2, 6), draw_noise(1, "b#0", 2, 6), draw_noise(1, "a#0", 3, 6)):
        assert other[0] != t and not torch.equal(other[1], uniforms)


def test_ratio_is_uniform_above_its_floor():
    ratios = torch.tensor([draw_noise(0, str(index), 0, 1)[0] for index in range(4000)])
    assert ratios.min() >= MIN_RATIO and ratios.max() <= 1
    assert abs(ratios.mean() - (1 + MIN_RATIO) / 2) < 5 * (1 / 12) ** 0.5 / 4000**0.5
    # Every tenth of the range gets its share.
    shares = torch.histc(ratios, 10, 0, 1) / 4000
    assert (shares - 0.1).abs().max() < 5 * (0.09 / 4000) ** 0.5
