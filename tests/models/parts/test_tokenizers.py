"""A tokenizer that was not downloaded whole is named, whatever the family."""

import pytest
from models.tiny import FAMILIES, write_checkpoint

from disp.data.sample import Query
from disp.errors import DispError
from disp.models.loading import load_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pointer_in_place_of_the_tokenizer_is_named(family, tmp_path):
    write_checkpoint(family, tmp_path / "model", ["Is there a cat?", "Yes."])
    file = tmp_path / "model" / "tokenizer.json"
    assert file.is_file()
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abab\nsize 17\n")
    with pytest.raises(DispError, match=r"model/tokenizer\.json is no JSON; download it again \(git lfs pull\)"):
        load_model(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_may_know_the_placeholder_as_a_token(family, tmp_path, picture):
    model = load_model(write_checkpoint(family, tmp_path / "model", ["Is there a cat?", "Yes."]), device="cpu")
    query = Query("q", 0, (picture(0),), (), "<image>\nIs there a cat?")
    tokens = model.encode([query]).visual_mask.sum()
    model.tokenizer.add_tokens(["<image>"])
    assert tokens > 0 and model.encode([query]).visual_mask.sum() == tokens


def test_a_template_that_leaves_images_out_is_named(tiny_model, picture, monkeypatch):
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", "Say something.")
    with pytest.raises(DispError, match="the chat template writes 0 of 1 images"):
        tiny_model.encode([Query("q", 0, (picture(0),), (), "<image>\nIs there a cat?")])
