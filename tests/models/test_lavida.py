"""LaViDa against recorded outputs, the library's Llama and Qwen2, and loops."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from families.lavida import compare
from parity_folder import PARITY
from PIL import Image
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from disp.data.sample import Query, Sample, Turn
from disp.decoding.decode import DecodeConfig, decode, generate
from disp.errors import DispError
from disp.models.checkpoint import write_official
from disp.models.lavida.loading import official_name, our_name
from disp.models.lavida.masks import complementary_pair
from disp.models.lavida.model import TOKENS, Lavida, LavidaConfig, detect, load_official, pool_tiles
from disp.models.llada_v.model import SYSTEM
from disp.models.loading import load_model
from disp.models.parts.anyres import grid_of, token_count
from disp.training.config import TrainConfig
from disp.training.train import train

MASK, EOS, EOT, FILL = 60, 61, 62, 63
VARIANTS = ("llada", "dream")
TILE = 28


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity_with_the_published_code(variant):
    folder = PARITY / f"lavida_{variant}"
    if not folder.is_dir():
        pytest.skip(f"no recorded outputs at {folder}; set DISP_PARITY_DIR")
    assert parity.comparison(folder).compare is compare
    differences = list(compare(folder))
    assert len(differences) >= 40
    assert [each for each in differences if not each.ok] == []


# --- a tiny model -----------------------------------------------------------------------------------------------------


def make(variant: str = "llada", seed: int = 0, **overrides) -> Lavida:
    config = {
        "variant": variant,
        "token_ids": {"mask": MASK, "eos": EOS, "eot": EOT, **({"fill": FILL} if variant == "llada" else {})},
        "pinpoints": [(TILE, 2 * TILE), (2 * TILE, TILE), (2 * TILE, 2 * TILE), (3 * TILE, TILE), (TILE, 3 * TILE)],
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": variant == "dream",
        "rope_theta": 10_000.0,
        "gen_length": 6,
        "initializer_range": 0.3,
        "vision": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 7,
        },
    }
    torch.manual_seed(seed)
    model = Lavida(LavidaConfig(**{**config, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and the newline, which start at zero
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval().double()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request) -> Lavida:
    return make(request.param)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def left_padded(model: Lavida):
    """Two prompts of different lengths, one with a wide picture and one with a tall one."""
    rows = [model.splice(torch.tensor([3, 4, -200, 5, 6]), [noise(90, 40)])]
    rows.append(model.splice(torch.tensor([7, -200, 8]), [noise(30, 70, seed=1)]))
    longest = max(row.embeds.shape[1] for row in rows)

    def stack(name: str, value: float):
        return torch.cat(
            [
                F.pad(part, (0, 0) * (part.ndim - 2) + (longest - part.shape[1], 0), value=value)
                for part in (getattr(row, name) for row in rows)
            ]
        )

    both = replace(
        rows[0],
        embeds=stack("embeds", 0.0),
        attention_mask=stack("attention_mask", 0),
        visual_mask=stack("visual_mask", 0),
        locations=stack("locations", -1),
    )
    return both, rows


def reference_hidden(model: Lavida, embeds, mask):
    """The library's own bidirectional Llama or Qwen2 with our weights; ``mask`` bool ``[B, T, T]``."""
    own = model.config
    sizes = {
        name: getattr(own, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_theta",
        )
    }
    model_class, config_class = (Qwen2Model, Qwen2Config) if own.variant == "dream" else (LlamaModel, LlamaConfig)
    reference = model_class(config_class(**sizes, attn_implementation="sdpa")).double().eval()
    ours = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    reference.load_state_dict({name: ours[name] for name in reference.state_dict()})
    positions = (mask[:, -1].long().cumsum(-1) - 1).clamp(min=0)
    # Rows of padding see themselves, for a row that sees nothing has no attention.
    mask = mask | torch.eye(mask.shape[1], dtype=torch.bool)
    return reference(inputs_embeds=embeds, attention_mask=mask[:, None], position_ids=positions).last_hidden_state


