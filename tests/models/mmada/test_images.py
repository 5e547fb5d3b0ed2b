"""MMaDA's image tokenizer against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from disp.data.sample import Query
from disp.errors import DispError
from disp.models.mmada.config import MMadaConfig
from disp.models.mmada.model import MMada
from disp.models.mmada.vq import VQEncoder, quantize, read_encoder, square_image


def reference_encoder(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The tokenizer's encoder as one function over its weights, attention written out."""

    def conv(x, name, **options):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def norm(x, name):
        groups = x.reshape(len(x), 32, -1)
        groups = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        shape = (1, -1, 1, 1)
        return groups.reshape(x.shape) * weights[f"{name}.weight"].view(shape) + weights[f"{name}.bias"].view(shape)

    def swish(x):
        return x * x.sigmoid()

    def residual(x, name):
        h = conv(swish(norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        h = conv(swish(norm(h, f"{name}.norm2")), f"{name}.conv2", padding=1)
        return h + (conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in weights else x)

    def attention(x, name):
        h = norm(x, f"{name}.norm")
        query, key, value = (conv(h, f"{name}.{part}").flatten(2) for part in "qkv")
        shares = torch.einsum("bci,bcj->bij", query, key).div(x.shape[1] ** 0.5).softmax(-1)
        return x + conv(torch.einsum("bij,bcj->bci", shares, value).reshape(x.shape), f"{name}.proj_out")

    x = conv(x, "conv_in", padding=1)
    level = 0
    while f"down.{level}.block.0.conv1.weight" in weights:
        block = 0
        while f"down.{level}.block.{block}.conv1.weight" in weights:
            x = residual(x, f"down.{level}.block.{block}")
            if f"down.{level}.attn.{block}.q.weight" in weights:
                x = attention(x, f"down.{level}.attn.{block}")
            block += 1
        if f"down.{level}.downsample.conv.weight" in weights:
            x = conv(F.pad(x, (0, 1, 0, 1)), f"down.{level}.downsample.conv", stride=2)
        level += 1
    x = residual(attention(residual(x, "mid.block_1"), "mid.attn_1"), "mid.block_2")
    return conv(conv(swish(norm(x, "norm_out")), "conv_out", padding=1), "quant_conv")


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (20, 12)])
def test_encoder_against_its_definition(mmada, checkpoint, size):
    """Widths that change, attention in a level, pictures that are not square."""
    pixels = torch.rand(2, 3, *size) * 2 - 1
    latents = mmada.vision_tower(pixels)
    expected = reference_encoder(read_encoder(checkpoint / "vq.safetensors"), pixels)
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)
    codes = quantize(latents)
    for image in range(2):
        for row, column in ((0, 0), (1, 2), (size[0] // 2 - 1, size[1] // 2 - 1)):
            bits = "".join("1" if number > 0 else "0" for number in latents[image, :, row, column].tolist())
            assert int(codes[image, row, column]) == int(bits, 2)


def test_published_tokenizer_size():
    """The published sizes are the defaults: 55.4 million parameters, 1024 codes for 512×512 pixels."""
    with torch.device("meta"):
        encoder = VQEncoder()
        assert encoder(torch.empty(1, 3, 512, 512)).shape == (1, 13, 32, 32)
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 1) == 55.4


def test_published_model_size():
    """LLaDA's 8,015,581,184 parameters and two rows, in and out, for each code."""
    with torch.device("meta"):
        model = MMada(MMadaConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_015_581_184 + 2 * 8192 * 4096


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    # The long side is rounded down, the corner of the middle square half to even, as torchvision does.
    [((300, 200), (48, 32), (8, 0)), ((200, 330), (32, 52), (0, 10)), ((201, 100), (64, 32), (16, 0)),
     ((105, 100), (33, 32), (0, 0)), ((110, 100), (35, 32), (2, 0)), ((32, 32), (32, 32), (0, 0)),
     ((20, 10), (64, 32), (16, 0))],
)  # fmt: skip
def test_short_side_and_middle(size, resized, corner):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    whole = np.asarray(picture.resize(resized, Image.Resampling.BICUBIC))
    left, top = corner
    assert (square_image(picture, 32) == whole[top : top + 32, left : left + 32].transpose(2, 0, 1)).all()
    squashed = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (square_image(picture, 32, squash=True) == squashed).all()


def test_codes_do_not_depend_on_the_batch(mmada, pictures):
    together = mmada.codes(mmada.pixels(pictures))
    alone = [mmada.codes(mmada.pixels([picture]))[0] for picture in pictures]
    assert torch.equal(together, torch.stack(alone))


def test_surplus_placeholders(mmada, pictures):
    with pytest.raises(DispError, match=r"'x': 2 <image> placeholders for 1 images"):
        mmada.prepare([Query("x", 0, (pictures[0],), (), "<image><image>")])
