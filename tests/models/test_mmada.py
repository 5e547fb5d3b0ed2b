"""MMaDA against its recorded outputs, and in geometries that nobody recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families.mmada import compare, differing, published_sampler, slot0_gradient
from parity_folder import PARITY
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from disp.data.sample import Query, Sample, Turn
from disp.decoding.decode import DecodeConfig, decode
from disp.errors import DispError
from disp.models.loading import load_model, merge
from disp.models.mmada.model import MMada, MMadaConfig, detect, load_official
from disp.models.mmada.vq import VQEncoder, quantize, read_encoder, square_image
from disp.training.config import TrainConfig
from disp.training.train import train

recorded = pytest.mark.skipif(not (PARITY / "mmada").is_dir(), reason=f"no recorded outputs in {PARITY / 'mmada'}")

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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny checkpoint laid out like the published one: grouped-query heads, 4×4 image tokens of 8 codes."""
    folder = tmp_path_factory.mktemp("mmada")
    tokenizer = mmada_tokenizer()
    config = {
        "model_type": "mmada",
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "n_layers": 2,
        "mlp_hidden_size": 48,
        "vocab_size": len(tokenizer) + 20,
        "embedding_size": len(tokenizer) + 20,
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_theta": 500000.0,
        "weight_tying": False,
        "mask_token_id": 3,  # wrong on purpose: the tokenizer knows better
        "disp": {"gen_length": 16},
        "num_vq_tokens": 16,
        "codebook_size": 8,
    }
    torch.manual_seed(0)
    model = MMada(MMadaConfig.from_official(config, VISION))
    with torch.no_grad():
        for parameter in model.parameters():  # large: small ones predict the same nearly uniform distribution
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.2) + (parameter.ndim == 1))
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.official_state_dict(), folder / "model.safetensors")
    save_file(model.vq_state_dict(), folder / "vq.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mmada(checkpoint) -> MMada:
    """The tiny checkpoint, loaded; shared by all tests: do not change it."""
    return load_official(checkpoint)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """A landscape, a portrait and a square picture of noise."""
    draw = np.random.default_rng(0)
    sizes = ((9, 16), (21, 10), (8, 8))
    return [Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in sizes]


@pytest.fixture(scope="module")
def asked(pictures) -> list[Query]:
    """One picture, two pictures, no picture, and a second turn."""
    turn = Turn("<image>\nHi", "Yo")
    return [
        Query("a", 0, (pictures[0],), (), "<image>\nWhat?", "A cat"),
        Query("b", 0, tuple(pictures[1:]), (), "Is <image> like <image>?", "No"),
        Query("c", 0, (), (), "Say it", "It"),
        Query("d", 1, (pictures[1],), (turn,), "More", "Or less"),
    ]


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


@recorded
def test_every_recorded_quantity():
    differences = list(compare(PARITY / "mmada"))
    assert len(differences) >= 13
    assert [difference for difference in differences if not difference.ok] == []


@recorded
def test_published_names_come_back():
    weights = load_file(PARITY / "mmada" / "model.safetensors")
    model = load_official(PARITY / "mmada")
    assert model.official_state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.official_state_dict().items())
    tower = load_file(PARITY / "mmada" / "vq.safetensors")
    assert all(torch.equal(tensor, tower[name]) for name, tensor in model.vq_state_dict().items())
    assert model.vq_state_dict().keys() == tower.keys()


@recorded
def test_only_mmada_is_detected():
    found = {folder.name: detect(json.loads((folder / "config.json").read_text())) for folder in PARITY.iterdir()}
    assert [name for name, is_mmada in found.items() if is_mmada] == ["mmada"]