# --- logits -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_those_of_a_bidirectional_llama_or_qwen2(model):
    """Grouped heads, biases and left padding; Dream's rows are shifted by one."""
    prefix, _ = left_padded(model)
    response = torch.tensor([[9, MASK, 11, MASK, MASK], [MASK, 12, MASK, MASK, 13]])
    embeds = torch.cat((prefix.embeds, model.model.embed_tokens(response)), dim=1)
    valid = F.pad(prefix.attention_mask, (0, 5), value=True)
    hidden = reference_hidden(model, embeds, valid[:, None].expand(-1, embeds.shape[1], -1))
    first = prefix.embeds.shape[1] - (model.config.variant == "dream")
    expected = model.lm_head(hidden[:, first : first + 5])
    torch.testing.assert_close(model.denoise(prefix, response), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cached_prompt_has_not_seen_the_response(model):
    """The cache equals a mask under which prompt rows see the prompt only; slot 0 of Dream comes from the prompt."""
    prefix, _ = left_padded(model)
    response = torch.tensor([[9, MASK, 11, MASK, MASK], [MASK, 12, MASK, MASK, 13]])
    prompt = prefix.embeds.shape[1]
    embeds = torch.cat((prefix.embeds, model.model.embed_tokens(response)), dim=1)
    mask = F.pad(prefix.attention_mask, (0, 5), value=True)[:, None].repeat(1, prompt + 5, 1)
    mask[:, :prompt, prompt:] = False
    first = prompt - (model.config.variant == "dream")
    expected = model.lm_head(reference_hidden(model, embeds, mask)[:, first : first + 5])
    cache = model.cache_prefix(prefix)
    torch.testing.assert_close(model.denoise(prefix, response, cache), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model.denoise(prefix, response), expected, atol=1e-2)


@torch.no_grad()
def test_rows_do_not_depend_on_the_batch(model):
    prefix, rows = left_padded(model)
    response = torch.full((2, 4), MASK)
    together = model.denoise(prefix, response)
    for index, row in enumerate(rows):
        torch.testing.assert_close(together[index], model.denoise(row, response[:1])[0], atol=1e-9, rtol=0)


# --- visual tokens ----------------------------------------------------------------------------------------------------


SIZES = {(20, 20): (1, 2), (50, 28): (2, 1), (57, 56): (2, 2), (90, 40): (3, 1), (300, 60): (3, 1), (60, 300): (1, 3)}


@pytest.mark.parametrize(("size", "grid"), SIZES.items())
def test_a_picture_becomes_its_pooled_tiles_and_a_newline_a_row(model, size, grid):
    assert grid_of(size, model.config.candidates, TILE) == grid
    prefix = model.splice(torch.tensor([3, -200, 4]), [noise(*size)])
    count = token_count(size, model.config.candidates, TILE, 2, None)  # 4 patches a side, pooled to 2
    assert prefix.embeds.shape[1] == 2 + count
    places = prefix.locations[0, 1:-1]
    rows = len({(tile, row) for image, tile, row, _ in places.tolist() if tile == 1})
    visual = prefix.visual_mask[0]
    assert int(visual.sum()) == count - rows
    assert not visual[[0, -1]].any()
    assert len({tuple(place) for place in places[visual[1:-1]].tolist()}) == count - rows
    newlines = prefix.embeds[0, 1:-1][~visual[1:-1]]
    assert torch.equal(newlines, model.model.image_newline.expand(rows, -1))


def test_base_tile_tokens_by_hand(model):
    """Four projected patches averaged are a pooled token: what bilinear halving of an even side comes to."""
    picture = noise(TILE, TILE)
    prefix = model.splice(torch.tensor([-200]), [picture])
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].double() / 127.5 - 1
    tokens = model.model.mm_projector(model.model.vision_tower(pixels))[0].view(4, 4, -1)
    by_hand = [tokens[r : r + 2, c : c + 2].mean((0, 1)) for r in (0, 2) for c in (0, 2)]
    torch.testing.assert_close(prefix.embeds[0, :4], torch.stack(by_hand), atol=1e-6, rtol=1e-6)


def test_pooling_by_hand():
    tokens = torch.arange(9.0).view(1, 9, 1)
    # The new centres lie at 0.25 and 1.75 of three; row times three and column are linear, so values are too.
    bilinear = [3 * row + column for row in (0.25, 1.75) for column in (0.25, 1.75)]
    assert pool_tiles(tokens, "bilinear").flatten().tolist() == pytest.approx(bilinear)
    assert pool_tiles(tokens, "average").flatten().tolist() == [(0 + 1 + 3 + 4) / 4]
    assert pool_tiles(tokens, "max").flatten().tolist() == [4]
    assert pool_tiles(tokens, "none") is tokens
    assert pool_tiles(torch.zeros(3, 729, 2), "bilinear").shape == (3, 196, 2)
    assert pool_tiles(torch.zeros(3, 729, 2), "average").shape == (3, 169, 2)
    with pytest.raises(ValueError, match="pooling"):
        pool_tiles(tokens, "mean")


