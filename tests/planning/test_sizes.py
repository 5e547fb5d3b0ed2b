"""Parameters and visual tokens of families by their configs."""

import json
from collections import Counter

import pytest
import torch
from parity_folder import PARITY
from references.planning import DIMPLE, GEMMA, LAVIDA, LAVIDA_DREAM, LLADA_8B, MMADA
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from disp.errors import DispError
from disp.models.families import family
from disp.planning.checkpoints import read_config, sizes_of, stored_parameters


@pytest.mark.parametrize("name", ["built-in", "larger"])
def test_parameters_by_the_config(measured_models, name):
    model = measured_models[name]
    sizes = sizes_of(model.config.to_dict())
    counted = Counter()
    for parameter, value in model.named_parameters():
        part = next((part for part in ("vision_tower", "mm_projector") if part in parameter), "language")
        counted[part] += value.numel()
    assert (sizes.weights.language, sizes.weights.tower, sizes.weights.projector) == (
        counted["language"], counted["vision_tower"], counted["mm_projector"],
    )  # fmt: skip


def test_parameters_of_the_published_language_model():
    # 16,031,162,368 bytes in bfloat16, as the published index says; the newline vector is LLaDA-V's.
    assert 2 * (sizes_of(LLADA_8B).weights.language - 4096) == 16_031_162_368


@pytest.mark.parametrize("checkpoint", ["llada_v", "lavida_llada", "lavida_dream", "dimple"])
def test_parameters_of_published_layouts(checkpoint):
    if not (PARITY / checkpoint).is_dir():
        pytest.skip(f"no parity data in {PARITY}; set DISP_PARITY_DIR")
    stored = stored_parameters(PARITY / checkpoint)
    # The checkpoints keep the tower's final norm, though nothing reads its output.
    read = sum(count for name, count in stored.items() if "post_layernorm" not in name)
    assert sizes_of(read_config(PARITY / checkpoint), PARITY / checkpoint).weights.total == read


def test_parameters_of_a_mixture_of_experts():
    """DiffusionGemma's, with the library's own model as the truth."""
    config = DiffusionGemmaConfig(**GEMMA)
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion(config)
    sizes = sizes_of(config.to_dict())
    assert sizes.weights.total == sum(value.numel() for value in model.parameters())
    for size, tokens in (((224, 224), 256), ((640, 480), 266), ((1920, 1080), 264), ((200, 600), 252)):
        assert sizes.visual_count([size]).visual == tokens


@pytest.mark.parametrize("checkpoint", ["llada_v", "lavida_llada", "lavida_dream"])
def test_visual_tokens_of_published_examples(checkpoint):
    if not (PARITY / checkpoint).is_dir():
        pytest.skip(f"no parity data in {PARITY}; set DISP_PARITY_DIR")
    meta = json.loads((PARITY / checkpoint / "meta.json").read_text())
    count = sizes_of(read_config(PARITY / checkpoint), PARITY / checkpoint).visual_count([tuple(meta["image_size_wh"])])
    assert count.visual + count.others == meta["num_visual_tokens"]


@pytest.mark.parametrize(
    "config, size, tokens",
    [
        (LLADA_8B, (384, 384), 1485), (LLADA_8B, (640, 480), 2929), (LLADA_8B, (480, 640), 2943),
        (LLADA_8B, (1024, 768), 3627), (LLADA_8B, (200, 600), 1809),
        (LAVIDA, (384, 384), 406), (LAVIDA, (640, 480), 834), (LAVIDA, (1920, 1080), 660), (LAVIDA, (600, 200), 486),
    ],
)  # fmt: skip
def test_visual_tokens_of_tiled_pictures(config, size, tokens):
    count = sizes_of(config).visual_count([size])
    assert count.visual + count.others == tokens


@pytest.mark.parametrize(
    "name, index, config",
    [
        ("llada_v", 0, LLADA_8B), ("lavida", 0, LAVIDA), ("lavida", 1, LAVIDA_DREAM), ("mmada", 0, MMADA),
        ("dimple", 0, DIMPLE), ("diffusion_gemma", 0, GEMMA),
    ],
)  # fmt: skip
def test_what_the_docs_say_of_published_models_is_what_is_planned(name, index, config):
    """Parameters, and the visual tokens of a picture of 640×480, which stand in brackets."""
    if name == "diffusion_gemma":
        config = DiffusionGemmaConfig(**config).to_dict()
    about = family(name).about.published[index]
    sizes = sizes_of(config)
    digits = len(about.parameters.split()[0].partition(".")[2])
    assert about.parameters.startswith(f"{sizes.weights.total / 1e9:.{digits}f} B")
    tokens = sizes.visual_count([(640, 480)]).visual
    if "(" in about.visual_tokens:
        assert about.visual_tokens.endswith(f"({tokens})")
    elif name == "mmada":
        assert about.visual_tokens.startswith(str(tokens))


def test_several_pictures_are_one_tile_each():
    count = sizes_of(LLADA_8B).visual_count([(640, 480), (200, 600)])
    assert (count.visual, count.others, count.tiles) == (2 * 729, 2, 2)


def test_stored_parameters_of_shards(tmp_path, builtin):
    builtin.save_pretrained(tmp_path, max_shard_size="2MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    stored = stored_parameters(tmp_path)
    assert stored == {name: value.numel() for name, value in builtin.state_dict().items()}
    second = next(tmp_path.glob("*-00002-*.safetensors"))
    for damaged in (b"", b"{}", b"\xff" * 8, (4).to_bytes(8, "little") + b"[12]", second.read_bytes()[:-1]):
        second.write_bytes(damaged)
        with pytest.raises(DispError, match=r"00002-of-\d+.safetensors is no readable .*; download it again$"):
            stored_parameters(tmp_path)
    second.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert stored_parameters(tmp_path) is None
    second.unlink()
    assert stored_parameters(tmp_path) is None


def test_unknown_and_incomplete_configs():
    with pytest.raises(DispError, match="'gpt2' is of no family"):
        sizes_of({"model_type": "gpt2"})
    with pytest.raises(DispError, match="no field 'vocab_size'"):
        sizes_of({key: value for key, value in LLADA_8B.items() if key != "vocab_size"})
