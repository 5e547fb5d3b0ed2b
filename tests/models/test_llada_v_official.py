"""LLaDA-V against its recorded outputs, and in geometries that nobody recorded."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from families import Difference
from parity_folder import PARITY as ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast, SiglipVisionConfig, SiglipVisionModel

from disp.data.sample import Query, Sample, Turn
from disp.decoding.decode import DecodeConfig, decode, decode_with_lengths, generate
from disp.errors import DispError
from disp.models.checkpoint import read_weights, write_official
from disp.models.llada_v.model import SPECIAL_TOKENS, SYSTEM, detect, load_official, turns_of
from disp.models.loading import family_of, load_model, merge, save_model
from disp.training.config import TrainConfig
from disp.training.train import train

PARITY = ROOT / "llada_v"

TILE, GRID, WIDTH, TOWER = 56, 4, 32, 16
VISION = {"hidden_size": TOWER, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": TILE, "patch_size": 14}  # fmt: skip
TEXTS = ["Describe the picture.", "Which of them has the apple?", "a red apple is to the left of a cat", "And now?"]


# --- a checkpoint in the published layout -----------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, _ in SPECIAL_TOKENS.values()]
    tokenizer.train_from_iterator(
        [*TEXTS, "assistant user system " * 20],
        trainers.BpeTrainer(vocab_size=330, special_tokens=special,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def random_weights(vocabulary: int, heads: int, kv_heads: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Under the published names, written out by hand."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=source) * 0.25

    head = WIDTH // heads
    weights = {"model.embed_tokens.weight": draw(vocabulary, WIDTH), "lm_head.weight": draw(vocabulary, WIDTH),
               "model.norm.weight": 1 + draw(WIDTH), "model.image_newline": draw(WIDTH),
               "model.mm_projector.0.weight": draw(WIDTH, TOWER), "model.mm_projector.0.bias": draw(WIDTH),
               "model.mm_projector.2.weight": draw(WIDTH, WIDTH), "model.mm_projector.2.bias": draw(WIDTH)}  # fmt: skip
    for layer in range(2):
        name = f"model.layers.{layer}"
        shapes = {"self_attn.q_proj": (heads * head, WIDTH), "self_attn.k_proj": (kv_heads * head, WIDTH),
                  "self_attn.v_proj": (kv_heads * head, WIDTH), "self_attn.o_proj": (WIDTH, heads * head),
                  "mlp.gate_proj": (48, WIDTH), "mlp.up_proj": (48, WIDTH), "mlp.down_proj": (WIDTH, 48)}  # fmt: skip
        weights |= {f"{name}.{part}.weight": draw(*shape) for part, shape in shapes.items()}
        weights |= {
            f"{name}.{norm}.weight": 1 + draw(WIDTH) for norm in ("input_layernorm", "post_attention_layernorm")
        }
    tower = "model.vision_tower.vision_tower.vision_model"
    weights |= {f"{tower}.embeddings.patch_embedding.weight": draw(TOWER, 3, 14, 14),
                f"{tower}.embeddings.patch_embedding.bias": draw(TOWER),
                f"{tower}.embeddings.position_embedding.weight": draw(GRID**2, TOWER),
                f"{tower}.post_layernorm.weight": draw(TOWER), f"{tower}.post_layernorm.bias": draw(TOWER)}  # fmt: skip
    for layer in range(2):
        name = f"{tower}.encoder.layers.{layer}"
        linear = {f"self_attn.{part}": (TOWER, TOWER) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linear |= {"mlp.fc1": (24, TOWER), "mlp.fc2": (TOWER, 24)}
        for part, shape in linear.items():
            weights |= {f"{name}.{part}.weight": draw(*shape), f"{name}.{part}.bias": draw(shape[0])}
        for part in ("layer_norm1", "layer_norm2"):
            weights |= {f"{name}.{part}.weight": 1 + draw(TOWER), f"{name}.{part}.bias": draw(TOWER)}
    return weights


def write_checkpoint(folder: Path, *, kv_heads: int = 2, cap: int | None = 4) -> Path:
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    config = {
        "model_type": "llava_llada", "mm_vision_tower": "somewhere/siglip2", "mm_projector_type": "mlp2x_gelu",
        "vocab_size": len(tokenizer) + 3, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": kv_heads, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
        "bos_token_id": 128000, "image_aspect_ratio": f"anyres_max_{cap}" if cap else "anyres",
        "image_grid_pinpoints": [[i * TILE, j * TILE] for i in range(1, 5) for j in range(1, 5)],
        "disp": {"gen_length": 12},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vision_config.json").write_text(json.dumps(VISION))
    save_file(random_weights(config["vocab_size"], 4, kv_heads), folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("llada-v") / "checkpoint")


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint)


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- an independent model: transformers' own classes, and tiling with loops -------------------------------------------


class Reference:
    """Float64, one row at a time."""

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
        self.weights = weights
        self.llama = LlamaModel(
            LlamaConfig(
                vocab_size=self.config["vocab_size"], hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=self.config["num_key_value_heads"], rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, attn_implementation="eager",
            )
        ).double().eval()  # fmt: skip
        language = ("embed_tokens", "layers", "norm")
        self.llama.load_state_dict(
            {name[6:]: weights[name] for name in weights if name[6:].split(".")[0] in language and name[:6] == "model."}
        )
        self.tower = SiglipVisionModel(
            SiglipVisionConfig(**{**VISION, "num_hidden_layers": 2}, vision_use_head=False)
        ).double().eval()  # fmt: skip
        prefix = "model.vision_tower.vision_tower.vision_model."
        self.tower.load_state_dict({n[len(prefix) :]: t for n, t in weights.items() if n.startswith(prefix)})

    def projected(self, picture: Image.Image) -> torch.Tensor:
        """``[16, d]`` of one tile."""
        pixels = torch.from_numpy(np.asarray(picture).astype(np.float64) / 255 * 2 - 1).permute(2, 0, 1)
        features = self.tower(pixels[None], output_hidden_states=True).hidden_states[-1][0]
        w = self.weights
        hidden = F.gelu(features @ w["model.mm_projector.0.weight"].T + w["model.mm_projector.0.bias"])
        return hidden @ w["model.mm_projector.2.weight"].T + w["model.mm_projector.2.bias"]

    def tiled(self, picture: Image.Image) -> tuple[list[torch.Tensor], list[tuple[int, int, int] | None]]:
        """Tokens of a picture on its own and their (tile, row, column), None at newlines."""
        width, height = picture.size
        best, best_merit = None, None
        for w, h in self.config["image_grid_pinpoints"]:
            scale = min(w / width, h / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            if best_merit is None or (kept, -(w * h - kept)) > best_merit:
                best, best_merit = (w, h), (kept, -(w * h - kept))
        w, h = best
        if w / width < h / height:
            new = (w, min(math.ceil(height * w / width), h))
        else:
            new = (min(math.ceil(width * h / height), w), h)
        canvas = Image.new("RGB", (w, h), (0, 0, 0))
        canvas.paste(picture.resize(new, Image.Resampling.BICUBIC), ((w - new[0]) // 2, (h - new[1]) // 2))
        base = self.projected(picture.resize((TILE, TILE), Image.Resampling.BICUBIC))
        tokens = list(base)
        places: list = [(0, index // GRID, index % GRID) for index in range(GRID**2)]
        rows: list[list[torch.Tensor]] = [[] for _ in range(h // TILE * GRID)]
        for down in range(h // TILE):
            for across in range(w // TILE):
                box = (across * TILE, down * TILE, (across + 1) * TILE, (down + 1) * TILE)
                tile = self.projected(canvas.crop(box))
                for index, token in enumerate(tile):
                    rows[down * GRID + index // GRID].append(token)
        if width / height > w / h:
            pad = (len(rows) - int(height * (len(rows[0]) / width))) // 2
            rows = rows[pad : len(rows) - pad]
        else:
            pad = (len(rows[0]) - int(width * (len(rows) / height))) // 2
            rows = [row[pad : len(row) - pad] for row in rows]
        if "max" in self.config["image_aspect_ratio"]:
            k = math.sqrt(len(rows) * len(rows[0]) / (int(self.config["image_aspect_ratio"][11:]) * GRID**2))
            if k > 1.1:
                rows = bilinear(rows, int(len(rows) // k), int(len(rows[0]) // k))
        for r, row in enumerate(rows):
            tokens += [*row, self.weights["model.image_newline"]]
            places += [*((1, r, c) for c in range(len(row))), None]
        return tokens, places

    def padded(self, picture: Image.Image) -> tuple[list[torch.Tensor], list[tuple[int, int, int] | None]]:
        """Tokens of one picture of several."""
        side = max(picture.size)
        square = Image.new("RGB", (side, side), (127, 127, 127))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        tokens = self.projected(square.resize((TILE, TILE), Image.Resampling.BICUBIC))
        places = [(0, index // GRID, index % GRID) for index in range(GRID**2)]
        return [*tokens, self.weights["model.image_newline"]], [*places, None]

    def splice(self, ids: list[int], pictures: list[Image.Image]):
        """Embeddings ``[P, d]`` and the (image, tile, row, column) of each, None where no visual token stands."""
        tokens, places, count = [], [], 0
        for token in ids:
            if token != -200:
                tokens.append(self.weights["model.embed_tokens.weight"][token])
                places.append(None)
                continue
            new, where = (self.tiled if len(pictures) == 1 else self.padded)(pictures[count])
            tokens += new
            places += [None if place is None else (count, *place) for place in where]
            count += 1
        return torch.stack(tokens), places

    def logits(self, embeds: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        length = len(embeds)
        seen = torch.ones(length, length, dtype=torch.bool) if mask is None else mask
        bias = torch.zeros(1, 1, length, length, dtype=torch.float64).masked_fill(~seen, -torch.inf)
        hidden = self.llama(inputs_embeds=embeds[None], attention_mask=bias, use_cache=False).last_hidden_state[0]
        return hidden @ self.weights["lm_head.weight"].T

    def embed(self, ids: list[int]) -> torch.Tensor:
        return self.weights["model.embed_tokens.weight"][torch.tensor(ids)]


def bilinear(rows: list[list[torch.Tensor]], height: int, width: int) -> list[list[torch.Tensor]]:
    """Interpolation with half-pixel centres, a pixel at a time."""

    def around(index: int, new: int, old: int) -> tuple[int, int, float]:
        place = max((index + 0.5) * old / new - 0.5, 0)
        low = min(int(place), old - 1)
        return low, min(low + 1, old - 1), place - low

    out = []
    for r in range(height):
        top, bottom, down = around(r, height, len(rows))
        row = []
        for c in range(width):
            left, right, across = around(c, width, len(rows[0]))
            upper = rows[top][left] * (1 - across) + rows[top][right] * across
            lower = rows[bottom][left] * (1 - across) + rows[bottom][right] * across
            row.append(upper * (1 - down) + lower * down)
        out.append(row)
    return out


# --- recorded outputs -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"no recorded outputs in {PARITY}")
def test_recorded_outputs(capsys):
    assert parity.main([str(PARITY)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 30 and all(line.startswith("ok") for line in lines[:-1])
    assert lines[-1] == "llada_v: llada_v, 29 quantities, all within tolerance"


def test_the_command_fails_on_a_difference_and_on_an_unknown_folder(checkpoint, tmp_path, capsys, monkeypatch):
    assert parity.main([str(checkpoint)]) == 2  # nothing recorded
    assert "no meta.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert parity.main([str(tmp_path)]) == 2
    assert "unknown model type" in capsys.readouterr().err
    assert parity.main([]) == 2
    for value, status in ((0.5, 0), (1.5, 1), (math.nan, 1)):
        module = type("module", (), {"__name__": "families.x", "compare": lambda _, v=value: [Difference("q", v, 1)]})
        monkeypatch.setattr(parity, "comparison", lambda folder, module=module: module)
        assert parity.main(["somewhere"]) == status


# --- geometries that nobody recorded ----------------------------------------------------------------------------------

SIZES = {
    "landscape": (100, 60),
    "portrait": (60, 100),
    "one tile": (50, 40),
    "square": (112, 112),
    "above the cap, landscape": (224, 130),
    "above the cap, portrait": (120, 224),
    "narrow": (20, 160),
    "much larger than the grid": (500, 480),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("kv_heads", "cap"), [(2, 4), (4, None), (1, 2)])
@torch.no_grad()
def test_logits_and_places_of_one_picture(tmp_path, size, kv_heads, cap):
    folder = write_checkpoint(tmp_path / "checkpoint", kv_heads=kv_heads, cap=cap)
    model, reference = load_official(folder).double(), Reference(folder)
    ids, picture = [5, 17, 80, -200, 30, 31, 12], noise_picture(*size)
    expected, places = reference.splice(ids, [picture])
    prefix = model.splice(torch.tensor(ids), [picture])
    assert prefix.embeds.shape[1] == len(expected)
    torch.testing.assert_close(prefix.embeds[0], expected, atol=1e-5, rtol=0)
    assert prefix.visual_mask[0].tolist() == [place is not None for place in places]
    assert prefix.locations[0].tolist() == [[-1] * 4 if place is None else list(place) for place in places]
    response = [model.mask_token_id] * 3 + [40, model.mask_token_id]
    logits = reference.logits(torch.cat((expected, reference.embed(response))))[-5:]
    torch.testing.assert_close(model.denoise(prefix, torch.tensor([response]))[0], logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_several_pictures(model, checkpoint):
    reference, pictures = Reference(checkpoint), [noise_picture(90, 40, 1), noise_picture(30, 50, 2)]
    ids = [5, -200, 17, -200, 30]
    expected, places = reference.splice(ids, pictures)
    prefix = model.splice(torch.tensor(ids), pictures)
    torch.testing.assert_close(prefix.embeds[0].double(), expected, atol=1e-4, rtol=0)
    assert prefix.locations[0].tolist() == [[-1] * 4 if place is None else list(place) for place in places]
    with pytest.raises(DispError, match=r"2 image placeholders .* for 1 images"):
        model.splice(torch.tensor(ids), pictures[:1])


def test_gradients_reach_the_tokens_of_every_tile(model, checkpoint):
    reference, picture = Reference(checkpoint), noise_picture(100, 60)
    embeds = reference.splice([5, -200, 17], [picture])[0].detach().requires_grad_()
    response = reference.embed([model.mask_token_id] * 4)
    log_p = reference.logits(torch.cat((embeds, response)))[-4].log_softmax(-1)
    token = int(log_p.argmax())
    (expected,) = torch.autograd.grad(log_p[token], embeds)
    with torch.no_grad():
        prefix = model.splice(torch.tensor([5, -200, 17]), [picture])
    ours = prefix.embeds.requires_grad_()
    masks = torch.full((1, 4), model.mask_token_id)
    (gradient,) = torch.autograd.grad(model.denoise(prefix, masks)[0, 0].log_softmax(-1)[token], ours)
    torch.testing.assert_close(gradient[0].double(), expected, atol=1e-4, rtol=0)
    assert (gradient[0].abs().sum(-1) > 0).all()


# --- prompts ----------------------------------------------------------------------------------------------------------


def prompt_text(model, query: Query) -> str:
    ids = model.prepare([query])["token_ids"][0].tolist()
    return "".join("<image>" if token < -1 else model.tokenizer.decode([token]) for token in ids if token != -1)


def test_prompt(model):
    def turn(role: str, text: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"

    query = Query("a", 0, (noise_picture(60, 60),), (), "Which of them? <image>")
    ending = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    # The only picture is moved to the front, as in training.
    expected = "<|startoftext|>" + turn("system", SYSTEM) + turn("user", "<image>\nWhich of them?") + ending
    assert prompt_text(model, query) == expected
    two = Query("b", 1, (noise_picture(9, 9), noise_picture(8, 8)), (Turn("A <image> or <image>?", "Yes."),), "And?",
                system="Be brief.")  # fmt: skip
    assert prompt_text(model, two) == (
        "<|startoftext|>" + turn("system", "Be brief.") + turn("user", "A <image> or <image>?")
        + turn("assistant", "Yes.") + turn("user", "And?") + ending
    )  # fmt: skip


@pytest.fixture(scope="module")
def queries() -> list[Query]:
    pictures = [noise_picture(*size, seed) for seed, size in enumerate([(100, 60), (60, 100), (30, 40), (90, 50)])]
    return [
        Query("a", 0, (pictures[0],), (), "<image>\nDescribe the picture.", "a red apple"),
        Query("b", 0, (), (), "Which of them?", "a cat is to the left"),
        Query("c", 1, (pictures[1],), (Turn("<image>\nAnd now?", "a cat"),), "Describe the picture.", "the apple"),
        Query("d", 0, (pictures[2], pictures[3]), (), "<image> or <image>?", "apple"),
    ]


@torch.no_grad()
def test_a_padded_batch_is_its_rows(model, queries):
    response = torch.full((len(queries), 5), model.mask_token_id)
    together = model.encode(queries)
    logits = model.denoise(together, response)
    for row, query in enumerate(queries):
        alone = model.encode([query])
        valid = together.attention_mask[row]
        assert int(valid.sum()) == alone.embeds.shape[1]
        torch.testing.assert_close(together.embeds[row][valid], alone.embeds[0], atol=1e-5, rtol=0)
        assert torch.equal(together.locations[row][valid], alone.locations[0])
        assert torch.equal(together.visual_mask[row][valid], alone.visual_mask[0])
        assert not together.visual_mask[row][~valid].any() and (together.locations[row][~valid] == -1).all()
        torch.testing.assert_close(logits[row], model.denoise(alone, response[:1])[0], atol=1e-3, rtol=0)


@torch.no_grad()
def test_features_stand_in_for_pictures(model, queries, tmp_path):
    features = [tensor for query in queries for tensor in model.image_features(query.images)]
    assert [len(each) for each in features] == [5, 5, 1, 1]
    inputs = model.prepare(queries, features)
    assert set(inputs) == {"token_ids", "sizes", "features"}
    torch.testing.assert_close(model.embed(**inputs).embeds, model.encode(queries).embeds, atol=1e-5, rtol=0)
    # Of a file only the header is read.
    queries[0].images[0].save(tmp_path / "a.png")
    inputs = model.prepare([replace(queries[0], images=(tmp_path / "a.png",))], features[:1])
    assert inputs["sizes"].tolist() == [[100, 60]]
    (tmp_path / "b.png").write_bytes(b"none")
    with pytest.raises(DispError, match="cannot be read as an image"):
        model.prepare([replace(queries[0], images=(tmp_path / "b.png",))], features[:1])


# --- decoding ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_masked_visual_tokens_are_no_candidates(model, queries):
    for query in (queries[0], queries[3]):
        prefix = model.encode([query])
        hidden = prefix.with_masked(prefix.visual_mask, model.mask_embedding)
        before, seen, denoise = hidden.embeds.clone(), [], type(model).denoise

        def spy(given, response, cache=None, seen=seen, denoise=denoise):
            seen.append(int((response == model.mask_token_id).sum()))
            return denoise(model, given, response)

        model.denoise = spy
        ids = decode(model, hidden, DecodeConfig(8, 4))
        del model.denoise
        assert seen == [8, 6, 4, 2] and all(a > b for a, b in pairwise(seen))
        assert not (ids == model.mask_token_id).any() and torch.equal(hidden.embeds, before)
        assert not set(ids[0].tolist()) & set(model.banned_token_ids)


def test_answers_stop_at_the_end_of_turn(model, queries):
    settings = {"gen_length": model.gen_length, **model.generation_defaults}
    assert settings["gen_length"] == settings["steps"] == 12
    eot = model.end_token_ids[0]
    assert settings["stop"] == ((eot,),)
    denoise = type(model).denoise

    def favour_end(given, response, cache=None):
        logits = denoise(model, given, response)
        logits[:, 3, eot] += 1000
        return logits

    model.denoise = favour_end
    decoded = decode_with_lengths(model, model.encode(queries[:2]), DecodeConfig(**settings))
    texts = generate(model, queries[:2], DecodeConfig(**settings))
    del model.denoise
    assert decoded.lengths.tolist() == [3, 3]
    assert (decoded.ids[:, 3] == eot).all() and (decoded.ids[:, 4:] == model.end_token_ids[1]).all()
    assert texts == [model.tokenizer.decode(row[:3]) for row in decoded.ids]


def test_presets_are_decoding_settings(model):
    for preset in model.generation_presets.values():
        DecodeConfig(**{"gen_length": model.gen_length, **model.generation_defaults, **preset})


# --- training ---------------------------------------------------------------------------------------------------------


def conversation(model, roles: list[str], source: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
    """Ids, published labels and turns of messages with random contents; an image in each user's."""
    ids_of = model.config.token_ids
    start, end, eot = ids_of["start_header"], ids_of["end_header"], ids_of["eot"]
    ids, labels, turns = [ids_of["bos"]], [ids_of["bos"]], [0]
    turn, answered = 0, False
    for role in roles:
        content = source.integers(60, 200, int(source.integers(2, 5))).tolist()
        if role == "user":
            turn, answered = (turn + 1, False) if answered else (turn, False)
            content = [-200, *content]
        answered |= role == "assistant"
        body = [start, {"system": 50, "user": 51, "assistant": 52}[role], end, 55, *content, eot]
        keep = set() if role != "assistant" else set(range(len(body)))
        ids += body
        labels += [token if index in keep or token in (start, end, eot) else -100 for index, token in enumerate(body)]
        turns += [turn] * len(body)
    return ids, labels, turns


