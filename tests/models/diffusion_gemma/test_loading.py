"""DiffusionGemma's checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from references.diffusion_gemma import (
    CANVAS,
    random_canvas,
)
from safetensors.torch import load_file, save_file
from transformers import DiffusionGemmaForBlockDiffusion

from disp.data.sample import Sample, Turn
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.models.canvas import CanvasSampling
from disp.models.diffusion_gemma.loading import load_official
from disp.models.diffusion_gemma.model import DiffusionGemma
from disp.models.diffusion_gemma.published import detect
from disp.models.loading import load_model
from disp.models.merging import merge
from disp.models.saving import save_model
from disp.training.config import TrainConfig
from disp.training.train import train


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
    assert decode_config(gen_length=model.gen_length, **model.generation_defaults).steps == 12


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
