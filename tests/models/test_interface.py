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
        assert torch.equal(tiny_model.noisy_loss(prefix, clean, ratio, uniforms), expected)


def test_adapters_go_on_every_linear_layer_of_the_language_model(tiny_model):
    names = tiny_model.lora_modules()
    assert len(names) == 2 * 7 and all(name.startswith("model.layers.") for name in names)
    assert all(isinstance(tiny_model.get_submodule(name), torch.nn.Linear) for name in names)
    assert tiny_model.official_state_dict().keys() == tiny_model.state_dict().keys()