@pytest.mark.parametrize("roles", [
    ["system", "user", "assistant"],
    ["user", "assistant", "user", "assistant"],
    ["system", "user", "assistant", "user", "user", "assistant", "assistant", "user", "assistant", "user"],
])  # fmt: skip
@pytest.mark.parametrize("with_turns", [False, True])
def test_sequence_loss(model, checkpoint, roles, with_turns):
    reference, source = Reference(checkpoint), np.random.default_rng(3)
    ids, labels, turns = conversation(model, roles, source)
    pictures = [noise_picture(40 + 20 * index, 60, index) for index in range(ids.count(-200))]
    with torch.no_grad():
        prefix = model.splice(torch.tensor(ids), pictures)
        embeds, _ = reference.splice(ids, pictures)
    # Labels and turns of the spliced sequence.
    long_labels, long_turns = [], []
    per_image = (len(embeds) - len(ids)) // len(pictures) + 1
    for token, label, turn in zip(ids, labels, turns, strict=True):
        count = per_image if token == -200 else 1
        long_labels += [-100 if token == -200 else label] * count
        long_turns += [turn] * count
    t, uniforms = 0.6, source.random(len(embeds))
    p = 0.999 * t + 0.001
    noisy, masked = embeds.clone(), []
    for place, label in enumerate(long_labels):
        if label != -100 and uniforms[place] < p:
            noisy[place] = reference.embed([model.mask_token_id])[0]
            masked.append(place)
    seen = torch.tensor([[b <= a for b in long_turns] for a in long_turns]) if with_turns else None
    log_p = reference.logits(noisy, seen).log_softmax(-1)
    total = sum(-float(log_p.detach()[place, long_labels[place]]) / p for place in masked)
    expected = total / sum(label != -100 for label in long_labels)
    label_row = torch.tensor([long_labels])
    assert turns_of(label_row, model.config.token_ids["start_header"])[0].tolist() == long_turns
    loss = model.sequence_loss(
        prefix.embeds, label_row, torch.tensor([t]), torch.tensor(uniforms)[None], conversation_mask=with_turns
    )
    assert masked and loss.item() == pytest.approx(expected, abs=1e-4)


