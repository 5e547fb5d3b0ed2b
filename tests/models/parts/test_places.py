"""Where visual tokens lie: a spot is painted on a picture, and the token that changes most must lie on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models.tiny import ALL, extended, write_checkpoint
from PIL import Image

from disp.data.sample import Query
from disp.models.loading import load_model
from disp.suspicion.places import token_boxes

SIZES = ((112, 112), (168, 70), (60, 150))
SPOTS = ((0.5, 0.5), (0.1, 0.5), (0.9, 0.5), (0.5, 0.1), (0.5, 0.9), (0.3, 0.7), (0.7, 0.3))
# The last layer of attention in each tower, by the ends of its names.
OUTPUTS = ("out_proj.weight", "out_proj.bias", "attn.proj.weight", "attn.proj.bias", "o_proj.linear.weight")


@pytest.fixture(scope="module", params=[name for name in ALL if name != "mmada"])
def model(request, tmp_path_factory):
    with extended():
        found = load_model(write_checkpoint(request.param, tmp_path_factory.mktemp("boxes") / "model", ["What?"]))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            # A tower without attention: each token sees its own part of the picture.
            if any(part in name for part in found.vision_names) and name.endswith(OUTPUTS):
                parameter.zero_()
    return found


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_spot_is_seen_where_it_is(model, size, images):
    draw = np.random.default_rng(images)
    noise = [draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in range(images)]
    pictures = [Image.fromarray(values) for values in noise]
    query = Query("a", 0, tuple(pictures), (), "<image>\n" * images + "What?", "")
    before = model.encode([query])
    visual = before.visual_mask[0]
    locations = [tuple(place) for place in before.locations[0, visual].tolist()]
    boxes = token_boxes(model, locations, pictures)
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    of_image = np.array([place[0] for place in locations])
    for spot in SPOTS:
        x, y = (round(share * side) for share, side in zip(spot, size, strict=True))
        changed = noise[-1].copy()
        spot_of = np.s_[max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4]
        changed[spot_of] = 255 - changed[spot_of]
        after = model.encode([replace(query, images=(*pictures[:-1], Image.fromarray(changed)))])
        difference = (after.embeds - before.embeds)[0, visual].norm(dim=-1).numpy()
        top = int(difference.argmax())
        assert of_image[top] == images - 1
        x0, y0, x1, y1 = boxes[top] * np.array([*size, *size])
        assert x0 - 5 <= x <= x1 + 5, (spot, boxes[top])
        assert y0 - 5 <= y <= y1 + 5, (spot, boxes[top])


def test_of_an_oblong_picture_mmada_sees_the_middle_square(tmp_path):
    """Its image tokenizer looks far around each token, so that the boxes are compared with arithmetic."""
    model = load_model(write_checkpoint("mmada", tmp_path / "model", ["What?"]))
    picture = Image.new("RGB", (160, 64))
    places = torch.tensor([(0, row, column) for row in range(4) for column in range(4)])
    boxes = model.token_boxes(places, picture.size, 1) * torch.tensor([160, 64, 160, 64])
    assert boxes[0].tolist() == pytest.approx([48, 0, 64, 16])
    assert boxes[-1].tolist() == pytest.approx([96, 48, 112, 64])
    model.config.squash = True
    assert model.token_boxes(places, picture.size, 1)[-1].tolist() == pytest.approx([0.75, 0.75, 1, 1])
