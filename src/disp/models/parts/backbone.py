"""The language model without its head, and what the families that are built on it have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, initialization

from disp.models.interface import MDLM
from disp.models.parts.transformer import Block, RMSNorm


class BackboneConfig(PreTrainedConfig):
    """Sizes of a `Backbone`, under the names of Llama's; the defaults are the built-in model's."""

    def __init__(
        self,
        vocab_size: int = 1024,
        hidden_size: int = 160,
        intermediate_size: int = 432,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 5,
        num_key_value_heads: int | None = None,
        attention_bias: bool = False,
        rope_theta: float = 10_000.0,
        rms_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = hidden_size // num_attention_heads
        self.attention_bias, self.rope_theta, self.rms_norm_eps = attention_bias, rope_theta, rms_norm_eps
        self.initializer_range = initializer_range


class Backbone(nn.Module):
    """The parts under the ``model.`` prefix of a checkpoint."""

    def __init__(self, config: Any):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


def layer_linears(backbone: nn.Module) -> list[str]:
    """Full names of every linear layer of ``model.layers``: what adapters are put on."""
    layers = backbone.get_submodule("layers")
    return [f"model.layers.{name}" for name, module in layers.named_modules() if isinstance(module, nn.Linear)]


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights and no bias, for one module of a new model.

    The library's own functions leave alone what was loaded from a checkpoint.
    """
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv3d):
        initialization.normal_(module.weight, 0.0, std)
        if not isinstance(module, nn.Embedding) and module.bias is not None:
            initialization.zeros_(module.bias)


class BackboneMDLM(MDLM):
    """An MDLM whose ``model`` is a `Backbone`, with a mask token among its words."""

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.initializer_range)

    @property
    def mask_embedding(self) -> Tensor:
        """Float ``[d]``: the embedding of the mask token."""
        return self.model.embed_tokens.weight[self.mask_token_id]

    def lora_modules(self) -> list[str]:
        """Every linear layer of the language model's blocks; not the head."""
        return layer_linears(self.model)
