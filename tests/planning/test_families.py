"""What a plan reads off a tiny checkpoint of each family, against the model that is loaded from the same files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models.tiny import ALL, extended, write_checkpoint
from PIL import Image

from disp.data.dataset import Dataset
from disp.data.sample import Query, Sample, Turn, queries_of
from disp.decoding.samplers import own_settings
from disp.models.interface import MDLM
from disp.models.llada_v.published import SYSTEM
from disp.models.loading import load_model
from disp.planning.checkpoints import read_config, sizes_of
from disp.planning.memory import trained_parameters
from disp.planning.plan import default_decode, make_plan
from disp.training.config import TrainConfig
from disp.training.parameters import select_parameters

TEXTS = ["Describe the picture.", "A red apple is to the left of a cat."]
PINPOINTS = {"image_grid_pinpoints": None}
# Family, fields of config.json that are changed or left out (None), further files. "side" is the side of a tile.
CHECKPOINTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{family: (family, {}, {}) for family in ALL},
    "tiles up to 6 by 6": ("llada_v", PINPOINTS, {}),
    "tiles without a word on their aspect": ("llada_v", {"image_aspect_ratio": None}, {}),
    "tiles without a limit": ("llada_v", {"image_aspect_ratio": "anyres"}, {}),
    "as many key heads as others": ("llada_v", {"num_key_value_heads": None, "disp": None}, {}),
    **{
        f"{family}, pooling {mode}": (family, {"mm_spatial_pool_mode": mode, **PINPOINTS, "side": 384}, {})
        for family, mode in (
            ("lavida_llada", "none"), ("lavida_llada", "average"), ("lavida_llada", "max"), ("lavida_dream", "none"),
            ("lavida_llada", None),
        )
    },
    "pooling by our own section": ("lavida_dream", {"disp": {"pooling": "none", "gen_length": 8}}, {}),
    "width as a ratio": ("lavida_llada", {"mlp_hidden_size": None, "mlp_ratio": 2}, {}),
    "one key head": ("lavida_llada", {"n_kv_heads": None, "multi_query_attention": True}, {}),
    "biases": ("lavida_llada", {"include_qkv_bias": True, "embedding_size": None}, {}),
    "image tokens, width as a ratio": ("mmada", {"mlp_hidden_size": None, "mlp_ratio": 3}, {}),
    "image tokens, one key head, biases": (
        "mmada", {"n_kv_heads": None, "multi_query_attention": True, "include_qkv_bias": True, "num_vq_tokens": 16}, {},
    ),
    "tower of default sizes": ("dimple", {"vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 2}}, {}),
    "limits of pixels": ("dimple", {}, {"preprocessor_config.json": {"min_pixels": 9408, "max_pixels": 20_000}}),
    "limits of edges": (
        "dimple", {}, {"preprocessor_config.json": {"size": {"shortest_edge": 6272, "longest_edge": 25_088}}},
    ),
    "tokens by the processor": (
        "diffusion_gemma", {"disp": {"gen_length": 12}},
        {
            "processor_config.json": {"image_processor": {"max_soft_tokens": 9}},
            "generation_config.json": {"max_denoising_steps": 6},
        },
    ),
    "tokens by our own section": ("diffusion_gemma", {"disp": {"max_visual_tokens": 4}}, {}),
}  # fmt: skip
SIZES = ((60, 60), (100, 80), (400, 300), (300, 20), (1000, 4), (3, 700))


@pytest.fixture(scope="module", params=CHECKPOINTS)
def folder(request, tmp_path_factory) -> Iterator[Path]:
    family, changes, files = CHECKPOINTS[request.param]
    changes = dict(changes)
    side = {"image_size": changes.pop("side")} if "side" in changes else {}
    folder = write_checkpoint(family, tmp_path_factory.mktemp("checkpoint") / "model", TEXTS, changes, **side)
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    with extended():
        yield folder


@pytest.fixture(scope="module")
def model(folder) -> MDLM:
    return load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def sizes(folder):
    return sizes_of(read_config(folder), folder)


def test_weights_by_part(model, sizes):
    parts: Counter[str] = Counter()
    for name, value in model.named_parameters():
        vision, projector = (
            any(part in name for part in parts) for parts in (model.vision_names, model.projector_names)
        )
        parts["tower" if vision else "projector" if projector else "language"] += value.numel()
    assert (sizes.weights.language, sizes.weights.tower, sizes.weights.projector) == (
        parts["language"], parts["tower"], parts["projector"],
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_visual_tokens(model, sizes, size, count):
    pictures = (Image.new("RGB", size),) * count
    prefix = model.encode([Query("a", 0, pictures, (), "<image>" * count + "\nDescribe the picture.")])
    assert sizes.visual_count([size] * count).visual == int(prefix.visual_mask.sum())


def test_settings(model, sizes, folder):
    own, planned = own_settings(model), default_decode(folder)
    assert (planned.gen_length, planned.steps, planned.sampler) == (own.gen_length, own.steps, own.sampler)
    assert (planned.most_steps, planned.passes_a_step) == (own.most_steps, own.passes_a_step)
    assert (planned.may_end_early, planned.keeps_prefix) == (own.may_end_early, own.keeps_prefix)
    assert sizes.model.gen_length == model.gen_length
    assert sizes.model.default_system == model.default_system


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("train_vision", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "projector"])
def test_trained_parameters(family, method, train_vision, tmp_path):
    folder = write_checkpoint(family, tmp_path / "model", TEXTS)
    with extended():
        model = load_model(folder, device="cpu")
        planned = trained_parameters(sizes_of(read_config(folder), folder), method, 4, train_vision)
    if family == "mmada" and method == "projector":
        assert planned == (sum(value.numel() for value in model.vision_tower.parameters()) if train_vision else 0)
        return
    module = select_parameters(model, TrainConfig(method=method, lora_rank=4, train_vision=train_vision))
    assert planned == sum(value.numel() for value in module.parameters() if value.requires_grad)


@pytest.mark.parametrize("family", ALL)
def test_prefix_with_the_chat_of_the_model(family, tmp_path):
    """A few tokens off at most: line breaks around pictures, and a picture that the prompt does not name."""
    folder = write_checkpoint(family, tmp_path / "model", [*TEXTS, SYSTEM])
    with extended():
        model = load_model(folder, device="cpu")
    (folder / "chat_template.jinja").write_text(model.tokenizer.chat_template or "")
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    for prompt, count in (("<image>\nDescribe the picture.", 1), ("Describe the picture.", 2), ("What is left?", 0)):
        sample = Sample("a", (tmp_path / "a.png",) * count, (Turn(prompt, "A red apple."),))
        with extended():
            plan = make_plan(folder, Dataset((sample,), tmp_path / "data.json", tmp_path))
        assert plan.measured_text
        assert plan.prefix == pytest.approx(model.encode(queries_of([sample])).embeds.shape[1], abs=8)
    separate = model.vq_state_dict() if family == "mmada" else {}
    weights = [*model.official_state_dict().values(), *separate.values()]
    assert plan.parameters == sum(value.numel() for value in weights)