def test_prompt_token_by_token(mmada, asked):
    """Task token, images, chat; the ids of the reserved tokens and the first image token come from the tokenizer."""
    tokenizer = mmada.tokenizer
    inputs = mmada.prepare(asked)
    prefix = mmada.embed(**inputs)
    codes = mmada.image_features([image for query in asked for image in query.images])
    start = len(tokenizer)

    def chat(*contents: str) -> list[int]:
        roles = ["user", "assistant"] * 2
        text = "<|startoftext|>"
        for role, content in zip(roles, contents, strict=False):
            text += f"<|start_header_id|>{role}<|end_header_id|>\n{content}<|eot_id|>"
        return tokenizer(text + "<|start_header_id|>assistant<|end_header_id|>\n")["input_ids"]

    mmu, soi, eoi = (tokenizer.convert_tokens_to_ids(f"<|reserved_token_{number}|>") for number in (5, 0, 1))
    image = [[soi, *(start + code for code in row.tolist()), eoi] for row in codes]
    expected = [
        [mmu, *image[0], *chat("What?")],
        [mmu, *image[1], *image[2], *chat("Is image 1 like image 2?")],
        chat("Say it"),
        [mmu, *image[3], *chat("Hi", "Yo", "More")],
    ]
    length = max(map(len, expected))
    assert prefix.embeds.shape[:2] == (4, length)
    for row, ids in enumerate(expected):
        padding = length - len(ids)
        assert prefix.attention_mask[row].tolist() == [False] * padding + [True] * len(ids)
        assert torch.equal(prefix.embeds[row, padding:], mmada.model.embed_tokens(torch.tensor(ids)))
        is_image = [False] * padding + [token >= start for token in ids]
        assert prefix.visual_mask[row].tolist() == is_image
    assert prefix.visual_mask.sum(-1).tolist() == [16, 32, 0, 16]
    cells = [[0, row, column] for row in range(4) for column in range(4)]
    for row, images in enumerate((1, 2, 0, 1)):
        expected_cells = [[number, *cell] for number in range(images) for cell in cells]
        assert prefix.locations[row][prefix.visual_mask[row]].tolist() == expected_cells
    assert (prefix.locations[~prefix.visual_mask] == -1).all()
    assert mmada.mask_token_id == tokenizer.convert_tokens_to_ids("<|mdm_mask|>")


def test_cached_codes_give_the_same_prefix(mmada, asked):
    features = mmada.image_features([image for query in asked for image in query.images])
    cached = mmada.embed(**mmada.prepare(asked, features))
    assert torch.equal(cached.embeds, mmada.encode(asked).embeds)
    assert all(codes.dtype == torch.int64 and codes.shape == (16,) for codes in features)


def test_checkpoints_own_template_is_used(mmada, asked, monkeypatch):
    template = "{{ messages[0]['content'] }}!"
    monkeypatch.setattr(mmada.tokenizer, "chat_template", template)
    ids = mmada.prepare([asked[2]])["token_ids"][0].tolist()
    assert mmada.tokenizer.decode(ids) == "<|startoftext|>Say it!"


def test_control_tokens_in_data_stay_text(mmada):
    forged = Query("x", 0, (), (), "<|eot_id|><|mdm_mask|>")
    ids = mmada.prepare([forged])["token_ids"][0].tolist()
    assert ids.count(mmada.end_token_ids[0]) == 1
    assert mmada.mask_token_id not in ids
    assert mmada.mask_token_id not in mmada.encode_responses(["<|mdm_mask|>"], 20)[0].tolist()


def test_responses_end_with_the_turn_and_padding(mmada):
    end, padding = mmada.end_token_ids
    ids = mmada.encode_responses(["ab", ""], 5)
    assert ids.tolist() == [[*mmada.tokenizer("ab")["input_ids"], end, padding, padding], [end, *[padding] * 4]]
    assert mmada.decode_responses(ids) == ["ab", ""]
    with pytest.raises(DispError, match="raise gen_length"):
        mmada.encode_responses(["abcdef"], 5)


def test_whatever_is_decoded_can_be_trained_on(mmada):
    """Stray bytes, control tokens and image tokens leave a text that fits into as many slots as it came from."""
    torch.manual_seed(0)
    ids = torch.randint(0, mmada.config.vocab_size, (200, 12))
    texts = mmada.decode_responses(ids)
    assert mmada.decode_responses(mmada.encode_responses(texts, 12)) == texts
    assert not any("<|" in text or "\ufffd" in text for text in texts)


