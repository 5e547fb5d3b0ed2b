"""Attention kernels against plain loops, and recomputed activations against kept ones."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from disp.errors import DispError
from disp.models.parts import transformer
from disp.models.parts.transformer import attend, rotary_table, rotate, use_attention


def attention_with_loops(query, key, value, mask):
    batch, heads, rows, width = query.shape
    out = torch.zeros_like(query)
    for b in range(batch):
        for h in range(heads):
            group = h * key.shape[1] // heads
            for r in range(rows):
                scores = [float(query[b, h, r] @ k) / width**0.5 for k in key[b, group]]
                if mask is not None:
                    scores = [s if mask[b, 0, r, t] else -float("inf") for t, s in enumerate(scores)]
                weights = torch.tensor(scores).softmax(0)
                out[b, h, r] = sum(w * v for w, v in zip(weights, value[b, group], strict=True))
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash"])
def test_attention(kv_heads, masked, implementation):
    source = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 3, 8, generator=source)
    key, value = (torch.randn(2, kv_heads, 5, 8, generator=source) for _ in range(2))
    mask = None
    if masked:
        mask = torch.rand(2, 1, 3, 5, generator=source) < 0.5
        mask[..., 0] = True
    expected = attention_with_loops(query, key, value, mask)
    torch.testing.assert_close(attend(query, key, value, mask, implementation), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_on_a_cpu_goes_through_plain_products(masked, monkeypatch):
    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 4, rows, 8, generator=source).bfloat16() for rows in (3, 5, 5)]
    mask = torch.tensor([True, False, True, True, False]).expand(2, 1, 1, 5) if masked else None
    weights = torch.randn(2, 4, 3, 8, generator=source)

    def gradients(dtype, implementation):
        leaves = [each.clone().to(dtype).requires_grad_() for each in inputs]
        out = attend(*leaves, mask, implementation)
        (out.to(weights.dtype) * weights).sum().backward()
        return [out, *(leaf.grad for leaf in leaves)]

    expected = gradients(torch.float32, "eager")
    kernel = gradients(torch.bfloat16, "sdpa")
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.scaled_dot_product_attention", None)
        assert all(map(torch.equal, gradients(torch.bfloat16, "sdpa"), kernel))
        assert torch.equal(attend(*inputs, mask), kernel[0])  # without a backward pass
        patch.setattr(transformer, "MOST_SCORES", 2 * 4 * 3 * 5 - 1)
        with pytest.raises(TypeError, match="not callable"):
            gradients(torch.bfloat16, "sdpa")
    for found, wanted in zip(kernel, expected, strict=True):
        torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.02)


def test_rotary_frequencies():
    cos, sin = rotary_table(torch.tensor([[0, 1, 1999]]), 8, 500_000.0)
    for index in range(8):
        # The published models were trained with this order of operations in float32.
        frequency = 1.0 / (torch.tensor(500_000.0) ** (torch.tensor(2.0 * (index % 4)) / 8))
        for row, position in enumerate((0, 1, 1999)):
            angle = torch.tensor(float(position)) * frequency
            torch.testing.assert_close(cos[0, 0, row, index], angle.cos(), atol=1e-6, rtol=0)
            torch.testing.assert_close(sin[0, 0, row, index], angle.sin(), atol=1e-6, rtol=0)


def test_rotation_turns_each_pair_by_its_angle():
    positions = torch.tensor([[0, 3, 70]])
    x = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, rotary_table(positions, 8, 100.0))
    for row, position in enumerate(positions[0].tolist()):
        for pair in range(4):
            angle = torch.tensor(position / 100.0 ** (2 * pair / 8))
            a, b = x[..., row, pair], x[..., row, pair + 4]
            torch.testing.assert_close(turned[..., row, pair], a * angle.cos() - b * angle.sin(), atol=1e-5, rtol=0)
            torch.testing.assert_close(turned[..., row, pair + 4], a * angle.sin() + b * angle.cos(), atol=1e-5, rtol=0)


def test_kernels_agree_on_a_model(make_model, queries):
    model = make_model()
    response = torch.full((len(queries), 4), model.mask_token_id)
    with torch.no_grad():
        expected = model.denoise(model.encode(queries), response)
        for name in ("eager", "flash", "flash_attention_2", "sdpa"):
            use_attention(model, name)
            torch.testing.assert_close(model.denoise(model.encode(queries), response), expected, atol=1e-4, rtol=0)
    with pytest.raises(DispError, match=r"unknown attn_implementation 'flesh'.*'flash'"):
        use_attention(model, "flesh")


def test_recomputed_activations_give_the_same_gradients(make_model, queries):
    clean, ratio = torch.full((len(queries), 4), 9), torch.ones(len(queries))
    gradients = []
    for recompute in (False, True):
        model = make_model().train()
        calls = []
        if recompute:

            def counted(function, *args, calls=calls):
                calls.append(function)
                return checkpoint(function, *args, use_reentrant=False)

            model._set_gradient_checkpointing(gradient_checkpointing_func=partial(counted))
        model(clean, ratio, torch.zeros(len(queries), 4), **model.prepare(queries)).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert len(calls) == (3 if recompute else 0)  # a layer of the tower, two of the language model
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)
