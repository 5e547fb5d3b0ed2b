"""Names of published parameters that differ from ours, which are Llama's.

LLaDA's checkpoints have names of their own for the whole language model, LLaVA's wrap the vision tower.
"""

from __future__ import annotations

TOWER = "model.vision_tower.vision_tower.vision_model."
_OWN_TOWER = "model.vision_tower."

# LLaDA's name -> ours, outside and inside a layer. `ff_out` is the head outside and the down projection inside.
_OUTER = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
_INNER = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}
_OUTER_BACK = {ours: theirs for theirs, ours in _OUTER.items()}
_INNER_BACK = {ours: theirs for theirs, ours in _INNER.items()}
_ROOT, _BLOCKS, _LAYERS = "model.transformer.", "model.transformer.blocks.", "model.layers."


def from_llada(name: str) -> str:
    """Our name of a parameter of LLaDA's language model; one that it does not have keeps its name."""
    if name.startswith(_BLOCKS):
        layer, _, inner = name.removeprefix(_BLOCKS).partition(".")
        module, _, kind = inner.rpartition(".")
        return f"{_LAYERS}{layer}.{_INNER[module]}.{kind}" if module in _INNER else name
    module, _, kind = name.removeprefix(_ROOT).rpartition(".")
    return f"{_OUTER[module]}.{kind}" if name.startswith(_ROOT) and module in _OUTER else name


def to_llada(name: str) -> str:
    """LLaDA's name of one of our parameters, such as ``model.transformer.wte.weight``; others keep their names."""
    if name.startswith(_LAYERS):
        layer, _, inner = name.removeprefix(_LAYERS).partition(".")
        module, _, kind = inner.rpartition(".")
        return f"{_BLOCKS}{layer}.{_INNER_BACK[module]}.{kind}" if module in _INNER_BACK else name
    module, _, kind = name.rpartition(".")
    return f"{_ROOT}{_OUTER_BACK[module]}.{kind}" if module in _OUTER_BACK else name


def from_llava(name: str) -> str:
    """Our name of a parameter of LLaVA's arrangement: the tower has fewer wrappers."""
    if not name.startswith(TOWER):
        return name
    return _OWN_TOWER + name.removeprefix(TOWER).removeprefix("encoder.")


def to_llava(name: str) -> str:
    """LLaVA's name of one of our parameters."""
    if not name.startswith(_OWN_TOWER):
        return name
    rest = name.removeprefix(_OWN_TOWER)
    return TOWER + (f"encoder.{rest}" if rest.startswith("layers.") else rest)
