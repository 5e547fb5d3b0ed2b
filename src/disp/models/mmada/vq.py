"""MAGVIT-v2's image tokenizer: a convolutional encoder and a quantizer without a code book (arXiv 2310.05737).

Each latent vector of Z numbers becomes the integer whose bits are the signs of the numbers, so there are ``2**Z``
codes and nothing to look up. Parameter names are those of the published checkpoint (``showlab/magvitv2``) without its
``encoder.`` prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from disp.errors import DispError
from disp.models.weights import fault_of

PREFIX = "encoder."
# The same file holds the image decoder and the quantizer's tables; answering questions about images needs neither.
UNUSED = ("decoder.", "quantize.")


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the width changes."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttentionBlock(nn.Module):
    """One head of attention among all positions, as wide as the features."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.v, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, hw, C]
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(attended)


class Downsample(nn.Module):
    """Halves height and width; the zero padding is at the right and the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The residual blocks of one resolution and, except at the last one, the step down to the next."""

    def __init__(self, channels: int, out: int, blocks: int, attention: bool, downsample: bool):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(channels if index == 0 else out, out) for index in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(out) for _ in range(blocks if attention else 0))
        if downsample:
            self.downsample = Downsample(out)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class Middle(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResnetBlock(channels, channels),
            AttentionBlock(channels),
            ResnetBlock(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class VQEncoder(nn.Module):
    """Pixels to codes; the defaults are the published sizes (55 million parameters, 8192 codes, one per 16×16 pixels).

    Args:
        channels: width at full resolution.
        multipliers: width of each resolution as a multiple of ``channels``.
        blocks: residual blocks of each resolution.
        code_bits: numbers in a latent vector, Z.
        attention_levels: resolutions (0 is the full one) whose blocks are followed by attention.
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 4, 4),
        blocks: Sequence[int] = (4, 3, 4, 3, 4),
        code_bits: int = 13,
        attention_levels: Sequence[int] = (),
    ):
        super().__init__()
        self.stride, self.code_bits = 2 ** (len(multipliers) - 1), code_bits
        self.sizes: dict[str, Any] = {
            "channels": channels,
            "multipliers": list(multipliers),
            "blocks": list(blocks),
            "code_bits": code_bits,
            "attention_levels": list(attention_levels),
        }
        widths = [channels * multiplier for multiplier in (1, *multipliers)]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(widths[level], widths[level + 1], count, level in attention_levels, level < len(blocks) - 1)
            for level, count in enumerate(blocks)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], code_bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(code_bits, code_bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Float ``[images, 3, H, W]`` in [-1, 1] to latents ``[images, Z, H / stride, W / stride]``."""
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


def quantize(latents: Tensor) -> Tensor:
    """Latents ``[images, Z, h, w]`` to codes int64 ``[images, h, w]``: bits are signs, channel 0 the highest."""
    bits = latents.shape[1]
    powers = 2 ** torch.arange(bits - 1, -1, -1, device=latents.device)
    return ((latents > 0) * powers[:, None, None]).sum(1)


def square_image(image: Image.Image, size: int, *, squash: bool = False) -> np.ndarray:
    """An RGB image as uint8 ``[3, size, size]``, in the published preprocessing.

    Args:
        image: an RGB picture.
        size: side of the result in pixels.
        squash: resize to the square without keeping the aspect, which loses nothing at the border; otherwise resize
            the short side and cut the middle out. The published evaluation squashes diagrams and documents.
    """
    if squash:
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.uint8).transpose(2, 0, 1)
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)  # half to even, as the published crop
    return np.asarray(image.crop((left, top, left + size, top + size)), np.uint8).transpose(2, 0, 1)


def build_encoder(weights: Mapping[str, Tensor], source: str) -> VQEncoder:
    """A frozen float32 encoder of the sizes that the weights have; the checkpoint's own config leaves them to its code.

    Args:
        weights: tensors under the published names, without the ``encoder.`` prefix.
        source: where they come from, for the message.

    Raises:
        DispError: names or shapes are not those of a MAGVIT-v2 encoder.
    """
    sizes = _sizes_of({name: tensor.shape for name, tensor in weights.items()}, source)
    with torch.device("meta"):
        encoder = VQEncoder(**sizes)
    expected = encoder.state_dict()
    missing, surplus = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape)
    if missing or surplus or wrong:
        raise DispError(f"{source}: missing keys {missing}, surplus keys {surplus}, wrong shapes {wrong}")
    # Codes are signs of latents: half precision would flip those near zero, so the encoder is never cast down.
    encoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return encoder.requires_grad_(False).eval()


def published_sizes() -> dict[str, Any]:
    """The arguments of the published `VQEncoder`."""
    with torch.device("meta"):
        return VQEncoder().sizes


def stored_sizes(path: Path) -> dict[str, Any]:
    """The arguments of the `VQEncoder` whose weights are in a safetensors file, from the file's header alone.

    Raises:
        DispError: the file cannot be read, or it is not an image tokenizer.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {
                name.removeprefix(PREFIX): file.get_slice(name).get_shape()
                for name in file.keys()
                if name.startswith(PREFIX)
            }
    except (OSError, SafetensorError) as error:
        raise DispError(f"{path}: cannot be read as safetensors ({error})") from None
    return _sizes_of(shapes, str(path))


def _sizes_of(shapes: Mapping[str, Sequence[int]], source: str) -> dict[str, Any]:
    """The arguments of the encoder whose tensors have these shapes; names without the ``encoder.`` prefix."""
    levels = _count(shapes, "down.")
    try:
        channels = shapes["conv_in.weight"][0]
        return {
            "channels": channels,
            "multipliers": [shapes[f"down.{at}.block.0.conv1.weight"][0] // channels for at in range(levels)],
            "blocks": [_count(shapes, f"down.{at}.block.") for at in range(levels)],
            "code_bits": shapes["quant_conv.weight"][0],
            "attention_levels": [at for at in range(levels) if _count(shapes, f"down.{at}.attn.")],
        }
    except KeyError as error:
        raise DispError(f"{source}: no tensor {error}; these are not the weights of a MAGVIT-v2 encoder") from None


def _count(names: Iterable[str], prefix: str) -> int:
    """How many different numbers follow a prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})


def read_encoder(path: Path) -> dict[str, Tensor]:
    """The encoder's weights from a safetensors file or a folder with one, without the ``encoder.`` prefix.

    Raises:
        DispError: there is no such file, or it is not an image tokenizer.
    """
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise DispError(
                f"{path}: expected one .safetensors file with the image tokenizer, found {len(files)}; a .bin file has "
                "to be converted first, for disp reads no pickled weights (docs/models/mmada.md shows how)"
            )
        path = files[0]
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise DispError(f"{path}: no such file; give the folder or the file of the image tokenizer") from None
    except (OSError, SafetensorError) as error:
        raise DispError(f"{path}: cannot be read as safetensors ({error})") from None
    strange = [name for name in weights if not name.startswith((PREFIX, *UNUSED))]
    encoder = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    if strange or not encoder:
        raise DispError(f"{path}: these are not the weights of a MAGVIT-v2 encoder; unknown names: {strange[:5]}")
    for name, tensor in encoder.items():
        if fault := fault_of(tensor):
            raise DispError(f"{path}: {PREFIX}{name} {fault}; copy or download it again")
    return encoder
