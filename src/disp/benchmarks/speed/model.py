"""The model that speed is measured with: random weights, and a prompt without a picture behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disp.models.builtin.model import BuiltinConfig, BuiltinModel
from disp.models.interface import Prefix


@dataclass(frozen=True)
class BenchSizes:
    """Sizes of the bench model: those of LLaDA-V in proportion, as far as a core can take them in a second.

    Attributes:
        layers: of the transformer.
        width: d.
        heads: of attention.
        hidden: width of the feed-forward layers.
        vocabulary: V.
        visual: visual tokens N.
        text: other tokens of the prompt.
        response: slots L.
    """

    layers: int = 12
    width: int = 384
    heads: int = 6
    hidden: int = 1152
    vocabulary: int = 4096
    visual: int = 600
    text: int = 32
    response: int = 64


def bench_model(sizes: BenchSizes, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> BuiltinModel:
    """A built-in model of these sizes with random weights; its vision tower is a stub."""
    torch.manual_seed(0)
    config = BuiltinConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        gen_length=sizes.response,
        generation={"steps": sizes.response},
        # Larger than usual: confidences that nearly tie would make the order of commits a matter of rounding.
        initializer_range=0.05,
        vision={
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 16,
            "patch_size": 8,
            "stem_channels": [],
        },
    )
    return BuiltinModel(config).eval().to(device, dtype)


def bench_prefix(model: BuiltinModel, sizes: BenchSizes, rows: int = 1) -> Prefix:
    """Random visual tokens, then random words; no padding."""
    source = torch.Generator().manual_seed(1)
    length = sizes.visual + sizes.text
    words = torch.randint(3, sizes.vocabulary, (rows, sizes.text), generator=source).to(model.device)
    visual = 0.05 * torch.randn(rows, sizes.visual, sizes.width, generator=source)
    with torch.no_grad():
        embeds = torch.cat((visual.to(model.device, model.dtype), model.model.embed_tokens(words)), dim=1)
    places = torch.arange(length, device=model.device).expand(rows, -1)
    shown = places < sizes.visual
    grid = torch.stack((places * 0, places * 0, places, places * 0), dim=-1)
    return Prefix(embeds, torch.ones_like(shown), shown, torch.where(shown[..., None], grid, -1))