def test_loss_of_responses(model, checkpoint, queries):
    """Against one row at a time without any padding; the response alone is supervised."""
    reference, source = Reference(checkpoint), np.random.default_rng(5)
    clean = model.encode_responses([query.response for query in queries], 12)
    ratio, uniforms = torch.tensor([0.9, 0.5, 0.7, 1.0]), torch.tensor(source.random((4, 12)), dtype=torch.float32)
    with torch.no_grad():
        loss = model(clean, ratio, uniforms, **model.prepare(queries))
    total = 0.0
    for row, query in enumerate(queries):
        answer = [*model.tokenizer(query.response)["input_ids"], model.end_token_ids[0]]
        p = 0.999 * float(ratio[row]) + 0.001
        masked = [index for index in range(len(answer)) if float(uniforms[row, index]) < p]
        noisy = [model.mask_token_id if index in masked else token for index, token in enumerate(answer)]
        embeds = torch.cat((model.encode([query]).embeds[0].double(), reference.embed(noisy)))
        log_p = reference.logits(embeds)[-len(answer) :].log_softmax(-1)
        total += sum(-float(log_p.detach()[index, answer[index]]) / p for index in masked) / len(answer)
    assert loss.item() == pytest.approx(total / 4, abs=1e-4)


@pytest.fixture(scope="module")
def samples(queries):
    return [Sample(f"s{index}", query.images, (*query.history, Turn(query.prompt, query.response)))
            for index, query in enumerate(queries)]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"method": "projector"},
        {"method": "full", "gradient_checkpointing": True},
        {"method": "full", "train_vision": True},
    ],
)
def test_training_and_reloading(checkpoint, samples, queries, tmp_path, options):
    config = TrainConfig(steps=3, batch_size=3, learning_rate=5e-3, warmup_steps=1, **options)
    trained = train(load_model(checkpoint), samples, config, tmp_path / "trained")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "trained" / "model.safetensors")
    assert before.keys() == after.keys()  # unused weights too
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all("mm_projector" in name for name in changed) == (options["method"] == "projector") and changed
    assert ("model.image_newline" in changed) == (options["method"] == "full")
    assert any("vision_tower" in name for name in changed) == options.get("train_vision", False)
    again = load_model(tmp_path / "trained")
    response = torch.full((len(queries), 4), trained.mask_token_id)
    with torch.no_grad():
        expected = trained.denoise(trained.encode(queries), response)
        torch.testing.assert_close(again.denoise(again.encode(queries), response), expected, atol=1e-5, rtol=0)