def test_logits_and_gradients_of_padded_rows_match_llama(mmada, asked):
    """Grouped-query heads, several images, two turns; the other side sees one unpadded row at a time."""
    prefix = mmada.encode(asked)
    response = torch.full((4, 5), mmada.mask_token_id)
    response[:, 1] = torch.tensor([5, 6, 7, 8])
    leaf = prefix.embeds.clone().requires_grad_()
    logits = mmada.denoise(replace(prefix, embeds=leaf), response)
    (gradient,) = torch.autograd.grad(logits[:, 0].log_softmax(-1).max(-1).values.sum(), leaf)
    other = llama(mmada)
    for row in range(4):
        alone = prefix.embeds[row][prefix.attention_mask[row]].clone().requires_grad_()
        x = torch.cat((alone, mmada.model.embed_tokens(response[row])))[None]
        everywhere = torch.ones((1, 1, x.shape[1], x.shape[1]), dtype=torch.bool)
        expected = other(inputs_embeds=x, attention_mask=everywhere).logits[:, -5:]
        torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-4, rtol=0)
        (expected_gradient,) = torch.autograd.grad(expected[0, 0].log_softmax(-1).max(), alone)
        torch.testing.assert_close(gradient[row][prefix.attention_mask[row]], expected_gradient, atol=1e-4, rtol=0)


def test_slot0_gradient_is_a_slope(mmada, asked):
    """The analytic gradient against finite differences in float64."""
    model = mmada.double()
    try:
        ids, visual = torch.randint(0, 250, (1, 12)), torch.zeros((1, 12), dtype=torch.bool)
        visual[:, 2:6] = True
        gradient = slot0_gradient(model, ids, visual, 3)
        prefix = model.embed_ids(ids, visual)
        response = torch.full((1, 3), model.mask_token_id)
        token = model.denoise(prefix, response)[0, 0].argmax()
        direction = torch.randn_like(gradient)
        step = torch.zeros_like(prefix.embeds)
        step[visual] = direction * 1e-5
        up, down = (
            model.denoise(replace(prefix, embeds=prefix.embeds + sign * step), response)[0, 0].log_softmax(-1)[token]
            for sign in (1, -1)
        )
        torch.testing.assert_close((up - down) / 2e-5, (gradient * direction).sum(), atol=1e-5, rtol=1e-5)
    finally:
        model.float()


def test_attention_bias_is_honoured_with_padding(mmada, asked):
    """A bias that hides the images from everyone equals a prompt whose images are padding."""
    prefix = mmada.encode(asked)
    response = torch.full((4, 3), mmada.mask_token_id)
    seen = torch.cat((~prefix.visual_mask, torch.ones((4, 3), dtype=torch.bool)), dim=1)
    bias = seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1)
    hidden = mmada.denoise(prefix, response, attention_bias=bias)
    other = llama(mmada)
    x = torch.cat((prefix.embeds, mmada.model.embed_tokens(response)), dim=1)
    keys = torch.cat((prefix.attention_mask, torch.ones((4, 3), dtype=torch.bool)), dim=1) & seen
    positions = (torch.cat((prefix.attention_mask, torch.ones((4, 3), dtype=torch.bool)), dim=1).cumsum(-1) - 1).clamp(
        0
    )
    expected = other(
        inputs_embeds=x,
        attention_mask=keys[:, None, None, :].expand(-1, 1, x.shape[1], -1),
        position_ids=positions,
    ).logits[:, -3:]
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=0)


def test_masked_images_never_become_candidates(mmada, asked):
    """All visual tokens masked: every slot is answered, row by row as in the batch; the published rule fails here."""
    prefix = mmada.encode(asked)
    masked = prefix.with_masked(prefix.visual_mask, mmada.mask_embedding)
    config = DecodeConfig(gen_length=8, steps=4, block_length=4)
    tokens = decode(mmada, masked, config)
    assert not (tokens == mmada.mask_token_id).any()
    for row in range(4):
        assert torch.equal(decode(mmada, masked.select(torch.tensor([row])), config)[0], tokens[row])
    ids, visual = torch.randint(0, 250, (1, 12)), torch.zeros((1, 12), dtype=torch.bool)
    visual[:, 2:8] = True
    settings = {"max_new_tokens": 8, "steps": 8, "block_length": 8}
    assert (published_sampler(mmada, ids, visual, settings) == mmada.mask_token_id).any()


def test_decoding_follows_the_published_rule_where_nothing_is_masked(mmada):
    for seed, (length, steps, block) in enumerate(((8, 8, 8), (8, 4, 4), (12, 5, 12), (12, 6, 4))):
        torch.manual_seed(seed)
        ids, nothing = torch.randint(0, 250, (2, 9)), torch.zeros((2, 9), dtype=torch.bool)
        config = DecodeConfig(gen_length=length, steps=steps, block_length=block, ban_mask=False)
        settings = {"max_new_tokens": length, "steps": steps, "block_length": block}
        expected = published_sampler(mmada, ids, nothing, settings)
        assert differing(decode(mmada, mmada.embed_ids(ids, nothing), config), expected[:, 9:]) == 0


