"""LLaDA-V's checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from references.llada_v import (
    TOWER,
)
from safetensors.torch import load_file, save_file

from disp.errors import DispError
from disp.models.checkpoint import read_weights
from disp.models.llada_v.loading import load_official
from disp.models.llada_v.published import SPECIAL_TOKENS, detect
from disp.models.loading import family_of, load_model
from disp.models.saving import save_model, write_official
from disp.training.config import TrainConfig
from disp.training.train import train


def test_detection(checkpoint):
    assert family_of(checkpoint).name == "llada_v"
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
