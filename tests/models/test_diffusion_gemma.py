"""DiffusionGemma against the classes of `transformers` themselves, on a tiny model with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from transformers import DiffusionGemmaForBlockDiffusion, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.diffusion_gemma import generation_diffusion_gemma as native_generation
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from disp.data.llava import load_dataset
from disp.data.sample import Query, Sample, Turn
from disp.decoding.canvas import CanvasSampling, accept, decode_canvas, draw_tokens
from disp.decoding.decode import DecodeConfig, decode
from disp.draws import generator
from disp.errors import DispError
from disp.models.diffusion_gemma.images import image_patches, patch_positions, token_grid
from disp.models.diffusion_gemma.model import DiffusionGemma, DiffusionGemmaMDLMConfig, detect, load_official
from disp.models.loading import load_model, merge, save_model
from disp.models.parts.tokenizer import train_tokenizer
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify
from disp.suspicion.saliency import SaliencyConfig, first_step, saliency
from disp.training.config import TrainConfig
from disp.training.train import train

CANVAS = 6
WINDOW = 8


@pytest.fixture(scope="module")
def gemma_tokenizer():
    tokenizer = train_tokenizer(["Describe the picture.", "What is to the left of the cat? Two dogs and a tree."], 290)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>"]})
    tokenizer.add_tokens(["<b>", "\n\n"])
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture(scope="module")
def build(gemma_tokenizer):
    """A function that builds a model with random weights; keyword arguments override its config's."""

    def build(**overrides) -> DiffusionGemma:
        ids = gemma_tokenizer.get_vocab()
        config = DiffusionGemmaMDLMConfig(
            text_config={
                "vocab_size": len(gemma_tokenizer),
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "global_head_dim": 16,
                "num_global_key_value_heads": 1,
                "sliding_window": WINDOW,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                "use_bidirectional_attention": "vision",
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 16,
                "initializer_range": 0.3,
                "pad_token_id": gemma_tokenizer.pad_token_id,
            },
            vision_config={
                "model_type": "gemma4_vision",
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "patch_size": 2,
                "pooling_kernel_size": 3,
                "position_embedding_size": 64,
                "standardize": True,
                "initializer_range": 0.3,
            },
            **{
                "boi_token_id": ids["<|image>"],
                "eoi_token_id": ids["<image|>"],
                "image_token_id": ids["<|image|>"],
                "end_of_turn_token_id": ids["<turn|>"],
                "end_ids": [gemma_tokenizer.eos_token_id],
                "canvas_length": CANVAS,
                "max_visual_tokens": 12,
                "initializer_range": 0.3,
                **overrides,
            },
        )
        torch.manual_seed(0)
        model = DiffusionGemma(config)
        # What an initialisation leaves alike, and a wrong tie of encoder and decoder would not show.
        for name, value in model.state_dict().items():
            if name.endswith(("layer_scalar", "std_scale", "scale")):
                value.uniform_(0.5, 1.5)
            elif name.endswith("norm.weight"):
                value.uniform_(1.0, 3.0)
            elif name.endswith("std_bias"):
                value.normal_()
        model.model.decoder.embed_tokens.weight.data.mul_(0.3)
        model.tokenizer = gemma_tokenizer
        return model.eval()

    return build


@pytest.fixture(scope="module")
def gemma(build):
    """Shared by all tests: do not change it."""
    return build()


def library_twin(model: DiffusionGemma, folder) -> DiffusionGemmaForBlockDiffusion:
    """The library's own class with the weights that our model saved, read by their published names."""
    model.save_pretrained(folder)
    twin, report = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return twin.eval()


