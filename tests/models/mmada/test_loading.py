"""MMaDA's checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from references.mmada import copied, mmada_tokenizer
from safetensors.torch import load_file, save_file

from disp.data.sample import Sample, Turn
from disp.errors import DispError
from disp.models.loading import load_model
from disp.models.merging import merge
from disp.models.mmada.loading import load_official
from disp.training.config import TrainConfig
from disp.training.train import train


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
