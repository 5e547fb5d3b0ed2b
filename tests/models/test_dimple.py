"""Dimple against what its published code computed, and against transformers' own Qwen2.5-VL on other geometries."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families.dimple import compare
from parity_folder import PARITY as ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel, Qwen2_5_VLTextModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from disp.data.sample import Query, Sample, Turn
from disp.decoding.decode import DecodeConfig, decode
from disp.errors import DispError
from disp.models.dimple.config import processing_of
from disp.models.dimple.images import lay_out
from disp.models.dimple.model import Dimple, DimpleConfig, detect, load_official
from disp.models.dimple.padding import padded_lengths
from disp.models.dimple.tokenizer import CHAT_TEMPLATE, load_tokenizer
from disp.models.loading import load_model, merge
from disp.training.config import TrainConfig
from disp.training.train import train

PARITY = ROOT / "dimple"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason=f"no recorded outputs in {PARITY}")
CONTROL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|mask|>"]
TINY = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "mrope_section": [1, 2, 1],
    "rope_theta": 500.0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "vision_config": {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 20,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
}


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer):
    """The tests' tokenizer with Qwen's control tokens and template."""
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.__class__.from_str(tokenizer.backend_tokenizer.to_str()),
        eos_token=CONTROL[1],
        pad_token=tokenizer.pad_token,
        chat_template=CHAT_TEMPLATE,
    )
    own.add_special_tokens({"additional_special_tokens": CONTROL})
    return own


@pytest.fixture(scope="module")
def make_dimple(chat_tokenizer):
    def build(seed: int = 0, **overrides) -> Dimple:
        ids = chat_tokenizer.convert_tokens_to_ids
        official = {
            **TINY,
            "vocab_size": len(chat_tokenizer),
            "mask_token_id": ids("<|mask|>"),
            "image_token_id": ids("<|image_pad|>"),
            "vision_start_token_id": ids("<|vision_start|>"),
            "vision_end_token_id": ids("<|vision_end|>"),
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": chat_tokenizer.pad_token_id,
            # Large weights: with ordinary ones every distribution is nearly uniform.
            "initializer_range": 0.25,
            **overrides,
        }
        torch.manual_seed(seed)
        model = Dimple(DimpleConfig.from_official(official))
        model.tokenizer = chat_tokenizer
        model.official_config = official
        # The library initialises its own tower with small weights.
        for parameter in model.visual.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.3)
        return model.eval()

    return build


@pytest.fixture(scope="module")
def model(make_dimple):
    """Shared by all tests: do not change it."""
    return make_dimple()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def dialogues():
    """Landscape, none, portrait, and two pictures over two turns."""
    turns = (Turn("<image>\nIs there a boat?", "Yes, above the tree."),)
    return [
        Query("a", 0, (photo(112, 56),), (), "<image>\nDescribe the picture."),
        Query("b", 0, (), (), "What is a cat?", system="Answer briefly."),
        Query("c", 0, (photo(60, 200, 1),), (), "What is to the left of the cat?"),
        Query("d", 1, (photo(56, 84, 2), photo(140, 28, 3)), turns, "And in <image>, which has the apple?"),
    ]


@needs_parity
def test_what_the_published_code_computed():
    differences = list(compare(PARITY))
    assert len(differences) >= 16
    assert not [difference for difference in differences if not difference.ok]


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (57, 400), (1500, 1100), (28, 28), (30, 31), (333, 333)], ids=str
)
@pytest.mark.parametrize("limits", [(56 * 56, 28 * 28 * 1280), (56 * 56, 336 * 336), (200 * 200, 300 * 300)], ids=str)
def test_pixels_are_those_of_the_library(make_dimple, size, limits):
    model = make_dimple()
    model.config.processing |= {"min_pixels": limits[0], "max_pixels": limits[1]}
    patches, (rows, columns) = model.patches(photo(*size))
    library = Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1])(photo(*size), return_tensors="pt")
    assert library["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    assert model.pixel_values(torch.from_numpy(patches)).equal(library["pixel_values"])


def test_known_token_counts(make_dimple):
    model = make_dimple()
    assert model.patches(photo(640, 480))[1] == (17, 23)
    model.config.processing["max_pixels"] = 336 * 336
    assert model.patches(photo(640, 480))[1] == (10, 13)
    assert model.patches(photo(480, 640))[1] == (13, 10)


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (28, 20_000)], ids=str)
def test_pictures_that_the_resizing_rule_does_not_take(model, size):
    patches, (rows, columns) = model.patches(photo(*size))
    assert len(patches) == 4 * rows * columns > 0


def test_an_image_alone_or_among_others_is_the_same_to_the_tower(model, dialogues):
    sources = [source for query in dialogues for source in query.images]
    alone = torch.cat([tensor.flatten(0, 1) for tensor in model.image_features(sources)])
    inputs = model.prepare(dialogues)
    together = model.vision_features(model.pixel_values(inputs["patches"]), inputs["grids"])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


# --- layout -----------------------------------------------------------------------------------------------------------


def qwen_of(model: Dimple) -> tuple[Qwen2_5_VLConfig, Qwen2_5_VLTextModel]:
    """The library's language model with the weights of ours."""
    config = model.config
    text = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": 4096,
        "use_sliding_window": False,
        "pad_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "mrope_section": config.mrope_section,
        },
    }
    whole = Qwen2_5_VLConfig(text_config=text, vision_config=config.vision, image_token_id=config.image_token_id)
    language = Qwen2_5_VLTextModel(whole.text_config).eval()
    language.load_state_dict(model.model.state_dict())
    return whole, language


