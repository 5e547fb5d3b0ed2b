"""Dimple's configs and checkpoints."""

import json

import pytest
import torch
from references.dimple import CONTROL, TINY, write
from safetensors.torch import save_file

from disp.errors import DispError
from disp.models.dimple.config import DimpleConfig, processing_of
from disp.models.dimple.loading import load_official
from disp.models.dimple.published import detect
from disp.models.dimple.tokenizer import load_tokenizer


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