def test_without_pooling_every_patch_is_a_token():
    model = make(pooling="none")
    prefix = model.splice(torch.tensor([-200]), [noise(90, 40)])
    assert prefix.embeds.shape[1] == token_count((90, 40), model.config.candidates, TILE, 4, None)


def test_several_pictures_are_one_tile_and_one_newline_each(model):
    prefix = model.splice(torch.tensor([3, -200, 4, -200, 5]), [noise(90, 40), noise(30, 70)])
    assert prefix.visual_mask[0].int().tolist() == [0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0]
    assert prefix.locations[0, 1:5].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert prefix.locations[0, 7:11, 0].tolist() == [1, 1, 1, 1]
    assert torch.equal(prefix.embeds[0, 5], model.model.image_newline)
    with pytest.raises(DispError, match="2 image placeholders"):
        model.splice(torch.tensor([-200, -200]), [noise(30, 30)])


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_complementary_pair_by_loops():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 60, (5, 12), generator=generator)
    labels[:, :4] = -100
    labels[2, 7] = FILL
    uniforms = torch.rand((5, 12), generator=generator)
    ratio = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0])
    uniforms[0, 6] = 1e-4  # the smallest of its row, and nothing else falls below p = 0.001
    masked, targets = complementary_pair(labels, ratio, uniforms, fill=FILL)
    for row in range(5):
        p = max(0.999 * ratio[row].item() + 0.001, uniforms[row].min().item())
        for place in range(12):
            counts = labels[row, place] not in (-100, FILL)
            drawn = uniforms[row, place].item() <= p
            assert masked[row, place] == (counts and drawn)
            assert masked[5 + row, place] == (counts and not drawn)
            for half in (row, 5 + row):
                assert targets[half, place] == (labels[row, place] if masked[half, place] else -100)
    assert int(masked.sum()) == int(((labels != -100) & (labels != FILL)).sum())
    assert masked[0].nonzero().flatten().tolist() == [6]


def test_one_token_is_drawn_even_where_it_cannot_be_masked():
    """The published guarantee is over the whole row: it may fall on the prompt, and then the first mask is empty."""
    labels = torch.tensor([[-100, 5, 6]])
    masked, _ = complementary_pair(labels, torch.zeros(1), torch.tensor([[0.2, 0.5, 0.6]]))
    assert masked.tolist() == [[False, False, False], [False, True, True]]


@torch.no_grad()
def test_the_loss_is_the_mean_over_two_passes_without_weights(model):
    prefix, _ = left_padded(model)
    clean = torch.tensor([[9, 10, EOT, EOS, EOS], [12, 13, 14, 15, EOT]])
    ratio, uniforms = torch.tensor([0.4, 0.7]), torch.rand((2, 5), generator=torch.Generator().manual_seed(1))
    p = torch.maximum(0.999 * ratio[:, None] + 0.001, uniforms.min(1, keepdim=True).values)
    drawn, total = uniforms <= p, 0.0
    for masked in (drawn, ~drawn):
        log_p = model.denoise(prefix, clean.where(~masked, MASK)).log_softmax(-1)
        for row in range(2):
            for slot in range(5):
                if masked[row, slot]:
                    total -= float(log_p[row, slot, clean[row, slot]])
    assert model.noisy_loss(prefix, clean, ratio, uniforms).item() == pytest.approx(total / 10, rel=1e-6)


def test_supervised_tokens_anywhere_in_a_sequence(model):
    """Two answers in one row, as of a conversation; nothing supervised in the other: no target, no NaN."""
    embeds = torch.randn((2, 9, 32), generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    labels = torch.full((2, 9), -100)
    labels[0, [2, 3, 7]] = torch.tensor([5, 6, 7])
    uniforms = torch.full((2, 9), 0.9)
    uniforms[0, 3] = 0.1
    loss = model.sequence_loss(embeds, labels, torch.tensor([0.5, 0.5]), uniforms)
    total = 0.0
    for places in ([3], [2, 7]):
        noisy = embeds[:1].clone()
        noisy[:, places] = model.mask_embedding
        hidden = reference_hidden(model, noisy, torch.ones((1, 9, 9), dtype=torch.bool))
        log_p = model.lm_head(hidden)[0].log_softmax(-1)
        for place in places:
            total -= float(log_p.detach()[place - (model.config.variant == "dream"), labels[0, place]])
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)
    loss.backward()
    assert embeds.grad[0].abs().sum() > 0
    nothing = model.sequence_loss(embeds, torch.full((2, 9), -100), torch.tensor([0.5, 0.5]), uniforms)
    assert nothing.item() == 0