def test_adapters_are_merged_under_the_published_names(checkpoint, samples, queries, tmp_path, monkeypatch):
    config = TrainConfig(steps=3, batch_size=3, learning_rate=5e-3, warmup_steps=1, method="lora", merge=False)
    monkeypatch.chdir(checkpoint.parent)
    tuned = train(load_model(checkpoint.name), samples, config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)  # the adapter knows its base by a path that holds anywhere
    assert not (tmp_path / "run" / "model.safetensors").exists()
    merge(tmp_path / "run" / "adapter", tmp_path / "merged")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"model.layers.1.mlp.up_proj.weight", "model.mm_projector.0.weight"} <= changed
    assert "model.embed_tokens.weight" not in changed
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == json.loads(
        (checkpoint / "config.json").read_text()
    )
    merged, response = load_model(tmp_path / "merged"), torch.full((len(queries), 4), tuned.mask_token_id)
    with torch.no_grad():
        expected = tuned.denoise(tuned.encode(queries), response)
        torch.testing.assert_close(merged.denoise(merged.encode(queries), response), expected, atol=1e-4, rtol=0)
    # The base may have moved.
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text(
        (tmp_path / "run" / "adapter" / "adapter_config.json").read_text().replace(str(checkpoint), "/nowhere/at/all")
    )
    with pytest.raises(DispError, match="/nowhere/at/all"):
        merge(tmp_path / "run" / "adapter", tmp_path / "again")
    merge(tmp_path / "run" / "adapter", tmp_path / "again", base=checkpoint)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], after[name]) for name in after)
    with pytest.raises(DispError, match="another folder"):
        merge(tmp_path / "merged", tmp_path / "merged")
    with pytest.raises(DispError, match="no adapter"):
        merge(tmp_path / "merged", tmp_path / "more", base=checkpoint)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_detection(checkpoint):
    assert family_of(checkpoint) == "llada_v"
    config = json.loads((checkpoint / "config.json").read_text())
    assert detect(config)
    lavida = {**{key: config[key] for key in ("model_type", "mm_vision_tower")}, "d_model": 4096, "n_layers": 32}
    assert not detect(lavida) and not detect({"model_type": "llama", "hidden_size": 1, "num_hidden_layers": 1})