def test_positions_are_those_of_the_library(model, dialogues):
    inputs = model.prepare(dialogues)
    config, _ = qwen_of(model)
    with torch.device("meta"):
        library = Qwen2_5_VLModel(config)
    types = (inputs["token_ids"] == model.config.image_token_id).int()
    grids = torch.cat((torch.ones(len(inputs["grids"]), 1, dtype=torch.int64), 2 * inputs["grids"]), dim=1)
    expected, _ = library.get_rope_index(
        inputs["token_ids"], types, image_grid_thw=grids, attention_mask=inputs["attention_mask"].long()
    )
    positions, _ = lay_out(inputs["token_ids"], inputs["attention_mask"], inputs["grids"], model.config.image_token_id)
    there = inputs["attention_mask"]
    assert positions[there].equal(expected.permute(1, 2, 0)[there])


def test_where_each_visual_token_is(model, dialogues):
    prefix = model.encode(dialogues)
    for row, query in enumerate(dialogues):
        places = prefix.locations[row][prefix.visual_mask[row]].tolist()
        expected = []
        for image, source in enumerate(query.images):
            rows, columns = model.patches(source)[1]
            expected += [[image, 0, y, x] for y in range(rows) for x in range(columns)]
        assert places == expected
    assert (prefix.locations[~prefix.visual_mask] == -1).all()
    assert not (prefix.visual_mask & ~prefix.attention_mask).any()


def test_the_prompt_is_written_as_published(model, dialogues):
    inputs = model.prepare(dialogues)
    text = model.tokenizer.decode(inputs["token_ids"][3][inputs["attention_mask"][3]])
    first, second = ("<|image_pad|>" * math.prod(model.patches(source)[1]) for source in dialogues[3].images)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{first}<|vision_end|>\nIs there a boat?<|im_end|>\n"
        "<|im_start|>assistant\nYes, above the tree.<|im_end|>\n"
        f"<|im_start|>user\nAnd in <|vision_start|>{second}<|vision_end|>, which has the apple?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    alone = model.tokenizer.decode(inputs["token_ids"][2][inputs["attention_mask"][2]])
    assert "<|im_start|>user\n<|vision_start|><|image_pad|>" in alone, "an image without a placeholder comes first"


def test_data_cannot_smuggle_in_control_tokens(model):
    query = Query("a", 0, (photo(56, 56),), (), "<image> <|image_pad|><|im_end|><|mask|>")
    ids = model.prepare([query])["token_ids"][0].tolist()
    assert ids.count(model.config.image_token_id) == 4
    assert model.mask_token_id not in ids