def test_gradients_reach_newline_projector_and_tower():
    model = make("dream").train()
    prefix = model.splice(torch.tensor([3, -200, 5]), [noise(90, 40)])
    clean = torch.tensor([[9, 10, EOT, EOS]])
    model.noisy_loss(prefix, clean, torch.tensor([0.5]), torch.tensor([[0.1, 0.9, 0.2, 0.8]])).backward()
    for name in ("model.image_newline", "model.mm_projector.0.weight", "model.layers.0.self_attn.k_proj.bias"):
        assert model.get_parameter(name).grad.abs().sum() > 0, name
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0


# --- decoding ---------------------------------------------------------------------------------------------------------

SETTINGS = [
    {"steps": 6},
    {"steps": 4, "schedule": "shift", "schedule_shift": 0.33, "prefix_cache": True},
    {"steps": 6, "sampler": "dream", "algorithm": "entropy", "step_ratio": 0.5},
    {"steps": 6, "sampler": "dream", "algorithm": "topk_margin", "top_k": 50, "prefix_cache": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: each.get("sampler", "llada"))
def test_masked_visual_tokens_are_no_candidates_and_rows_are_independent(model, settings):
    prefix, rows = left_padded(model)
    masked = prefix.visual_mask & (torch.arange(prefix.embeds.shape[1]) % 2 == 0)
    hidden = prefix.with_masked(masked, model.mask_embedding)
    config = DecodeConfig(gen_length=6, **settings)
    ids = decode(model, hidden, config)
    assert not (ids == MASK).any()
    offset = prefix.embeds.shape[1] - rows[1].embeds.shape[1]
    alone = rows[1].with_masked(masked[1:, offset:], model.mask_embedding)
    assert torch.equal(decode(model, alone, config), ids[1:])


def test_the_published_defaults_are_valid_settings():
    for config in (LLADA, DREAM):
        own = LavidaConfig.from_official(config)
        decoding = DecodeConfig(gen_length=own.gen_length, **own.generation)
        assert (decoding.schedule, decoding.schedule_shift, decoding.prefix_cache) == ("shift", 0.33, True)
    for variant in VARIANTS:
        for settings in make(variant).generation_presets.values():
            assert DecodeConfig(**settings).prefix_cache


# --- checkpoints ------------------------------------------------------------------------------------------------------

LLADA = {
    "model_type": "llava_llada",
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 126081,
    "mask_token_id": 126336,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],
    "mm_spatial_pool_mode": "bilinear",
    "mm_patch_merge_type": "spatial_unpad",
}
DREAM = {
    "model_type": "llava_dream",
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    **{name: value for name, value in LLADA.items() if name.startswith(("mm_", "image_"))},
}


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