@pytest.fixture(scope="module")
def native(gemma, tmp_path_factory):
    return library_twin(gemma, tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def steady(build):
    """Layers add little to the canvas, so that it comes to rest and last digits do not grow from step to step."""
    model = build()
    for name, value in model.state_dict().items():
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            value.mul_(0.3)
    model.model.decoder.self_conditioning.down_proj.weight.data.mul_(0.01)
    return model


@pytest.fixture(scope="module")
def steady_native(steady, tmp_path_factory):
    return library_twin(steady, tmp_path_factory.mktemp("steady"))


@pytest.fixture(scope="module")
def questions() -> list[Query]:
    """One picture, two pictures of other shapes in two turns, and none."""

    def picture(number: int, width: int, height: int) -> Image.Image:
        values = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(values)

    return [
        Query("a", 0, (picture(1, 24, 24),), (), "<image>\nDescribe the picture."),
        Query(
            "b",
            1,
            (picture(2, 50, 20), picture(3, 11, 40)),
            (Turn("<image>\nDescribe it.", "A cat."),),
            "And <image> what is left of the cat, and of two dogs?",
            system="Be brief.",
        ),
        Query("c", 0, (), (), "Hi"),
    ]


def native_inputs(model: DiffusionGemma, query: Query) -> dict[str, torch.Tensor]:
    """The arguments of the library's ``generate``, for one query."""
    inputs = model.prepare([query])
    ids = inputs["token_ids"]
    visual = ids < -1
    result = {
        "input_ids": ids.masked_fill(visual, model.config.image_token_id),
        "mm_token_type_ids": visual.long(),
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
    }
    if query.images:
        result["pixel_values"] = inputs["pixels"] / 255
        result["image_position_ids"] = patch_positions(inputs["grids"], 3, inputs["pixels"].shape[1])
    return result


def native_logits(native, inputs: dict, canvas: torch.Tensor, **kwargs) -> torch.Tensor:
    """The library's forward pass, with the attention masks that its ``generate`` uses."""
    inputs = dict(inputs)
    types, valid = inputs.pop("mm_token_type_ids"), inputs.pop("attention_mask")
    masks = native.model.encoder.create_masks_for_generate(
        config=native.config,
        inputs_embeds=torch.empty(*valid.shape, 0),
        attention_mask=valid,
        past_key_values=None,
        position_ids=None,
        mm_token_type_ids=types,
    )
    return native(**inputs, attention_mask=masks, decoder_input_ids=canvas, **kwargs).logits


def random_canvas(model: DiffusionGemma, seed: int, length: int = CANVAS) -> torch.Tensor:
    return torch.randint(model.mask_token_id, (1, length), generator=torch.Generator().manual_seed(seed))


# --- pictures and prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 24), (64, 48), (50, 37), (37, 50), (192, 108), (20, 60), (7, 500), (900, 11)])
def test_patches_are_those_of_the_published_processor(size):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(values)
    processor = Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=3, max_soft_tokens=70)
    expected = processor(image, return_tensors="pt")
    patches, (rows, columns) = image_patches(image, 4, 3, 70)
    count = len(patches)
    assert rows * columns == expected["num_soft_tokens_per_image"][0]
    assert torch.equal(torch.from_numpy(patches).float() / 255, expected["pixel_values"][0, :count].float())
    assert torch.equal(patch_positions(torch.tensor([[rows, columns]]), 3, 70 * 9), expected["image_position_ids"])


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((224, 224), 256),
        ((336, 336), 256),
        ((640, 480), 266),
        ((500, 375), 266),
        ((1920, 1080), 264),
        ((200, 600), 252),
    ],
)
def test_published_numbers_of_visual_tokens(size, tokens):
    rows, columns = token_grid(*size, side=48, max_tokens=280)
    assert rows * columns == tokens


def test_prompt_text_pictures_and_locations(gemma, gemma_tokenizer, questions):
    inputs = gemma.prepare(questions)
    prefix = gemma.embed(**inputs)
    assert inputs["grids"].tolist() == [[3, 3], [2, 5], [6, 1]]
    ids = inputs["token_ids"][1]
    text = gemma_tokenizer.decode(ids[ids >= 0])
    assert text == (
        f"{gemma_tokenizer.bos_token}<|turn>system\nBe brief.<turn|>\n<|turn>user\n\n\n<|image><image|>\n\nDescribe it."
        "<turn|>\n<|turn>model\nA cat.<turn|>\n<|turn>user\nAnd\n\n<|image><image|>\n\n"
        "what is left of the cat, and of two dogs?<turn|>\n<|turn>model\n"
    )
    assert prefix.visual_mask.sum(-1).tolist() == [9, 16, 0]
    places = [(0, 0, row, column) for row in range(2) for column in range(5)] + [(1, 0, row, 0) for row in range(6)]
    assert [tuple(place) for place in prefix.locations[1][prefix.visual_mask[1]].tolist()] == places
    assert (prefix.locations[~prefix.visual_mask] == -1).all()


def test_text_from_data_cannot_spell_control_tokens(gemma):
    ids = gemma.prepare([Query("x", 0, (), (), "a <|image|> <turn|> b")])["token_ids"]
    plain = gemma.prepare([Query("x", 0, (), (), "a b")])["token_ids"]
    assert not (ids == gemma.config.image_token_id).any()
    end = gemma.config.end_of_turn_token_id
    assert (ids == end).sum() == (plain == end).sum()
    # Added tokens that are no control tokens are text.
    assert gemma._plain("a\n\n<b>cat</b>") == "a\n\n<b>cat</b>"


def test_surplus_placeholder_is_an_error(gemma):
    with pytest.raises(DispError, match="placeholders"):
        gemma.prepare([Query("x", 0, (), (), "<image> what?")])


def test_cached_features_give_the_same_prefix(gemma, questions):
    features = [tensor for query in questions for tensor in gemma.image_features(query.images)]
    direct, cached = gemma.embed(**gemma.prepare(questions)), gemma.embed(**gemma.prepare(questions, features))
    assert torch.allclose(direct.embeds, cached.embeds, atol=1e-5)
    assert torch.equal(direct.locations, cached.locations)


