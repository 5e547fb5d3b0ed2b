"""A tokenizer that was not downloaded whole is named, whatever the family."""

import pytest
from models.tiny import FAMILIES, write_checkpoint

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