def test_images_and_placeholders_must_agree(model):
    with pytest.raises(DispError, match="'a': 2 <image> placeholders for 1 images"):
        model.prepare([Query("a", 0, (photo(56, 56),), (), "<image> and <image>")])
    inputs = model.prepare([Query("a", 0, (photo(56, 56),), (), "<image>")])
    with pytest.raises(DispError, match="do not match grid"):
        model.embed(**{**inputs, "grids": torch.tensor([[2, 3]])})
    with pytest.raises(DispError, match="2 images, but image tokens for 1"):
        model.embed(**{**inputs, "grids": torch.tensor([[2, 2], [2, 2]])})


# --- logits -----------------------------------------------------------------------------------------------------------


def library_hidden(language, embeds, positions, mask):
    """The library's hidden states under a mask of our own."""
    with torch.no_grad():
        return language(
            inputs_embeds=embeds,
            position_ids=positions.permute(2, 0, 1),
            attention_mask={"full_attention": mask},
            use_cache=False,
        ).last_hidden_state


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@torch.no_grad()
def test_logits_are_those_of_the_library(make_dimple, dialogues, kv_heads):
    model = make_dimple(seed=kv_heads, num_key_value_heads=kv_heads)
    _, language = qwen_of(model)
    prefix = model.encode(dialogues)
    response = torch.randint(5, 100, (4, 7), generator=torch.Generator().manual_seed(1))
    response[:, 2:5] = model.mask_token_id
    # The published mask: real tokens see real tokens, padding sees itself.
    there = torch.cat((prefix.attention_mask, torch.ones_like(response, dtype=torch.bool)), dim=1)
    mask = (there[:, None, :, None] & there[:, None, None, :]) | torch.eye(there.shape[1], dtype=torch.bool)
    embeds = torch.cat((prefix.embeds, model.model.embed_tokens(response)), dim=1)
    ids = torch.cat((model.prepare(dialogues)["token_ids"], response), dim=1)
    positions, _ = lay_out(ids, there, model.prepare(dialogues)["grids"], model.config.image_token_id)
    expected = model.lm_head(library_hidden(language, embeds, positions, mask))[:, prefix.embeds.shape[1] - 1 : -1]
    torch.testing.assert_close(model.denoise(prefix, response), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rows_do_not_depend_on_the_batch(model, dialogues):
    response = torch.full((4, 5), model.mask_token_id)
    together = model.denoise(model.encode(dialogues), response)
    for row, query in enumerate(dialogues):
        alone = model.denoise(model.encode([query]), response[:1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_features_stand_in_for_pixels(model, dialogues):
    features = model.image_features([source for query in dialogues for source in query.images])
    assert [tensor.shape[:2] for tensor in features] == [model.patches(s)[1] for q in dialogues for s in q.images]
    cached, direct = model.embed(**model.prepare(dialogues, features)), model.encode(dialogues)
    torch.testing.assert_close(cached.embeds, direct.embeds, atol=1e-5, rtol=1e-5)
    assert cached.extras["positions"].equal(direct.extras["positions"])


@torch.no_grad()
def test_the_cache_against_one_pass_under_a_mask(model, dialogues):
    """Prompt keys and values that have seen an answer of all masks, and an answer that sees them and itself."""
    prefix = model.encode(dialogues)
    _, language = qwen_of(model)
    count, length = prefix.embeds.shape[1], 6
    response = torch.randint(5, 100, (4, length), generator=torch.Generator().manual_seed(2))
    cache = model.cache_prefix(prefix)
    cached = model.denoise(prefix, response, cache)
    blank = torch.full_like(response, model.mask_token_id)
    embeds, positions = model._joined(prefix, blank)
    tail, tail_positions = model._joined(prefix, response)
    embeds = torch.cat((embeds, tail[:, count - 1 :]), dim=1)
    positions = torch.cat((positions, tail_positions[:, count - 1 :]), dim=1)
    total = count + length
    mask = torch.zeros(4, 1, embeds.shape[1], embeds.shape[1], dtype=torch.bool)
    mask[:, :, :total, :total] = True
    mask[:, :, total:, : count - 1] = True
    mask[:, :, total:, total:] = True
    mask[..., :count] &= prefix.attention_mask[:, None, None, :]
    mask |= torch.eye(embeds.shape[1], dtype=torch.bool)
    expected = model.lm_head(library_hidden(language, embeds, positions, mask))[:, total:-1]
    torch.testing.assert_close(cached, expected, atol=1e-4, rtol=1e-4)
    # Filled, it serves any response, and any of its rows.
    torch.testing.assert_close(model.denoise(prefix, response, cache), expected, atol=1e-4, rtol=1e-4)
    rows = torch.tensor([3, 1])
    some = model.denoise(prefix.select(rows), response[rows], cache.select(rows))
    torch.testing.assert_close(some, expected[rows], atol=1e-4, rtol=1e-4)
    # With nothing filled in yet it changes nothing; for another length it is made anew.
    torch.testing.assert_close(
        model.denoise(prefix, blank, model.cache_prefix(prefix)), model.denoise(prefix, blank), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        model.denoise(prefix, blank[:, :3], cache), model.denoise(prefix, blank[:, :3]), atol=1e-5, rtol=1e-5
    )


def test_gradients_of_the_first_slot(make_dimple, dialogues):
    """Against a difference quotient."""
    model = make_dimple().double()
    prefix = model.encode(dialogues[:1])
    response = torch.full((1, 3), model.mask_token_id)

    def score(embeds):
        return model.denoise(replace(prefix, embeds=embeds), response)[0, 0].log_softmax(-1)[7]

    embeds = prefix.embeds.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(embeds), embeds)
    direction = torch.randn(embeds.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = direction * prefix.visual_mask[..., None] * 1e-5
    with torch.no_grad():
        quotient = (score(prefix.embeds + direction) - score(prefix.embeds - direction)) / 2
    torch.testing.assert_close((gradient * direction).sum(), quotient, rtol=1e-5, atol=0)
    assert (gradient[prefix.visual_mask].abs().sum(-1) > 0).all()


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [False, True])
def test_masked_visual_tokens_are_never_candidates(model, dialogues, cache):
    prefix = model.encode(dialogues)
    prefix = prefix.with_masked(prefix.visual_mask, model.mask_embedding)
    for config in (
        DecodeConfig(6, 6, sampler="dim", algorithm="maskgit_plus", prefix_cache=cache),
        DecodeConfig(6, 3, sampler="dream", algorithm="entropy", top_k=50, prefix_cache=cache),
    ):
        ids = decode(model, prefix, config)
        assert ids.shape == (4, 6) and not (ids == model.mask_token_id).any()
        for row in range(4):
            alone = decode(model, prefix.select(torch.tensor([row])), config)
            assert alone.equal(ids[row : row + 1])


def test_published_settings_are_valid(model, dialogues):
    for name, settings in {**model.generation_presets, "": model.generation_defaults}.items():
        config = DecodeConfig(**{**settings, "gen_length": 4, "steps": 4})
        ids = decode(model, model.encode(dialogues[:2]), config, keys=["a", "b"])
        assert not (ids == model.mask_token_id).any(), name


def test_answers_end_with_padding(model):
    ids = model.encode_responses(["A red apple.", ""], 12)
    assert ids[0, -1] == model.end_token_ids[-1] and (ids[1] == model.end_token_ids[-1]).all()
    assert model.end_token_ids[0] not in ids, "the published data has no end of turn"
    assert model.decode_responses(ids) == ["A red apple.", ""]
    ids[0, 2] = model.end_token_ids[0]
    assert model.decode_responses(ids)[0] == model.tokenizer.decode(ids[0, :2])
    exact = int((ids[0] != model.end_token_ids[-1]).sum())
    assert model.decode_responses(model.encode_responses(["A red apple."], exact)) == ["A red apple."]
    with pytest.raises(DispError, match="raise gen_length"):
        model.encode_responses(["A red apple."], exact - 1)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 63])
