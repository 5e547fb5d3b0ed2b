"""A tiny MMaDA's tokenizer, and transformers' Llama with its weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from disp.models.mmada.model import MMada

# The reserved tokens that MMaDA uses under other names, and the rest of LLaDA's control tokens.
CONTROL = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    *(f"<|reserved_token_{number}|>" for number in range(6)),
]
VISION = {"channels": 32, "multipliers": [1, 2], "blocks": [1, 2], "code_bits": 3, "attention_levels": [1]}


def mmada_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with LLaDA's control tokens and no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=CONTROL[0], eos_token=CONTROL[1], pad_token=CONTROL[1]
    )


def llama(model: MMada) -> LlamaForCausalLM:
    """The same weights in the library's own Llama."""
    config = model.config
    other = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=False,
        )
    ).eval()
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("vision_tower.")}
    other.load_state_dict(weights)
    return other


def copied(checkpoint: Path, folder: Path, **changes) -> Path:
    """The checkpoint in another folder; ``changes`` are new contents of its files, None for none."""
    for path in checkpoint.iterdir():
        name = path.stem
        if name not in changes:
            (folder / path.name).write_bytes(path.read_bytes())
        elif path.suffix == ".json" and changes[name] is not None:
            (folder / path.name).write_text(json.dumps(changes[name]))
        elif changes[name] is not None:
            save_file(changes[name], folder / path.name)
    return folder