def published_config(model: Lavida) -> dict:
    own = model.config
    config = {"mask_token_id": MASK, "eos_token_id": EOS, "image_grid_pinpoints": own.pinpoints}
    names = ("vocab_size", "rope_theta", "rms_norm_eps")
    config |= {name: getattr(own, name) for name in names}
    if own.variant == "llada":
        config |= {"model_type": "llava_llada", "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2}
        return {**config, "mlp_hidden_size": 48}
    config |= {"model_type": "llava_dream", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {**config, "num_hidden_layers": 2, "intermediate_size": 48}


def write(model: Lavida, folder: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    weights = {**model.official_state_dict(), **changes.pop("weights", {})}
    vision = {**model.config.vision, "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps({**published_config(model), **changes}))
    (folder / "vision_config.json").write_text(json.dumps(vision))
    write_official(model, folder, None, state_dict={name: t for name, t in weights.items() if t is not None})
    return folder


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


# --- text -------------------------------------------------------------------------------------------------------------


def write_dream_tokenizer(folder: Path) -> None:
    """Qwen2's file layout with bytes for tokens, and a config that names code of its own as Dream's does."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {symbol: index for index, symbol in enumerate(bytes_to_unicode().values())}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = ["<|mask|>", "<|beginoftext|>", "<|endoftext|>", "<|im_end|>", "<|im_start|>"]
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {
            str(256 + index): {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
            for index, token in enumerate(special)
        },
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def dream_folder(tmp_path_factory) -> Path:
    model, folder = make("dream", vocab_size=264), tmp_path_factory.mktemp("dream")
    write(model, folder, mask_token_id=None, eos_token_id=None)
    write_dream_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def dream(dream_folder) -> Lavida:
    return load_official(dream_folder, torch.float64)


def test_dreams_tokenizer_needs_no_code_of_its_own(dream):
    assert dream.mask_token_id == 256
    assert dream.end_token_ids == (259, 258)
    assert dream.config.token_ids["bos"] == 257


def test_a_chatml_prompt(dream):
    picture = noise(90, 40)
    query = Query("a", 0, (picture,), (Turn("What?", "A cat."),), "<image>\nWhere?")
    inputs = dream.prepare([query])
    ids = inputs["token_ids"][0].tolist()
    place = ids.index(-2)
    expected = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat."
        "<|im_end|>\n<|im_start|>user\n",
        "\nWhere?<|im_end|>\n<|im_start|>assistant\n",
    )
    assert (dream.tokenizer.decode(ids[:place]), dream.tokenizer.decode(ids[place + 1 :])) == expected
    prefix = dream.embed(**inputs)
    assert prefix.embeds.shape[1] == len(ids) - 1 + token_count(picture.size, dream.config.candidates, TILE, 2, None)
    # Control tokens in data stay text.
    smuggled = dream.prepare([Query("b", 0, (), (), "<|im_end|>")])["token_ids"][0].tolist()
    assert smuggled.count(259) == 2


def test_features_stand_in_for_pixels(dream):
    queries = [
        Query("a", 0, (noise(90, 40),), (), "<image>\nWhat?"),
        Query("b", 0, (), (), "No picture."),
        Query("c", 0, (noise(30, 70), noise(60, 20)), (), "<image> and <image>: which?"),
    ]
    features = [part for query in queries for part in dream.image_features(query.images)]
    direct, cached = dream.encode(queries), dream.embed(**dream.prepare(queries, features))
    assert torch.equal(direct.visual_mask, cached.visual_mask)
    torch.testing.assert_close(direct.embeds, cached.embeds, atol=1e-9, rtol=0)
    assert direct.visual_mask.sum(1).tolist()[1:] == [0, 8]


def test_responses_and_the_training_step(dream):
    ids = dream.encode_responses(["A cat.", ""], 9)
    assert ids[0].tolist()[6:] == [259, 258, 258]
    assert dream.decode_responses(ids) == ["A cat.", ""]
    queries = [Query("a", 0, (noise(90, 40),), (), "<image>\nWhat?"), Query("b", 0, (), (), "Why?")]
    uniforms = torch.rand((2, 9), generator=torch.Generator().manual_seed(0))
    loss = dream(ids, torch.tensor([0.3, 0.6]), uniforms, **dream.prepare(queries))
    assert math.isfinite(loss.item())
    assert loss.requires_grad


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fine_tuning_from_checkpoint_to_checkpoint(dream_folder, tmp_path, method):
    """The saved model has the published key names, answers, and differs from the one it came from."""
    model = load_model(dream_folder, device="cpu", dtype="float32", gen_length=8)
    samples = [
        Sample("a", (noise(90, 40),), (Turn("<image>\nWhat?", "A cat."),)),
        Sample("b", (noise(30, 70), noise(60, 20)), (Turn("<image> or <image>?", "Both."), Turn("Why?", "No."))),
    ]
    before = {name: tensor.clone() for name, tensor in model.official_state_dict().items()}
    train(model, samples, TrainConfig(steps=2, learning_rate=1e-3, batch_size=3, method=method, lora_rank=2), tmp_path)
    again = load_model(tmp_path, device="cpu", dtype="float32")
    after = again.official_state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    query = Query("a", 0, samples[0].images, (), "<image>\nWhat?")
    config = DecodeConfig(gen_length=again.gen_length, **again.generation_defaults)
    assert config.sampler == "dream"
    assert len(generate(again, [query], config)) == 1


def test_special_tokens_are_named_alike():
    """Ids of the tokenizers of LLaDA-8B-Instruct and Dream-v0-Instruct-7B."""
    assert TOKENS["llada"]["fill"] == ("<|reserved_token_1|>", 126084 + 1)
    assert {name: number for name, (_, number) in TOKENS["dream"].items()} == {
        "mask": 151666,
        "bos": 151665,
        "eos": 151643,
        "eot": 151645,
    }