def test_special_tokens_come_from_the_tokenizer(model):
    known = model.tokenizer.get_vocab()
    assert model.config.token_ids == {name: known[token] for name, (token, _) in SPECIAL_TOKENS.items()}
    assert model.mask_token_id == known["<|mdm_mask|>"]
    assert model.banned_token_ids == tuple(
        known[token] for token in ("<|endoftext|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>")
    )


def test_a_sharded_checkpoint_is_the_same_model(model, checkpoint, tmp_path):
    write_official(model, tmp_path / "sharded", checkpoint, max_shard_size="40KB")
    files = sorted(path.name for path in (tmp_path / "sharded").glob("model*"))
    assert len(files) > 3 and "model.safetensors.index.json" in files and "model.safetensors" not in files
    whole = load_file(checkpoint / "model.safetensors")
    parts = dict(read_weights(tmp_path / "sharded"))
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)
    loaded = load_model(tmp_path / "sharded")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    (tmp_path / "sharded" / files[1]).unlink()
    with pytest.raises(DispError, match=f"1 of {len(files) - 1} weight files .* are missing .{files[1]}"):
        load_model(tmp_path / "sharded")


def test_files_are_kept_and_old_shards_are_not(model, checkpoint, tmp_path):
    write_official(model, tmp_path / "out", checkpoint, max_shard_size="40KB")
    save_model(model, tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").glob("model*"))] == ["model.safetensors"]
    for name in ("config.json", "vision_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"1 missing keys \(model.norm.weight\)"),
        (lambda w: w.update({"model.more.weight": torch.zeros(2)}), r"1 surplus keys \(model.more.weight\)"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(7)}), r"model.norm.weight is \[7\], .* asks for \[32\]"),
        (lambda w: [w.pop(name) for name in list(w) if "layers.1.mlp" in name], r"7 missing keys \(model.layers.1"),
    ],
)
def test_keys_that_do_not_fit_are_listed(checkpoint, tmp_path, change, message):
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    for name in ("config.json", "vision_config.json"):
        (tmp_path / name).write_text((checkpoint / name).read_text())
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(DispError, match=message):
        load_official(tmp_path)


