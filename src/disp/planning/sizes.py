"""What a plan needs to know about a model: sizes of its parts, and what pictures cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class LanguageSizes:
    """Sizes of a transformer with SwiGLU layers.

    Attributes:
        layers: how many.
        width: d.
        hidden: width of the feed-forward layer; with experts, of all that one token runs through.
        heads: attention heads.
        kv_heads: heads of keys and values.
        head_dim: width of a head.
        vocab: rows of the embedding and of the head.
        qkv_bias: whether queries, keys and values have a bias.
    """

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    qkv_bias: bool = False

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' matrices: what is quantized, and what adapters are put on."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.hidden)

    @property
    def parameters(self) -> int:
        """Everything, with an embedding and a head of its own."""
        biases = self.head_dim * (self.heads + 2 * self.kv_heads) if self.qkv_bias else 0
        norms = (2 * self.layers + 1) * self.width
        return self.linear_parameters + self.layers * biases + norms + 2 * self.vocab * self.width

    def adapter_parameters(self, rank: int) -> int:
        """Weights of adapters of a rank on every matrix of the layers."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        ends = 2 * (self.width + query) + 2 * (self.width + key) + 3 * (self.width + self.hidden)
        return self.layers * rank * ends


@dataclass(frozen=True)
class TowerSizes:
    """Sizes of the vision tower.

    Attributes:
        layers: how many.
        width: width of a patch's features.
        hidden: width of the feed-forward layer.
        patches: patches of one tile; of the largest picture where pictures keep their own size.
        parameters: weights of the tower.
        stem: values of the largest stage before the patches, of one tile: pixels, or convolutions.
    """

    layers: int
    width: int
    hidden: int
    patches: int
    parameters: int
    stem: int


@dataclass(frozen=True)
class VisualCount:
    """What the images of one sample cost.

    Attributes:
        visual: visual tokens, the ones that can be masked.
        others: separators and newlines besides.
        tiles: pictures that the tower sees.
    """

    visual: int
    others: int
    tiles: int


@dataclass(frozen=True)
class Sizes:
    """All that a plan needs to know about a model.

    Attributes:
        family: name for people.
        language: the language model.
        tower: the vision tower.
        projected: features that the projector reads for one tile.
        projector_parameters: weights of the projector.
        gen_length: response slots L that the model was made for.
        generation: decoding settings of the config itself, if it has any.
        visual_count: what images of these sizes cost in one sample.
        loss_rows: rows that the training loss makes of one response.
        tied: whether the head is the embedding.
        idle: weights of experts that a token does not run through.
        default_system: the system message of chats that have none of their own.
    """

    family: str
    language: LanguageSizes
    tower: TowerSizes
    projected: int
    projector_parameters: int
    gen_length: int
    visual_count: Callable[[Sequence[Size]], VisualCount]
    generation: Mapping[str, Any] = field(default_factory=dict)
    loss_rows: int = 1
    tied: bool = False
    idle: int = 0
    default_system: str | None = None

    @property
    def language_parameters(self) -> int:
        """Weights of the language model."""
        head = self.language.vocab * self.language.width if self.tied else 0
        return self.language.parameters + self.idle - head

    @property
    def parameters(self) -> int:
        """All weights, by the config."""
        return self.language_parameters + self.tower.parameters + self.projector_parameters
