"""LLaDA-V in geometries that nobody recorded."""

from __future__ import annotations

import pytest
import torch
from references.llada_v import (
    Reference,
    noise_picture,
    write_checkpoint,
)

from disp.errors import DispError
from disp.models.llada_v.loading import load_official

SIZES = {
    "landscape": (100, 60),
    "portrait": (60, 100),
    "one tile": (50, 40),
    "square": (112, 112),
    "above the cap, landscape": (224, 130),
    "above the cap, portrait": (120, 224),
    "narrow": (20, 160),
    "much larger than the grid": (500, 480),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("kv_heads", "cap"), [(2, 4), (4, None), (1, 2)])
@torch.no_grad()
def test_logits_and_places_of_one_picture(tmp_path, size, kv_heads, cap):
    folder = write_checkpoint(tmp_path / "checkpoint", kv_heads=kv_heads, cap=cap)
    model, reference = load_official(folder).double(), Reference(folder)
    ids, picture = [5, 17, 80, -200, 30, 31, 12], noise_picture(*size)
    expected, places = reference.splice(ids, [picture])
    prefix = model.splice(torch.tensor(ids), [picture])
    assert prefix.embeds.shape[1] == len(expected)
    torch.testing.assert_close(prefix.embeds[0], expected, atol=1e-5, rtol=0)
    assert prefix.visual_mask[0].tolist() == [place is not None for place in places]
    assert prefix.locations[0].tolist() == [[-1] * 4 if place is None else list(place) for place in places]
    response = [model.mask_token_id] * 3 + [40, model.mask_token_id]
    logits = reference.logits(torch.cat((expected, reference.embed(response))))[-5:]
    torch.testing.assert_close(model.denoise(prefix, torch.tensor([response]))[0], logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_several_pictures(model, checkpoint):
    reference, pictures = Reference(checkpoint), [noise_picture(90, 40, 1), noise_picture(30, 50, 2)]
    ids = [5, -200, 17, -200, 30]
    expected, places = reference.splice(ids, pictures)
    prefix = model.splice(torch.tensor(ids), pictures)
    torch.testing.assert_close(prefix.embeds[0].double(), expected, atol=1e-4, rtol=0)
    assert prefix.locations[0].tolist() == [[-1] * 4 if place is None else list(place) for place in places]
    with pytest.raises(DispError, match=r"2 image placeholders .* for 1 images"):
        model.splice(torch.tensor(ids), pictures[:1])


def test_gradients_reach_the_tokens_of_every_tile(model, checkpoint):
    reference, picture = Reference(checkpoint), noise_picture(100, 60)
    embeds = reference.splice([5, -200, 17], [picture])[0].detach().requires_grad_()
    response = reference.embed([model.mask_token_id] * 4)
    log_p = reference.logits(torch.cat((embeds, response)))[-4].log_softmax(-1)
    token = int(log_p.argmax())
    (expected,) = torch.autograd.grad(log_p[token], embeds)
    with torch.no_grad():
        prefix = model.splice(torch.tensor([5, -200, 17]), [picture])
    ours = prefix.embeds.requires_grad_()
    masks = torch.full((1, 4), model.mask_token_id)
    (gradient,) = torch.autograd.grad(model.denoise(prefix, masks)[0, 0].log_softmax(-1)[token], ours)
    torch.testing.assert_close(gradient[0].double(), expected, atol=1e-4, rtol=0)
    assert (gradient[0].abs().sum(-1) > 0).all()