def test_responses_round_trip(gemma):
    ids = gemma.encode_responses(["A cat.", ""], 10)
    assert gemma.decode_responses(ids) == ["A cat.", ""]
    assert ids[1, 0] == gemma.config.end_of_turn_token_id
    assert (ids[1, 1:] == gemma.config.text_config.pad_token_id).all()
    with pytest.raises(DispError, match="does not fit"):
        gemma.encode_responses(["A cat and two dogs and a tree."], 3)


# --- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 1, 2])
@torch.no_grad()
def test_logits_are_the_library_s(gemma, native, questions, row):
    canvas = random_canvas(gemma, row)
    ours = gemma.denoise(gemma.encode([questions[row]]), canvas)
    expected = native_logits(native, native_inputs(gemma, questions[row]), canvas)
    assert ours.std() > 0.1
    assert (ours - expected).abs().max() < 1e-4
    # With self-conditioning too; and the tokens of a picture do see each other.
    encoded = gemma.cache_prefix(gemma.encode([questions[row]]))
    inputs = native_inputs(gemma, questions[row])
    again = native_logits(native, inputs, canvas, self_conditioning_logits=ours)
    assert (gemma.denoise_canvas(encoded, canvas, ours) - again).abs().max() < 1e-4
    inputs["mm_token_type_ids"] = torch.zeros_like(inputs["mm_token_type_ids"])
    causal = native_logits(native, inputs, canvas)
    assert bool((causal - expected).abs().max() > 1e-3) == bool(questions[row].images)


def test_gradient_at_visual_tokens_is_the_library_s(gemma, native, questions):
    inputs = native_inputs(gemma, questions[1])
    features = native.model.encoder.get_image_features(
        inputs.pop("pixel_values"), inputs.pop("image_position_ids")
    ).pooler_output.detach()
    features.requires_grad_()
    prefix = gemma.encode([questions[1]])
    embeds, logits = first_step(gemma, prefix, CANVAS)
    canvas = gemma._random_ids("canvas", CANVAS)[None]
    inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    expected_logits = native_logits(native, inputs, canvas)
    token = int(expected_logits[0, 0].argmax())
    (expected,) = torch.autograd.grad(expected_logits[0, 0].log_softmax(-1)[token], features)
    (ours,) = torch.autograd.grad(logits[0, 0].log_softmax(-1)[token], embeds)
    assert expected.abs().max() > 1e-3
    assert (ours[prefix.visual_mask] - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


@torch.no_grad()
def test_rows_of_a_batch_equal_single_rows(gemma, questions):
    prefix = gemma.encode(questions)
    assert prefix.attention_mask.sum(-1).min() < prefix.attention_mask.shape[1] - WINDOW
    canvas = torch.cat([random_canvas(gemma, row) for row in range(3)])
    batched = gemma.denoise(prefix, canvas)
    for row, query in enumerate(questions):
        single = gemma.encode([query])
        assert (gemma.denoise(single, canvas[row : row + 1])[0] - batched[row]).abs().max() < 1e-4
        valid = prefix.attention_mask[row]
        assert torch.allclose(prefix.extras["substitutes"][row, valid], single.extras["substitutes"][0], atol=1e-6)


@torch.no_grad()
def test_open_slots_hold_the_same_noise_always(gemma, questions):
    prefix = gemma.encode(questions)
    canvas = torch.full((3, CANVAS), gemma.mask_token_id)
    canvas[:, 2] = 5
    noise = gemma._random_ids("canvas", CANVAS)
    expected = noise.clone()
    expected[2] = 5
    assert torch.equal(gemma._random_ids("canvas", 3), noise[:3])
    ours = gemma.denoise(prefix, canvas)
    assert torch.equal(ours, gemma.denoise_canvas(gemma.cache_prefix(prefix), expected.expand(3, -1)))


@torch.no_grad()
def test_cache_is_exact_and_never_written(gemma, questions):
    prefix = gemma.encode(questions)
    cache = gemma.cache_prefix(prefix)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.past_key_values.layers]
    for seed in range(2):
        canvas = random_canvas(gemma, seed).expand(3, -1)
        assert torch.equal(gemma.denoise(prefix, canvas, cache), gemma.denoise(prefix, canvas))
    rows = torch.tensor([2, 1])
    part = gemma.denoise(prefix.select(rows), canvas[:2], cache.select(rows))
    assert (part - gemma.denoise(prefix, canvas)[rows]).abs().max() < 1e-5
    gemma.append(cache, canvas)
    for layer, (keys, values) in zip(cache.past_key_values.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
    assert cache.past_key_values.get_seq_length() == prefix.embeds.shape[1]


@pytest.mark.parametrize("row", [0, 2])
@torch.no_grad()
def test_a_finished_canvas_is_part_of_the_prompt(gemma, native, questions, row):
    finished, canvas = random_canvas(gemma, 5), random_canvas(gemma, 6)
    encoded = gemma.append(gemma.cache_prefix(gemma.encode([questions[row]])), finished)
    inputs = native_inputs(gemma, questions[row])
    inputs["input_ids"] = torch.cat((inputs["input_ids"], finished), dim=1)
    inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, CANVAS))
    inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, CANVAS), value=True)
    expected = native_logits(native, inputs, canvas)
    assert (gemma.denoise_canvas(encoded, canvas) - expected).abs().max() < 1e-4