def test_a_tower_with_its_last_layer_and_head(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    tower = "model.vision_tower.vision_tower.vision_model"
    for name in [name for name in weights if f"{tower}.encoder.layers.1." in name]:
        weights[name.replace("layers.1.", "layers.2.")] = weights[name].clone()
    weights[f"{tower}.head.probe"] = torch.zeros(1, 1, TOWER)
    for name in ("config.json", "vision_config.json"):
        (tmp_path / name).write_text((checkpoint / name).read_text())
    save_file(weights, tmp_path / "model.safetensors")
    assert load_official(tmp_path).official_state_dict().keys() == weights.keys()


def test_how_a_model_is_loaded(checkpoint, model, queries, tmp_path):
    half = load_model(checkpoint, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert load_model(checkpoint, dtype="auto").dtype == torch.float32
    assert load_model(checkpoint, gen_length=20).generation_defaults["steps"] == 20
    response = torch.full((len(queries), 4), model.mask_token_id)
    with torch.no_grad():
        expected = model.denoise(model.encode(queries), response)
        for options in ({"device_map": "auto"}, {"device_map": {"": "cpu"}}, {"attn_implementation": "eager"}):
            other = load_model(checkpoint, device="cpu", **options)
            torch.testing.assert_close(other.denoise(other.encode(queries), response), expected, atol=1e-4, rtol=0)
    for options, message in (
        ({"dtype": "int8"}, "dtype must be"),
        ({"attn_implementation": "fast"}, "unknown attn_implementation 'fast'"),
        ({"quantization": "2bit"}, "unknown quantization '2bit'"),
        ({"gen_length": 0}, "gen_length must be at least 1"),
    ):
        with pytest.raises(DispError, match=message):
            load_model(checkpoint, **options)
    save_model(load_model(checkpoint, gen_length=20), tmp_path)
    assert load_model(tmp_path).gen_length == 20


def test_quantized_weights(checkpoint, model, samples, queries, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    quantized = load_model(checkpoint, quantization="8bit", device="cpu")
    response = torch.full((len(queries), 4), model.mask_token_id)
    with torch.no_grad():
        exact, close = (each.denoise(each.encode(queries), response) for each in (model, quantized))
    assert 0 < (exact - close).abs().max() and F.cosine_similarity(exact, close, dim=-1).mean() > 0.9
    with pytest.raises(DispError, match="quantized"):
        save_model(quantized, tmp_path / "no")
    config = TrainConfig(steps=2, learning_rate=1e-3, batch_size=2, method="lora", merge=False)
    for unfit in (replace(config, merge=True), replace(config, method="full")):
        with pytest.raises(DispError, match="merge off"):
            train(quantized, samples, unfit, tmp_path / "unfit")
    train(quantized, samples, config, tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_folder_without_a_tokenizer(checkpoint, queries, tmp_path):
    for name in ("config.json", "vision_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    with pytest.raises(DispError, match="without a tokenizer"):
        load_model(tmp_path).encode(queries)


def test_a_source_that_is_gone(model, tmp_path):
    with pytest.raises(DispError, match="is gone"):
        write_official(model, tmp_path / "out", tmp_path / "nowhere")


def test_a_hub_id_that_cannot_be_had(monkeypatch):
    import huggingface_hub

    asked = []

    def unavailable(name, **options):
        asked.append((name, options["allow_patterns"]))
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unavailable)
    with pytest.raises(DispError, match=r"'GSAI-ML/LLaDA-V' is no local folder .* \(no network here\)"):
        load_model("GSAI-ML/LLaDA-V")
    assert asked[0][0] == "GSAI-ML/LLaDA-V" and not any("bin" in p or "py" in p for p in asked[0][1])
