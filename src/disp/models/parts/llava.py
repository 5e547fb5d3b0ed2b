"""What families with LLaVA's modules share: a SigLIP tower, a projector, pictures as tiles, and LLaDA's chat."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from disp.models.checkpoint import assemble, read_json, read_weights
from disp.models.interface import MDLM
from disp.models.parts.anyres import grid_of, map_layout
from disp.models.parts.key_names import TOWER
from disp.models.sizes import Size, VisualCount

# Of labels: what is not supervised.
IGNORED = -100
# siglip2-so400m-patch14-384, whose last layer the checkpoints leave out. Their config names the tower but not its
# sizes.
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
# Of LLaDA.
CHAT_TEMPLATE = (
    "<|startoftext|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


class Tiled(Protocol):
    """What a config says of pictures; see `disp.models.llada_v.config.LladaVConfig`."""

    vision: dict[str, Any]
    max_ratio_sq: int | None

    @property
    def candidates(self) -> list[tuple[int, int]]:
        """The sizes that a picture may be tiled to."""


Model = TypeVar("Model", bound=MDLM)


def tower_arguments(vision: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of the vision tower, whose last layer is left out.

    Args:
        vision: the published sizes; SigLIP-so400m's where they are not given.
    """
    sizes = {**SIGLIP, **{name: value for name, value in (vision or {}).items() if name in SIGLIP}}
    return {**sizes, "num_hidden_layers": sizes["num_hidden_layers"] - 1}


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """``config.json``, and ``vision_config.json`` or None."""
    return read_json(folder / "config.json"), read_vision_config(folder)


def read_vision_config(folder: Path | None) -> dict[str, Any] | None:
    """``vision_config.json`` of a folder, None where there is none."""
    file = None if folder is None else folder / "vision_config.json"
    return read_json(file) if file is not None and file.is_file() else None


def assemble_llava(
    make: Callable[[], Model],
    folder: Path,
    key_map: Callable[[str], str],
    tower_layers: int,
    tokenizer: PreTrainedTokenizerBase | None,
    **placing: Any,
) -> tuple[Model, dict[str, Tensor]]:
    """Build a model with LLaVA's modules from a checkpoint, and give it its tokenizer.

    Args:
        make: makes the model.
        folder: the checkpoint.
        key_map: see `disp.models.checkpoint.assemble`.
        tower_layers: layers of the vision tower that are used.
        tokenizer: the tokenizer, or None.
        placing: ``dtype``, ``device``, ``device_map`` and ``quantization``, see `disp.models.checkpoint.assemble`.

    Returns:
        The model, and what the checkpoint holds and the model never reads, to be written back with it.
    """
    model, unused = assemble(
        make,
        read_weights(folder),
        key_map,
        quantized=lambda name: name.startswith("model.layers."),
        # Never read: the norm and the pooling head behind the tower, and its last layer where it was kept.
        ignore=(rf"{re.escape(TOWER)}(post_layernorm|head|encoder\.layers\.{tower_layers})\..*",),
        what=str(folder),
        **placing,
    )
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model, unused


def tiled_count(config: Tiled, side: int) -> Callable[[Sequence[Size]], VisualCount]:
    """What images cost in one sample: an only one is tiled, several are one tile each.

    Args:
        config: the checkpoint's.
        side: tokens on each side of a tile.
    """
    candidates, tile = config.candidates, config.vision["image_size"]

    def count(images: Sequence[Size]) -> VisualCount:
        if len(images) != 1:  # each padded to one tile, with one newline
            return VisualCount(side * side * len(images), len(images), len(images))
        grid = grid_of(images[0], candidates, tile)
        layout = map_layout(images[0], grid, side, config.max_ratio_sq)
        # The base tile, then the map of the others with a newline after each row.
        return VisualCount(side * side + layout.rows * layout.columns, layout.rows, 1 + grid[0] * grid[1])

    return count