def test_padding_is_as_long_as_published(count):
    most = 2 ** math.ceil(math.log2(count + 1)) if count < 16 else (count // 16 + 1) * 16
    clean = torch.full((200, 80), 2)
    clean[:, :count] = 7
    draws = (torch.arange(200) + 0.5) / 200
    lengths = padded_lengths(clean, 2, draws).tolist()
    assert set(lengths) == set(range(count + 1, most + 1))
    full = torch.full((1, count + 1), 7)
    assert padded_lengths(full, 2, torch.tensor([0.5])).tolist() == [count + 1]


@torch.no_grad()
def test_loss_against_loops(model, dialogues):
    prefix, length = model.encode(dialogues), 12
    random = torch.Generator().manual_seed(3)
    clean = torch.randint(5, 100, (4, length), generator=random)
    padding = model.end_token_ids[-1]
    for row, count in enumerate((2, 5, 0, 12)):
        clean[row, count:] = padding
    ratio, uniforms = torch.tensor([0.3, 0.6, 0.9, 0.5]), torch.rand(4, length, generator=random)
    uniforms[:, -1] = torch.tensor([0.0, 0.99, 0.2, 0.4])
    losses = []
    for row, (answer, at_most) in enumerate(((2, 4), (5, 8), (0, 1), (12, 12))):
        there = min(answer + 1 + int(uniforms[row, -1] * (at_most - answer)), 12)
        masked = uniforms[row, :there] < 0.001 + 0.999 * ratio[row]
        noisy = torch.where(masked, model.mask_token_id, clean[row, :there])[None]
        logits = model.denoise(prefix.select(torch.tensor([row])), noisy)[0]
        losses += [F.cross_entropy(logits[slot], clean[row, slot]) for slot in masked.nonzero()[:, 0].tolist()]
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(model.noisy_loss(prefix, clean, ratio, uniforms), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_loss_of_whole_sequences_is_that_of_the_response(model, dialogues):
    inputs = model.prepare(dialogues)
    prefix, length = model.embed(**inputs), 6
    clean = torch.randint(5, 100, (4, length), generator=torch.Generator().manual_seed(4))
    ratio, uniforms = torch.full((4,), 0.6), torch.rand(4, length, generator=torch.Generator().manual_seed(5))
    ids = torch.cat((inputs["token_ids"], clean), dim=1)
    there = torch.cat((inputs["attention_mask"], torch.ones_like(clean, dtype=torch.bool)), dim=1)
    whole = model.embed(ids, there, inputs["grids"], inputs["patches"])
    answers = torch.arange(ids.shape[1]).expand_as(ids) >= inputs["token_ids"].shape[1]
    draws = torch.cat((torch.zeros(inputs["token_ids"].shape), uniforms), dim=1)
    # No padding in the answers, so every slot is there.
    expected = model.noisy_loss(prefix, clean, ratio, uniforms)
    torch.testing.assert_close(model.sequence_loss(whole, ids, answers, ratio, draws), expected, atol=1e-5, rtol=1e-5)


def test_nothing_masked_is_no_loss_and_no_gradient(make_dimple, dialogues):
    model = make_dimple()
    inputs = model.prepare(dialogues[:1])
    clean, uniforms = torch.full((1, 4), 7), torch.full((1, 4), 0.9)
    loss = model(clean, torch.tensor([0.5]), uniforms, **inputs)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    model(clean, torch.tensor([0.95]), uniforms, **inputs).backward()
    assert model.img_projector.linear_1.weight.grad.any()


def test_parts_are_found_by_name(model):
    names = [name for name, _ in model.named_parameters()]
    vision = [name for name in names if any(part in name for part in model.vision_names)]
    projector = [name for name in names if any(part in name for part in model.projector_names)]
    assert len(vision) == len(list(model.visual.parameters())) and len(projector) == 4
    assert len(model.lora_modules()) == 7 * model.config.num_hidden_layers
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in model.lora_modules())


# --- checkpoints ------------------------------------------------------------------------------------------------------


def write(model: Dimple, folder: Path) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.official_state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**model.official_config, "model_type": "dimple"}))
    return weights