def test_a_response_longer_than_the_canvas_is_an_error(gemma, questions):
    with pytest.raises(DispError, match="canvas"):
        gemma.denoise(gemma.encode(questions[:1]), torch.zeros(1, CANVAS + 1, dtype=torch.int64))


# --- masked visual tokens ------------------------------------------------------------------------------------------


def test_masked_tokens_become_the_mean_of_their_image(gemma, questions):
    prefix = gemma.encode(questions)
    visual = prefix.visual_mask.nonzero()[::2]
    masked = torch.zeros_like(prefix.visual_mask)
    masked[visual[:, 0], visual[:, 1]] = True
    hidden = prefix.with_masked(masked, gemma.mask_embedding)
    for row, column in prefix.visual_mask.nonzero().tolist():
        image = prefix.locations[row, column, 0]
        same = prefix.visual_mask[row] & (prefix.locations[row, :, 0] == image)
        expected = prefix.embeds[row, same].mean(0) if masked[row, column] else prefix.embeds[row, column]
        assert torch.allclose(hidden.embeds[row, column], expected, atol=1e-5)
    assert torch.equal(hidden.embeds[~masked], prefix.embeds[~masked])
    # In two rounds, and of a part of the rows: the same.
    half = masked & (torch.arange(masked.shape[1]) % 2 == 0)
    twice = prefix.with_masked(half, gemma.mask_embedding).with_masked(masked, gemma.mask_embedding)
    assert torch.equal(twice.embeds, hidden.embeds)
    rows = torch.tensor([1, 1, 0])
    assert torch.equal(prefix.select(rows).with_masked(masked[rows], gemma.mask_embedding).embeds, hidden.embeds[rows])
    with pytest.raises(ValueError, match="only visual tokens"):
        prefix.with_masked(~prefix.visual_mask, gemma.mask_embedding)


@torch.no_grad()
def test_random_and_zero_substitutes(build, questions):
    model = build(visual_substitute="random", noise_seed=4)
    prefix = model.encode(questions)
    hidden = prefix.with_masked(prefix.visual_mask, model.mask_embedding)
    ids = model._random_ids("visual substitute", 16)
    table = model.model.decoder.embed_tokens(ids)
    for row in range(2):
        count = int(prefix.visual_mask[row].sum())
        assert torch.equal(hidden.embeds[row, prefix.visual_mask[row]], table[:count])
    everything = model.model.decoder.embed_tokens(torch.arange(model.vocab_size))
    assert torch.allclose(model.mask_embedding, everything.mean(0), atol=1e-6)
    model = build(visual_substitute="zero")
    prefix = model.encode(questions)
    hidden = prefix.with_masked(prefix.visual_mask, model.mask_embedding)
    assert (hidden.embeds[prefix.visual_mask] == 0).all()
    assert (model.mask_embedding == 0).all()


@pytest.mark.parametrize("wrong", [{"visual_substitute": "median"}, {"gen_length": CANVAS + 1}, {"gen_length": 0}])
def test_wrong_settings_are_errors(build, wrong):
    with pytest.raises(DispError, match=next(iter(wrong))):
        build(**wrong)


def test_saliency_is_of_visual_tokens_alone(gemma, questions):
    prefix = gemma.encode(questions)
    keys = [query.key for query in questions]
    scores = saliency(gemma, prefix, keys, SaliencyConfig(probes=2))
    assert (scores[prefix.visual_mask] > 0).all()
    assert (scores[~prefix.visual_mask] == 0).all()
    single = saliency(gemma, gemma.encode(questions[1:2]), keys[1:2], SaliencyConfig(probes=2))
    assert torch.allclose(
        scores[1, prefix.visual_mask[1]], single[0, prefix.visual_mask[1][-single.shape[1] :]], rtol=1e-3
    )