def test_sequence_loss_row_by_row(mmada):
    """Answers of different lengths: each row's cross-entropies over p, over its own number of slots; then the mean."""
    torch.manual_seed(1)
    ids, uniforms, ratio = torch.randint(0, 250, (3, 14)), torch.rand(3, 14), torch.tensor([0.9, 0.3, 0.0])
    starts = (4, 9, 2)
    answer = torch.stack([torch.arange(14) >= start for start in starts])
    uniforms[2, 5] = 0.0005  # below the floor, the only masked token of its row
    expected = 0.0
    other = llama(mmada)
    with torch.no_grad():
        for row, start in enumerate(starts):
            p = 0.999 * float(ratio[row]) + 0.001
            noisy = ids[row].clone()
            masked = [j for j in range(start, 14) if float(uniforms[row, j]) < p]
            noisy[masked] = mmada.mask_token_id
            logits = other(noisy[None], attention_mask=torch.ones((1, 1, 14, 14), dtype=torch.bool)).logits[0]
            for j in masked:
                expected += float(F.cross_entropy(logits[j], ids[row, j])) / p / (14 - start) / 3
    loss = mmada.sequence_loss(ids, answer, ratio, uniforms).detach()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # One answer length: the query's loss is the same number.
    prefix = mmada.embed_ids(ids[:, :4], torch.zeros((3, 4), dtype=torch.bool))
    whole = mmada.sequence_loss(ids, torch.arange(14).expand(3, 14) >= 4, ratio, uniforms)
    torch.testing.assert_close(mmada.noisy_loss(prefix, ids[:, 4:], ratio, uniforms[:, 4:]), whole)