@torch.no_grad()
def test_a_checkpoint_is_read_as_it_was_written(model, dialogues, tmp_path):
    write(model, tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"min_pixels": 3136, "max_pixels": 12544, "patch_size": 14, "merge_size": 2})
    )
    read = load_official(tmp_path)
    assert read.config.processing["max_pixels"] == 12544
    read.config.processing["max_pixels"] = model.config.processing["max_pixels"]
    response = torch.full((4, 4), model.mask_token_id)
    logits = read.denoise(read.encode(dialogues), response)
    assert logits.equal(model.denoise(model.encode(dialogues), response))
    half = load_official(tmp_path, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.visual.dtype == torch.bfloat16
    # Rotary frequencies stay exact.
    assert half.visual.rotary_pos_emb.inv_freq.equal(model.visual.rotary_pos_emb.inv_freq)
    assert half.denoise(half.encode(dialogues), response).isfinite().all()


@pytest.mark.parametrize("method", ["projector", "lora"])
def test_a_fine_tuned_checkpoint_keeps_the_published_names(model, dialogues, tmp_path, method):
    weights = write(model, tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    samples = [Sample(str(n), (photo(56, 84, n),), (Turn("<image>\nA cat?", "Yes."),)) for n in range(3)]
    config = TrainConfig(steps=2, batch_size=2, learning_rate=0.01, method=method, merge=False)
    train(load_model(tmp_path / "base", device="cpu", gen_length=8), samples, config, tmp_path / "tuned")
    tuned = tmp_path / "tuned" / "adapter" if method == "lora" else tmp_path / "tuned"
    merge(tuned, tmp_path / "merged")
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert written.keys() == weights.keys()
    changed = {name for name in weights if not written[name].equal(weights[name])}
    assert all(name.startswith(("img_projector.", "model.layers.")) for name in changed)
    assert any(name.startswith("img_projector.") for name in changed)
    assert any(name.startswith("model.layers.") for name in changed) == (method == "lora")
    again = load_model(tmp_path / "merged", device="cpu")
    assert all(again.state_dict()[name].equal(written[name]) for name in weights)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "dimple"


def test_keys_that_do_not_fit_are_listed(model, tmp_path):
    weights = write(model, tmp_path)
    del weights["img_projector.linear_1.bias"]
    save_file({**weights, "video_projector.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(DispError, match=r"img_projector\.linear_1\.bias(.|\n)*video_projector\.weight"):
        load_official(tmp_path)


def test_a_config_that_is_no_dimple_is_refused(model):
    with pytest.raises(DispError, match="mrope_section"):
        DimpleConfig.from_official({**model.official_config, "mrope_section": [1, 2, 3]})
    with pytest.raises(DispError, match="use_sliding_window"):
        DimpleConfig.from_official({**model.official_config, "use_sliding_window": True})
    with pytest.raises(DispError, match="no field 'hidden_size'"):
        DimpleConfig.from_official({name: value for name, value in TINY.items() if name != "hidden_size"})
    with pytest.raises(DispError, match="merge_size"):
        processing_of({"merge_size": 4}, model.config.vision)


def test_sections_may_stand_in_the_rope_settings(model):
    config = {name: value for name, value in model.official_config.items() if name != "mrope_section"}
    config["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 1, 1]}
    assert DimpleConfig.from_official(config).mrope_section == [2, 1, 1]


def test_detection(model):
    assert detect({"model_type": "dimple"}) and detect(model.official_config)
    for other in ({"model_type": "qwen2_5_vl", **model.official_config}, {"model_type": "llava_dream"}, {}):
        assert not detect(other)


def test_the_published_tokenizer_needs_no_code_of_its_own(tmp_path):
    """Files as published: vocabulary, merges and a tokenizer class that only the checkpoint's own code has."""
    letters = [chr(number) for number in range(33, 127)] + ["Ġ", "Ċ"]
    vocabulary = {token: index for index, token in enumerate([*letters, "ca", "cat"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t\n", encoding="utf-8")
    added = {str(len(vocabulary) + index): {"content": token, "special": True} for index, token in enumerate(CONTROL)}
    settings = {
        "tokenizer_class": "DimpleTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dimple.DimpleTokenizer", None]},
        "added_tokens_decoder": added,
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer("<|im_start|>cat 12", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", "cat", "Ġ", "1", "2"]
    assert tokenizer.convert_tokens_to_ids("<|mask|>") == len(vocabulary) + CONTROL.index("<|mask|>")
    assert "helpful assistant" in tokenizer.apply_chat_template([{"role": "user", "content": "cat"}], tokenize=False)
    assert load_tokenizer(tmp_path / "nowhere") is None


@needs_parity
def test_every_recorded_quantity_is_compared(tmp_path):
    for path in PARITY.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "io.safetensors").unlink()
    save_file({**load_file(PARITY / "io.safetensors"), "something_new": torch.zeros(1)}, tmp_path / "io.safetensors")
    assert [d.quantity for d in compare(tmp_path) if not d.ok] == ["something_new (no comparison for it)"]