# --- loss and training ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_loss_by_hand(gemma, questions):
    prefix = gemma.encode(questions)
    clean = gemma.encode_responses(["A cat", "Yes", ""], CANVAS)
    ratio = torch.tensor([0.3, 0.500007, 0.9])
    uniforms = torch.from_numpy(np.random.default_rng(1).random((3, CANVAS))).float()
    total, conditioned = 0.0, []
    for row in range(3):
        t = 1e-3 + (1 - 1e-3) * float(ratio[row])
        canvas = clean[row].clone()
        for slot in range(CANVAS):
            if float(uniforms[row, slot]) < t:
                canvas[slot] = int(float(uniforms[row, slot]) / t * gemma.vocab_size)
        encoded = gemma.cache_prefix(gemma.encode(questions[row : row + 1]))
        logits = gemma.denoise_canvas(encoded, canvas[None])
        conditioned.append(int(t * 2**16) % 2 == 1)
        if conditioned[-1]:
            logits = gemma.denoise_canvas(encoded, canvas[None], logits)
        for slot in range(CANVAS):
            total -= float(logits[0, slot].double().log_softmax(-1)[clean[row, slot]])
    assert len(set(conditioned)) == 2
    assert float(gemma.noisy_loss(prefix, clean, ratio, uniforms)) == pytest.approx(total / (3 * CANVAS), rel=1e-5)


@torch.no_grad()
def test_half_of_the_rows_are_conditioned_and_noise_is_uniform(gemma, questions, monkeypatch):
    seen = {}

    def denoise_canvas(encoded, canvas, self_conditioning=None, conditioned=None):
        seen.update(canvas=canvas, conditioned=conditioned)
        return torch.zeros(*canvas.shape, gemma.vocab_size)

    monkeypatch.setattr(gemma, "denoise_canvas", denoise_canvas)
    monkeypatch.setattr(gemma, "cache_prefix", lambda prefix: None)
    draws = np.random.default_rng(0)
    ratio, uniforms = torch.from_numpy(draws.random(2000)).float(), torch.from_numpy(draws.random((2000, 40))).float()
    clean = torch.full((2000, 40), -1)
    gemma.noisy_loss(None, clean.clamp(min=0), ratio, uniforms)
    assert abs(float(seen["conditioned"].float().mean()) - 0.5) < 0.05
    gemma.noisy_loss(None, clean.clamp(min=0), torch.ones(2000), uniforms)
    counts = seen["canvas"].flatten().bincount(minlength=gemma.vocab_size).float()
    expected = seen["canvas"].numel() / gemma.vocab_size
    assert ((counts - expected).square() / expected).sum() / gemma.vocab_size < 1.3  # χ² over its degrees of freedom


def test_loss_trains_projector_encoder_and_self_conditioning(build, questions):
    model = build()
    clean = model.encode_responses(["A cat", "Yes", ""], CANVAS)
    uniforms = torch.from_numpy(np.random.default_rng(1).random((3, CANVAS))).float()
    loss = model(clean, torch.tensor([0.3, 0.500007, 0.9]), uniforms, **model.prepare(questions))
    loss.backward()
    for part in ("embed_vision", "self_conditioning.up_proj", "vision_tower.patch_embedder", "experts.down_proj"):
        gradients = [p.grad for name, p in model.named_parameters() if part in name]
        assert gradients
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_gradient_checkpointing_changes_nothing(build, questions):
    clean = build().encode_responses(["A cat", "Yes", ""], CANVAS)
    uniforms = torch.from_numpy(np.random.default_rng(1).random((3, CANVAS))).float()
    gradients = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model._set_gradient_checkpointing(gradient_checkpointing_func=partial(checkpoint, use_reentrant=False))
            assert model.is_gradient_checkpointing
        model(clean, torch.tensor([0.3, 0.500007, 0.9]), uniforms, **model.prepare(questions)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-5), name


def test_adapters_act_in_encoder_and_decoder_and_merge_once(build, questions):
    model = build()
    targets = model.lora_modules()
    assert targets
    assert not any("vision_tower" in name or "router" in name for name in targets)
    config = LoraConfig(
        r=2, target_modules=targets, modules_to_save=list(model.projector_names), init_lora_weights=False
    )
    prefix = model.encode(questions)
    canvas = torch.cat([random_canvas(model, row) for row in range(3)])
    plain = model.denoise(prefix, canvas)
    adapted = get_peft_model(model, config)
    layers = model.model.encoder.language_model.layers, model.model.decoder.layers
    assert layers[0][0].self_attn.q_proj is layers[1][0].self_attn.q_proj
    assert layers[0][0].mlp.up_proj is layers[1][0].mlp.up_proj
    assert hasattr(layers[1][0].self_attn.q_proj, "lora_A")
    # The truth: the low-rank products added to the weights, in the library's own class.
    state = build().official_state_dict()
    for name, module in model.named_modules():
        if name in targets:
            published = name.replace("encoder.language_model", "decoder") + ".weight"
            state[published] = state[published] + module.get_delta_weight("default").detach()
    truth = build()
    truth.load_state_dict(state, strict=False)
    expected = truth.denoise(prefix, canvas)
    effect = (expected - plain).abs().max()
    assert effect > 1
    assert (model.denoise(prefix, canvas) - expected).abs().max() < 1e-3 * effect
    merged = adapted.merge_and_unload()
    assert (merged.denoise(prefix, canvas) - expected).abs().max() < 1e-3 * effect
    assert merged.official_state_dict().keys() == state.keys()


