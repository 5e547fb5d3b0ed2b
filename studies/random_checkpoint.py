"""A LLaDA-V checkpoint with random weights, of full size or tiny, laid out as the published one is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from disp.files import write_json
from disp.models.checkpoint import INDEX
from disp.models.llada_v.config import LladaVConfig
from disp.models.llada_v.model import LladaV
from disp.models.llada_v.published import SPECIAL_TOKENS, SYSTEM
from disp.models.parts.key_names import TOWER
from disp.models.parts.llava import CHAT_TEMPLATE, SIGLIP

VOCAB = 126_464
# The published config.json, without what its library writes into every one.
CONFIG: dict[str, Any] = {
    "model_type": "llava_llada", "vocab_size": VOCAB, "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
    "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "attention_bias": False,
    "tie_word_embeddings": False, "bos_token_id": 128_000, "eos_token_id": 126_081, "torch_dtype": "bfloat16",
    "mm_vision_tower": "model/siglip2-so400m-patch14-384", "mm_hidden_size": SIGLIP["hidden_size"],
    "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
    "mm_patch_merge_type": "spatial_unpad", "mm_newline_position": "grid", "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False, "image_aspect_ratio": "anyres_max_4", "tokenizer_model_max_length": 8192,
}  # fmt: skip
# The same in a size that a CPU gets through in a second.
SMALL_CONFIG = {
    "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "mm_hidden_size": 16,
    "disp": {"gen_length": 24},
}  # fmt: skip
SMALL_TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
SHARD_BYTES, SMALL_SHARD_BYTES = 4_000_000_000, 100_000
DTYPE, SCALE = torch.bfloat16, 0.02


def write_checkpoint(folder: Path, texts: Sequence[str], *, device: str = "cpu", small: bool = False) -> None:
    """Write a LLaDA-V with random weights as it is published, one shard in memory at a time.

    Args:
        folder: where to.
        texts: what its tokenizer has words for.
        device: where the weights are drawn.
        small: a tiny one instead of eight billion weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, tower = dict(CONFIG), dict(SIGLIP)
    if small:
        config, tower = {**CONFIG, **SMALL_CONFIG}, SMALL_TOWER
        write_json(folder / "vision_config.json", tower)
    tile = tower["image_size"]
    config["image_grid_pinpoints"] = [[i * tile, j * tile] for i in range(1, 7) for j in range(1, 7)]
    write_json(folder / "config.json", config)
    make_tokenizer(config["vocab_size"], texts).save_pretrained(folder)
    # 1. Which shard each tensor goes to.
    shapes = shapes_of(config, tower)
    empty = {name: torch.empty(shape, dtype=DTYPE, device="meta") for name, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=SMALL_SHARD_BYTES if small else SHARD_BYTES)
    # 2. The weights.
    generator = torch.Generator(device).manual_seed(0)
    for file, names in split.filename_to_tensors.items():
        weights = {name: random_weight(name, shapes[name], generator).cpu() for name in names}
        save_file(weights, folder / file, {"format": "pt"})
    write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def shapes_of(config: Mapping[str, Any], tower: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Published names and shapes of all weights."""
    with torch.device("meta"):
        model = LladaV(LladaVConfig.from_official(config, tower))
    shapes = {name: tensor.shape for name, tensor in model.official_state_dict().items()}
    # Published, though nothing reads its output.
    unused = {f"{TOWER}post_layernorm.{part}": torch.Size([tower["hidden_size"]]) for part in ("weight", "bias")}
    return shapes | unused


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Normal values, on the generator's device; the weight of a norm is 1."""
    weight = torch.ones(shape, dtype=DTYPE, device=generator.device)
    if "norm" in name and name.endswith(".weight"):
        return weight
    return weight.normal_(0, SCALE, generator=generator)


def make_tokenizer(vocab_size: int, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with words for ``texts``.

    Its special tokens have the published ids, or stand as far from the end of a smaller vocabulary.
    """
    ids = {token: number - VOCAB + vocab_size for token, number in SPECIAL_TOKENS.values()}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(ids.values()), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([SYSTEM, *texts], trainer)
    # Special tokens are numbered from the end of the vocabulary, so what lies before and between them is filled.
    state = json.loads(tokenizer.to_str())
    vocab: dict[str, int] = state["model"]["vocab"]
    taken = {*vocab.values(), *ids.values()}
    vocab |= {f"<|reserved_token_{n}|>": n for n in range(max(ids.values())) if n not in taken} | ids
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens(list(ids))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False
    )