def reference_encoder(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The tokenizer's encoder as one function over its weights, attention written out."""

    def conv(x, name, **options):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def norm(x, name):
        groups = x.reshape(len(x), 32, -1)
        groups = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        shape = (1, -1, 1, 1)
        return groups.reshape(x.shape) * weights[f"{name}.weight"].view(shape) + weights[f"{name}.bias"].view(shape)

    def swish(x):
        return x * x.sigmoid()

    def residual(x, name):
        h = conv(swish(norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        h = conv(swish(norm(h, f"{name}.norm2")), f"{name}.conv2", padding=1)
        return h + (conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in weights else x)

    def attention(x, name):
        h = norm(x, f"{name}.norm")
        query, key, value = (conv(h, f"{name}.{part}").flatten(2) for part in "qkv")
        shares = torch.einsum("bci,bcj->bij", query, key).div(x.shape[1] ** 0.5).softmax(-1)
        return x + conv(torch.einsum("bij,bcj->bci", shares, value).reshape(x.shape), f"{name}.proj_out")

    x = conv(x, "conv_in", padding=1)
    level = 0
    while f"down.{level}.block.0.conv1.weight" in weights:
        block = 0
        while f"down.{level}.block.{block}.conv1.weight" in weights:
            x = residual(x, f"down.{level}.block.{block}")
            if f"down.{level}.attn.{block}.q.weight" in weights:
                x = attention(x, f"down.{level}.attn.{block}")
            block += 1
        if f"down.{level}.downsample.conv.weight" in weights:
            x = conv(F.pad(x, (0, 1, 0, 1)), f"down.{level}.downsample.conv", stride=2)
        level += 1
    x = residual(attention(residual(x, "mid.block_1"), "mid.attn_1"), "mid.block_2")
    return conv(conv(swish(norm(x, "norm_out")), "conv_out", padding=1), "quant_conv")


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (20, 12)])
def test_encoder_against_its_definition(mmada, checkpoint, size):
    """Widths that change, attention in a level, pictures that are not square."""
    pixels = torch.rand(2, 3, *size) * 2 - 1
    latents = mmada.vision_tower(pixels)
    expected = reference_encoder(read_encoder(checkpoint / "vq.safetensors"), pixels)
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)
    codes = quantize(latents)
    for image in range(2):
        for row, column in ((0, 0), (1, 2), (size[0] // 2 - 1, size[1] // 2 - 1)):
            bits = "".join("1" if number > 0 else "0" for number in latents[image, :, row, column].tolist())
            assert int(codes[image, row, column]) == int(bits, 2)


def test_published_tokenizer_size():
    """The published sizes are the defaults: 55.4 million parameters, 1024 codes for 512×512 pixels."""
    with torch.device("meta"):
        encoder = VQEncoder()
        assert encoder(torch.empty(1, 3, 512, 512)).shape == (1, 13, 32, 32)
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 1) == 55.4


def test_published_model_size():
    """LLaDA's 8,015,581,184 parameters and two rows, in and out, for each code."""
    with torch.device("meta"):
        model = MMada(MMadaConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_015_581_184 + 2 * 8192 * 4096


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    # The long side is rounded down, the corner of the middle square half to even, as torchvision does.
    [((300, 200), (48, 32), (8, 0)), ((200, 330), (32, 52), (0, 10)), ((201, 100), (64, 32), (16, 0)),
     ((105, 100), (33, 32), (0, 0)), ((110, 100), (35, 32), (2, 0)), ((32, 32), (32, 32), (0, 0)),
     ((20, 10), (64, 32), (16, 0))],
)  # fmt: skip
def test_short_side_and_middle(size, resized, corner):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    whole = np.asarray(picture.resize(resized, Image.Resampling.BICUBIC))
    left, top = corner
    assert (square_image(picture, 32) == whole[top : top + 32, left : left + 32].transpose(2, 0, 1)).all()
    squashed = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (square_image(picture, 32, squash=True) == squashed).all()


def test_codes_do_not_depend_on_the_batch(mmada, pictures):
    together = mmada.codes(mmada.pixels(pictures))
    alone = [mmada.codes(mmada.pixels([picture]))[0] for picture in pictures]
    assert torch.equal(together, torch.stack(alone))


def test_surplus_placeholders(mmada, pictures):
    with pytest.raises(DispError, match=r"'x': 2 <image> placeholders for 1 images"):
        mmada.prepare([Query("x", 0, (pictures[0],), (), "<image><image>")])


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


def test_missing_and_surplus_weights_are_named(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.transformer.blocks.7.q_proj.weight"] = weights.pop("model.transformer.ln_f.weight")
    with pytest.raises(DispError, match=r"model\.norm\.weight.*blocks\.7\.q_proj"):
        load_official(copied(checkpoint, tmp_path, model=weights))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weight_tying", True, "weight_tying is True"),
        ("block_type", "sequential", "sequential"),
        ("n_layers", None, "n_layers"),
    ],
)
def test_other_architectures_are_refused(checkpoint, tmp_path, field, value, message):
    config = json.loads((checkpoint / "config.json").read_text())
    config = {**config, field: value} if value is not None else {k: v for k, v in config.items() if k != field}
    with pytest.raises(DispError, match=message):
        load_official(copied(checkpoint, tmp_path, config=config))


