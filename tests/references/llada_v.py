"""A tiny checkpoint in LLaDA-V's published layout, and an independent model: transformers' classes, tiling by loops."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast, SiglipVisionConfig, SiglipVisionModel

from disp.models.llada_v.published import SPECIAL_TOKENS

TILE, GRID, WIDTH, TOWER = 56, 4, 32, 16
VISION = {"hidden_size": TOWER, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": TILE, "patch_size": 14}  # fmt: skip
TEXTS = ["Describe the picture.", "Which of them has the apple?", "a red apple is to the left of a cat", "And now?"]


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


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


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
