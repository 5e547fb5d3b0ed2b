"""What the interface does for every family."""

from dataclasses import replace

import torch

from disp.diffusion.forward import add_noise, diffusion_loss


def test_rows_of_a_prefix(tiny_model, queries):
    prefix = replace(tiny_model.encode(queries), extras={"positions": torch.arange(8).view(4, 2)})
    chosen = prefix.select(torch.tensor([2, 0, 2]))
    assert len(chosen) == 3 and chosen.extras["positions"].tolist() == [[4, 5], [0, 1], [4, 5]]
    for name in ("embeds", "attention_mask", "visual_mask", "locations"):
        assert torch.equal(getattr(chosen, name), getattr(prefix, name)[[2, 0, 2]])
    masked = prefix.with_masked(prefix.visual_mask, tiny_model.mask_embedding)
    assert masked.extras is prefix.extras


@torch.no_grad()
def test_packing_a_prefix_changes_no_prediction(tiny_model, queries):
    prefix = tiny_model.encode(queries)
    hidden = prefix.visual_mask & (torch.arange(prefix.visual_mask.shape[1]) % 3 == 0)
    places = torch.arange(prefix.visual_mask.numel()).view(*prefix.visual_mask.shape, 1)
    numbered = {"positions": places, "rows": torch.arange(4)}
    loose = replace(prefix, attention_mask=prefix.attention_mask & ~hidden, extras=numbered)
    packed = loose.packed()
    counts = loose.attention_mask.sum(-1)
    assert packed.embeds.shape[1] == counts.max() < prefix.embeds.shape[1]
    assert torch.equal(packed.extras["rows"], torch.arange(4))
    for row, count in enumerate(counts):
        kept, there = loose.attention_mask[row], packed.attention_mask[row]
        assert there.tolist() == [False] * int(counts.max() - count) + [True] * int(count)
        for name in ("embeds", "visual_mask", "locations"):
            assert torch.equal(getattr(packed, name)[row, there], getattr(loose, name)[row, kept])
        assert torch.equal(packed.extras["positions"][row, there], numbered["positions"][row, kept])
    response = torch.full((4, 4), tiny_model.mask_token_id)
    torch.testing.assert_close(tiny_model.denoise(packed, response), tiny_model.denoise(loose, response))
    assert torch.equal(packed.packed().embeds, packed.embeds)


def test_a_prefix_without_its_content(tiny_model, queries):
    prefix = tiny_model.encode(queries)
    empty = tiny_model.unconditional(prefix)
    assert empty.embeds.shape == prefix.embeds.shape and torch.equal(empty.attention_mask, prefix.attention_mask)
    assert (empty.embeds == tiny_model.mask_embedding).all() and not torch.equal(empty.embeds, prefix.embeds)


def test_the_default_loss(tiny_model, queries):
    source = torch.Generator().manual_seed(0)
    clean, uniforms = torch.randint(3, 200, (4, 6), generator=source), torch.rand(4, 6, generator=source)
    ratio, prefix = torch.tensor([0.3, 0.9, 0.5, 1.0]), tiny_model.encode(queries)
    noised = add_noise(clean, ratio, uniforms, tiny_model.mask_token_id)
    with torch.no_grad():
        expected = diffusion_loss(tiny_model.denoise(prefix, noised.ids), clean, noised)
        # The last digit depends on the order of the sum, which processors choose differently.
        torch.testing.assert_close(tiny_model.noisy_loss(prefix, clean, ratio, uniforms), expected)


def test_adapters_go_on_every_linear_layer_of_the_language_model(tiny_model):
    names = tiny_model.lora_modules()
    assert len(names) == 2 * 7 and all(name.startswith("model.layers.") for name in names)
    assert all(isinstance(tiny_model.get_submodule(name), torch.nn.Linear) for name in names)
    assert tiny_model.official_state_dict().keys() == tiny_model.state_dict().keys()