@pytest.mark.parametrize("method", ["projector", "lora"])
def test_fine_tuning_and_reloading(build, tmp_path, questions, method):
    model = build()
    before = {name: value.clone() for name, value in model.official_state_dict().items()}
    samples = [
        Sample("a", questions[0].images, (Turn("<image>\nDescribe it.", "A cat"),)),
        Sample("c", (), (Turn("Hi", "Yes"),)),
    ]
    model = train(
        model, samples, TrainConfig(steps=2, learning_rate=1e-3, batch_size=2, method=method, lora_rank=2), tmp_path
    )
    after = model.official_state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.encoder.embed_vision.embedding_projection.weight" in changed
    assert not any("vision_tower" in name for name in changed)
    assert ("model.decoder.layers.0.self_attn.q_proj.weight" in changed) == (method == "lora")
    if method == "lora":
        # The adapter's file names shared modules once, by their places in the encoder.
        with pytest.warns(UserWarning, match="missing adapter keys"):
            adapted = PeftModel.from_pretrained(build(), str(tmp_path / "adapter")).merge_and_unload()
        for name, value in adapted.official_state_dict().items():
            assert torch.allclose(value, after[name], atol=1e-6), name
    again = load_official(tmp_path)
    assert again.end_token_ids == model.end_token_ids
    assert all(torch.equal(value, after[name]) for name, value in again.official_state_dict().items())
    assert again.decode_responses(again.encode_responses(["A cat"], CANVAS)) == ["A cat"]


def test_purification_answers_every_slot(build, tmp_path):
    rows = []
    (tmp_path / "images").mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (20, 12 + 10 * number, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "images" / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": "A cat"}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    model = build()
    settings = DecodeConfig(gen_length=CANVAS, **{**model.generation_defaults, "steps": 3})
    config = PurifyConfig(mode="all", mask_ratio=0.3, decode=settings, saliency=SaliencyConfig(probes=2), batch_size=2)
    purified = purify(model, load_dataset(tmp_path), config, tmp_path / "all")
    assert len(purified.rewritten) == 3
    config = PurifyConfig(mode="selective", candidates=3, decode=settings, saliency=SaliencyConfig(probes=2))
    selective = purify(model, load_dataset(tmp_path), config, tmp_path / "selective")
    assert all(np.isfinite(evidence.suspicion) for evidence in selective.evidence.values())


# --- loading -------------------------------------------------------------------------------------------------------


def test_weights_have_the_published_names(gemma, native):
    tied = native.all_tied_weights_keys
    expected = {name: value for name, value in native.state_dict().items() if name not in tied}
    ours = gemma.official_state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(value, ours[name]) for name, value in expected.items())
    assert not any(name.startswith("lm_head") for name in ours)
    scalars = "model.encoder.language_model.layers.0.layer_scalar", "model.decoder.layers.0.layer_scalar"
    assert not torch.equal(ours[scalars[0]], ours[scalars[1]])