def test_without_image_tokenizer_only_text_is_answered(checkpoint, tmp_path, asked, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = load_official(copied(checkpoint, tmp_path, vq=None))
    assert model.encode([asked[2]]).embeds.shape[1] > 0
    with pytest.raises(DispError, match=r"without its image tokenizer.*vq\.safetensors"):
        model.encode([asked[0]])


def test_image_tokenizer_given_by_path(checkpoint, tmp_path, asked, mmada):
    elsewhere = tmp_path / "tokenizer"
    elsewhere.mkdir()
    # Under the name and with the parts that the published folder has.
    weights = load_file(checkpoint / "vq.safetensors")
    weights |= {"decoder.conv_in.weight": torch.zeros(1), "quantize.embedding": torch.zeros(8, 3)}
    save_file(weights, elsewhere / "pytorch_model.safetensors")
    model = load_official(copied(checkpoint, tmp_path, vq=None), vq=elsewhere)
    assert torch.equal(model.encode(asked).embeds, mmada.encode(asked).embeds)


@pytest.mark.parametrize("damage", ["other", "hole", "shape", "text", "empty"])
def test_damaged_image_tokenizer(checkpoint, tmp_path, damage):
    weights = load_file(checkpoint / "vq.safetensors")
    path = tmp_path / "bad" / "vq.safetensors"
    path.parent.mkdir()
    if damage == "other":
        save_file({"conv.weight": torch.zeros(1)}, path)
    elif damage == "hole":
        del weights["encoder.norm_out.bias"]
        save_file(weights, path)
    elif damage == "shape":
        weights["encoder.norm_out.bias"] = torch.zeros(3)
        save_file(weights, path)
    elif damage == "text":
        path.write_text("not safetensors at all")
    with pytest.raises(DispError, match="bad"):
        load_official(checkpoint, vq=path if damage != "empty" else path.parent)


def test_half_precision_spares_the_image_tokenizer(checkpoint, asked, mmada):
    model = load_official(checkpoint, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert {tensor.dtype for name, tensor in model.state_dict().items() if "vision_tower" in name} == {torch.float32}
    images = [image for query in asked for image in query.images]
    assert torch.equal(torch.stack(model.image_features(images)), torch.stack(mmada.image_features(images)))
    prefix = model.encode(asked)
    assert prefix.embeds.dtype == torch.bfloat16
    assert model.denoise(prefix, torch.full((4, 3), model.mask_token_id)).isfinite().all()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_steps(checkpoint, tmp_path, pictures, method):
    """Loss is finite, the language model learns, the image tokenizer does not change."""
    model = load_official(checkpoint)
    model.gen_length = 8
    samples = [Sample("a", (pictures[0],), (Turn("<image>\nWhat?", "cat"),)), Sample("b", (), (Turn("Who?", "dog"),))]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainConfig(steps=3, batch_size=2, learning_rate=1e-2, method=method, gradient_checkpointing=True)
    trained = train(model, samples, config, tmp_path / "out")
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all(tensor.isfinite().all() for tensor in trained.state_dict().values())
    assert not any(name.startswith("vision_tower.") for name in changed)
    assert {f"{name}.weight" for name in model.lora_modules()} <= changed
    assert ("model.embed_tokens.weight" in changed) == (method == "full")


def test_gradient_checkpointing_changes_nothing(checkpoint, asked):
    model = load_official(checkpoint).train()
    clean = model.encode_responses([query.response for query in asked], 8)
    ratio, uniforms = torch.rand(4), torch.rand(4, 8)
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(clean=clean, ratio=ratio, uniforms=uniforms, **model.prepare(asked)).backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_settings_are_valid(mmada):
    for settings in MMada.generation_presets.values():
        DecodeConfig(**settings)
    assert (mmada.gen_length, mmada.generation_defaults) == (16, {"steps": 8, "block_length": 4})
    assert MMadaConfig().gen_length == 512


@pytest.mark.parametrize("length", [1, 2, 12, 64, 512])
def test_defaults_follow_the_length(checkpoint, length):
    model = load_model(checkpoint, gen_length=length)
    DecodeConfig(gen_length=model.gen_length, **model.generation_defaults)


def test_saved_and_loaded_again(checkpoint, tmp_path, pictures, asked):
    """Adapters trained, merged into a checkpoint under the published names, answered the same from there."""
    model = load_model(checkpoint, gen_length=8)
    samples = [Sample("a", (pictures[0],), (Turn("<image>\nWhat?", "cat"),))]
    trained = train(
        model, samples, TrainConfig(steps=2, learning_rate=1e-3, batch_size=1, method="lora"), tmp_path / "run"
    )
    merge(tmp_path / "run" / "adapter", tmp_path / "merged", base=checkpoint)
    prefix = trained.encode(asked)
    response = torch.full((4, 3), trained.mask_token_id)
    for folder in (tmp_path / "run", tmp_path / "merged"):
        weights = load_file(folder / "model.safetensors")
        assert weights.keys() == load_file(checkpoint / "model.safetensors").keys()
        again = load_model(folder)
        torch.testing.assert_close(again.denoise(again.encode(asked), response), trained.denoise(prefix, response))


def test_own_section_of_the_config(checkpoint, tmp_path, pictures):
    """Pictures squashed to the square, and a token id that is not the tokenizer's."""
    config = json.loads((checkpoint / "config.json").read_text())
    config["disp"] = {"squash": True, "token_ids": {"eot": 7}}
    model = load_official(copied(checkpoint, tmp_path, config=config))
    squashed = np.asarray(pictures[0].resize((8, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (model.pixels(pictures[:1])[0].numpy() == squashed).all()
    assert model.end_token_ids[0] == 7


def test_tokenizer_of_another_model(checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    small = {**config, "vocab_size": len(mmada_tokenizer()) + 7, "embedding_size": len(mmada_tokenizer()) + 7}
    with pytest.raises(DispError, match="do not fit into"):
        load_official(copied(checkpoint, tmp_path, config=small))
