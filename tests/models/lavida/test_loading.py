"""LaViDa's configs and checkpoints."""

from __future__ import annotations

import pytest
import torch
from references.lavida import (
    DREAM,
    EOS,
    EOT,
    LLADA,
    MASK,
    write,
)

from disp.errors import DispError
from disp.models.lavida.config import LavidaConfig
from disp.models.lavida.key_names import official_name, our_name
from disp.models.lavida.loading import load_official
from disp.models.lavida.model import Lavida
from disp.models.lavida.published import detect


def test_published_sizes():
    """Parameters of the language models: LLaDA-8B's is public (16,031,162,368 bytes), Dream's follows from Qwen2's."""
    counts = {}
    for name, config in (("llada", LLADA), ("dream", DREAM)):
        with torch.device("meta"):
            model = Lavida(LavidaConfig.from_official(config))
        vision = sum(p.numel() for n, p in model.named_parameters() if "vision_tower" in n)
        projector = sum(p.numel() for n, p in model.named_parameters() if "mm_projector" in n or "newline" in n)
        counts[name] = sum(p.numel() for p in model.parameters()) - vision - projector
        # The first 26 of SigLIP's 27 layers, its patches and positions, without the norm and the head behind them.
        layer = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
        assert vision == 26 * layer + 1152 * (3 * 14 * 14 + 1) + 729 * 1152
    assert counts["llada"] * 2 == 16_031_162_368
    layer = 3584 * (28 + 2 * 4) * 128 + (28 + 2 * 4) * 128 + 3584 * 28 * 128 + 3 * 3584 * 18944 + 2 * 3584
    assert counts["dream"] == 28 * layer + 2 * 152064 * 3584 + 3584


def test_detection():
    assert detect(LLADA)
    assert detect(DREAM)
    assert not detect({"model_type": "llava_llada", "hidden_size": 4096, "num_hidden_layers": 32})  # LLaDA-V
    assert not detect({})


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (LLADA, {"mm_projector_type": "linear"}),
        (LLADA, {"weight_tying": True}),
        (LLADA, {"image_aspect_ratio": "highres"}),
        (LLADA, {"mm_spatial_pool_mode": "median"}),
        (DREAM, {"tie_word_embeddings": True}),
        (DREAM, {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    ],
)
def test_what_no_published_checkpoint_has_is_refused(config, change):
    with pytest.raises(DispError, match=next(iter(change))):
        LavidaConfig.from_official({**config, **change})


def test_pooling_can_be_switched_off_in_the_config():
    assert LavidaConfig.from_official(LLADA).pooling == "bilinear"
    assert LavidaConfig.from_official({**LLADA, "mm_spatial_pool_mode": "none"}).pooling == "none"
    assert LavidaConfig.from_official({**LLADA, "disp": {"pooling": "none"}}).pooling == "none"


def test_a_checkpoint_is_written_and_read_under_the_published_names(model, tmp_path):
    names = set(model.official_state_dict())
    if model.config.variant == "llada":
        assert {"model.transformer.ff_out.weight", "model.transformer.blocks.1.ff_out.weight"} <= names
        assert all(official_name(our_name(name, "llada"), "llada") == name for name in names)
        assert not any(name.startswith(("lm_head", "model.layers")) for name in names)
    else:
        assert {"lm_head.weight", "model.layers.1.self_attn.q_proj.bias"} <= names
    assert "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert {"model.image_newline", "model.mm_projector.2.bias"} <= names
    again = load_official(write(model, tmp_path / "model"), torch.float64, token_ids={"eot": EOT})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert (again.mask_token_id, again.end_token_ids) == (MASK, (EOT, EOS))


def test_keys_must_be_exactly_those_of_the_model(model, tmp_path):
    name = next(name for name in model.official_state_dict() if "k_proj.weight" in name and "vision" not in name)
    with pytest.raises(DispError, match=r"1 missing keys \(model\.layers"):
        load_official(write(model, tmp_path / "a", weights={name: None}))
    with pytest.raises(DispError, match=r"1 surplus keys \(model\.surprise\)"):
        load_official(write(model, tmp_path / "b", weights={"model.surprise": torch.zeros(1)}))


def test_unused_weights_are_known_by_name_and_written_back(model, tmp_path):
    tower = "model.vision_tower.vision_tower.vision_model."
    unused = {f"{tower}post_layernorm.weight": torch.ones(16), f"{tower}encoder.layers.2.mlp.fc1.bias": torch.ones(24)}
    again = load_official(write(model, tmp_path / "model", weights=unused))
    assert unused.keys() <= again.official_state_dict().keys()
    assert model.official_state_dict().keys() | unused.keys() == again.official_state_dict().keys()


def test_fewer_stored_rows_than_the_config_says(model, tmp_path):
    """The published loader cuts the vocabulary to the tokenizer's length, and the config may not follow."""
    again = load_official(write(model, tmp_path / "model", vocab_size=70, embedding_size=70))
    assert again.config.vocab_size == len(again.model.embed_tokens.weight) == 64