def test_a_published_folder_loads(native, gemma, tmp_path, questions):
    """What the library itself writes holds nothing of ours."""
    native.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in (
        "visual_substitute",
        "noise_seed",
        "end_of_turn_token_id",
        "end_ids",
        "max_visual_tokens",
        "denoising_steps",
        "sampling",
    ):
        config.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(
        json.dumps(
            {
                "max_denoising_steps": 12,
                "t_min": 0.3,
                "sampler_config": {"entropy_bound": 0.2, "_cls_name": "EntropyBoundSamplerConfig"},
                "eos_token_id": [1, 2, 9],
            }
        )
    )
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"max_soft_tokens": 12}}))
    assert detect(config)
    assert not detect({"model_type": "llava_llada"})
    model = load_official(tmp_path, torch.bfloat16)
    model.tokenizer = gemma.tokenizer
    assert model.dtype == torch.bfloat16
    assert model.sampling == CanvasSampling(t_min=0.3, entropy_bound=0.2)
    assert model.generation_defaults == {"sampler": "canvas", "steps": 12}
    assert set(model.end_token_ids[1:-1]) == {1, 2, 9} - {model.end_token_ids[-1]}
    assert model.config.visual_substitute == "mean"
    logits = model.denoise(model.encode(questions), torch.full((3, CANVAS), model.mask_token_id))
    assert logits.dtype == torch.float32
    assert (logits - gemma.denoise(gemma.encode(questions), torch.full((3, CANVAS), gemma.mask_token_id))).std() < 1
    config["disp"] = {"visual_substitute": "zero", "gen_length": 4, "sampling": {"t_max": 0.5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    placed = load_official(tmp_path, device_map={"": "cpu"})
    assert (placed.gen_length, placed.config.visual_substitute, placed.sampling.t_max) == (4, "zero", 0.5)
    assert all(torch.equal(value, gemma.state_dict()[name]) for name, value in placed.state_dict().items())
    with pytest.raises(DispError, match="quantized"):
        load_official(tmp_path, quantization="4bit")
    assert DecodeConfig(gen_length=model.gen_length, **model.generation_defaults).steps == 12


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_is_merged_into_a_checkpoint_that_the_library_reads(build, tmp_path, questions):
    save_model(build(), tmp_path / "base")
    model = load_model(tmp_path / "base", gen_length=4, device="cpu")
    samples = [Sample("a", questions[0].images, (Turn("<image>\nDescribe it.", "cat"),))]
    trained = train(
        model,
        samples,
        TrainConfig(steps=1, learning_rate=1e-3, batch_size=1, method="lora", lora_rank=2),
        tmp_path / "run",
    )
    merge(tmp_path / "run" / "adapter", tmp_path / "merged")
    twin, report = DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values())
    again = load_model(tmp_path / "merged", device="cpu")
    assert isinstance(again, DiffusionGemma)
    for name, value in trained.official_state_dict().items():
        assert torch.allclose(twin.state_dict()[name], value, atol=1e-6), name
        assert torch.allclose(again.state_dict()[name], value, atol=1e-6), name
    assert load_model(tmp_path / "run", device="cpu").gen_length == 4


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_implementations_agree(build, gemma, questions, implementation, tmp_path):
    save_model(build(), tmp_path)
    model = load_model(tmp_path, device="cpu", attn_implementation=implementation)
    canvas = torch.cat([random_canvas(gemma, row) for row in range(3)])
    difference = model.denoise(model.encode(questions), canvas) - gemma.denoise(gemma.encode(questions), canvas)
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("change", ["missing", "surplus", "wrong shapes", "damaged"])
def test_weights_that_do_not_fit_are_named(gemma, tmp_path, change):
    gemma.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.decoder.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del weights[name]
    elif change == "surplus":
        name = "model.decoder.layers.1.mlp.side_proj.weight"
        weights[name] = torch.zeros(2)
    elif change == "wrong shapes":
        weights[name] = weights[name][:-1].clone()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    if change == "damaged":
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        name = ""
    with pytest.raises(DispError, match=f"{'readable' if change == 'damaged' else change}.*{name}"):
        load_official(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DispError, match=r"config\.json"):
        load_official(tmp_path / "nowhere")


# --- decoding ------------------------------------------------------------------------------------------------------


def test_accept_by_hand():
    entropies = torch.tensor([[0.5, 0.02, 0.0, 0.09, 0.07, 0.3], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    # 0, .02, .07 and .09 are kept: those before .09 sum to .09, those before .3 to .18.
    assert accept(entropies, 0.1).tolist() == [[False, True, True, True, True, False], [False] * 5 + [True]]


def test_draws_follow_the_probabilities():
    logits = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0)) * 2
    logits[..., [0, 4, 19]] = -torch.inf
    probabilities = logits.softmax(-1)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((2, 3)))
    uniforms[0, 0], uniforms[1, 2] = 0.0, 1 - 2**-53
    tokens = draw_tokens(probabilities, uniforms)
    for row in range(2):
        for slot in range(3):
            cumulative, total = 0.0, float(probabilities[row, slot].double().sum())
            for token in range(20):
                cumulative += float(probabilities[row, slot, token])
                if float(uniforms[row, slot]) * total < cumulative:
                    break
            assert tokens[row, slot] == token
    assert not torch.isin(tokens, torch.tensor([0, 4, 19])).any()


class _Ban(LogitsProcessor):
    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids, scores, cur_step):
        scores[..., self.token] = -torch.inf
        return scores


