"""Sizes of a language model, and how published configs name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from disp.errors import DispError


class LanguageConfig(PreTrainedConfig):
    """Sizes of a `disp.models.parts.language.LanguageModel`, under Llama's names; by default the built-in model's."""

    def __init__(
        self,
        *,
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


def required(config: Mapping[str, Any], name: str) -> Any:
    """A field of a published config.json.

    Raises:
        DispError: it is missing.
    """
    if name not in config:
        raise DispError(f"config.json: no field {name!r}; is it of a whole checkpoint of this family?")
    return config[name]


def llama_sizes(config: Mapping[str, Any], *, rope_theta: float, rms_norm_eps: float) -> dict[str, Any]:
    """Arguments of `LanguageConfig` from a published config.json with Llama's field names.

    Args:
        config: the fields of config.json.
        rope_theta: the family's, where the config has none.
        rms_norm_eps: likewise.

    Raises:
        DispError: a size is missing.
    """
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    rope = config.get("rope_parameters") or {}
    return {
        **{name: required(config, name) for name in names},
        "num_key_value_heads": config.get("num_key_value_heads"),
        "attention_bias": config.get("attention_bias", False),
        "rope_theta": config.get("rope_theta") or rope.get("rope_theta") or rope_theta,
        "rms_norm_eps": config.get("rms_norm_eps") or rms_norm_eps,
        "initializer_range": config.get("initializer_range", 0.02),
    }


def qwen2_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """`llama_sizes` of Qwen2.5, which Dream grew out of: it has biases, which its config does not mention.

    Raises:
        DispError: a size is missing.
    """
    return {**llama_sizes(config, rope_theta=1_000_000.0, rms_norm_eps=1e-6), "attention_bias": True}


def llada_sizes(config: Mapping[str, Any], *, rope_theta: float) -> dict[str, Any]:
    """`llama_sizes` from a config.json with LLaDA's own field names.

    Raises:
        DispError: a size is missing.
    """
    width, heads = required(config, "d_model"), required(config, "n_heads")
    return {
        # The embedding may have more rows than the vocabulary has words.
        "vocab_size": config.get("embedding_size") or required(config, "vocab_size"),
        "hidden_size": width,
        "intermediate_size": config.get("mlp_hidden_size") or int(required(config, "mlp_ratio") * width),
        "num_hidden_layers": required(config, "n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads),
        "attention_bias": bool(config.get("include_qkv_bias")),
        "rope_theta": config.get("rope_theta") or rope_theta,
        "rms_norm_eps": config.get("rms_norm_eps") or 1e-5,
    }