def library_decode(native, model, query, key, length, sampling, steps, monkeypatch):
    """The library's own ``generate``, with our random numbers in place of its own."""
    canvases = iter(range(0, 1000, CANVAS))
    state = {}

    def initial(self, batch_size, device):
        return torch.from_numpy(state["draw"].integers(0, model.vocab_size, CANVAS))[None]

    def multinomial(probabilities, num_samples):
        return draw_tokens(probabilities[None], torch.from_numpy(state["draw"].random(CANVAS))[None]).T

    prepare = native._prepare_denoiser_inputs

    def prepare_denoiser_inputs(**kwargs):
        state["draw"] = generator(3, "canvas", key, next(canvases))
        return prepare(**kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(native_generation.EntropyBoundSampler, "initialize_canvas", initial)
        patch.setattr(native_generation.torch, "multinomial", multinomial)
        patch.setattr(native, "_prepare_denoiser_inputs", prepare_denoiser_inputs)
        inputs = native_inputs(model, query)
        output = native.generate(
            **inputs,
            logits_processor=LogitsProcessorList([_Ban(model.mask_token_id)]),
            max_new_tokens=length,
            max_denoising_steps=steps,
            sampler_config=native_generation.EntropyBoundSamplerConfig(sampling.entropy_bound),
            t_min=sampling.t_min,
            t_max=sampling.t_max,
            stability_threshold=sampling.stability_threshold,
            confidence_threshold=sampling.confidence_threshold,
            eos_token_id=list(model.end_token_ids),
            pad_token_id=model.end_token_ids[-1],
            disable_compile=True,
        )
    ids = output.sequences[0, inputs["input_ids"].shape[1] :]
    passes = (ids != model.end_token_ids[-1]).sum() / output.tokens_per_forward[0]
    padded = torch.full((length,), model.end_token_ids[-1])
    padded[: len(ids)] = ids
    return padded, round(float(passes))


@pytest.mark.parametrize(
    ("sampling", "early", "apart"),
    [
        (CanvasSampling(), False, False),
        (CanvasSampling(t_min=0.05, t_max=0.3, entropy_bound=4.0, confidence_threshold=1.0), True, True),
        (CanvasSampling(0.02, 0.1, entropy_bound=4.0, confidence_threshold=1.0, stability_threshold=2), True, False),
    ],
)
def test_decoding_is_the_library_s(steady, steady_native, questions, sampling, early, apart, monkeypatch):
    """Two canvases of ten steps, with and without an early end; then all rows, which may end apart, at once."""
    steps, length = 10, 2 * CANVAS
    monkeypatch.setattr(steady, "sampling", sampling)
    config = DecodeConfig(sampler="canvas", gen_length=length, steps=steps)
    expected, counts = [], []
    for query in questions:
        ids, count = library_decode(steady_native, steady, query, query.key, length, sampling, steps, monkeypatch)
        ours = decode(steady, steady.encode([query]), config, keys=[query.key], seed=3)
        assert torch.equal(ours[0], ids)
        expected.append(ids)
        counts.append(count)
    assert (max(counts) < 2 * steps) == early
    assert (len(set(counts)) > 1) == apart
    batch = decode(steady, steady.encode(questions), config, keys=[query.key for query in questions], seed=3)
    assert torch.equal(batch, torch.stack(expected))


def test_every_slot_is_answered_with_masked_visual_tokens(gemma, questions):
    prefix = gemma.encode(questions)
    hidden = prefix.with_masked(prefix.visual_mask, gemma.mask_embedding)
    keys = [query.key for query in questions]
    for config in (
        DecodeConfig(sampler="canvas", gen_length=CANVAS, steps=4),
        DecodeConfig(gen_length=CANVAS, steps=3),
        DecodeConfig(gen_length=CANVAS, steps=3, prefix_cache=True),
    ):
        ids = decode(gemma, hidden, config, keys=keys)
        assert ids.shape == (3, CANVAS)
        assert (ids != gemma.mask_token_id).all()
    assert torch.equal(ids, decode(gemma, hidden, replace(config, prefix_cache=False)))


def test_what_follows_an_end_token_is_padding(build, questions):
    model = build()
    ids = None
    for seed in range(40):
        ids = decode_canvas(
            model,
            model.encode(questions),
            DecodeConfig(sampler="canvas", gen_length=8, steps=1),
            keys=["a", "b", "c"],
            seed=seed,
        )
        # Make a token that was predicted an end of turn, and decode again.
        token = int(ids[0, 1])
        if token not in ids[:, 0].tolist() and int(ids[0, 0]) not in model.end_token_ids:
            break
    model.end_token_ids = (token, model.end_token_ids[-1])
    again = decode_canvas(
        model,
        model.encode(questions),
        DecodeConfig(sampler="canvas", gen_length=8, steps=1),
        keys=["a", "b", "c"],
        seed=seed,
    )
    assert again[0].tolist() == [*ids[0, :2].tolist(), *[model.end_token_ids[-1]] * 6]


def test_options_of_other_samplers_are_errors(gemma, questions, tiny_model):
    prefix = gemma.encode(questions[:1])
    for options, word in (({"temperature": 1.0}, "temperature"), ({"block_length": CANVAS + 1}, "block_length")):
        config = DecodeConfig(**{"sampler": "canvas", "gen_length": CANVAS + 1, "steps": 2, **options})
        with pytest.raises(DispError, match=word):
            decode_canvas(gemma, prefix, config, keys=["a"])
    with pytest.raises(ValueError, match="keys"):
        decode_canvas(gemma, prefix, DecodeConfig(sampler="canvas"))
    with pytest.raises(DispError, match="LladaV"):
        decode_canvas(tiny_model, prefix, DecodeConfig(sampler="canvas"), keys=["a"])
