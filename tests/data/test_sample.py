"""Opening images: modes are converted, and bad files are named."""

import pytest
from PIL import Image

from disp.data import sample as module
from disp.data.sample import Sample, Turn, open_image, queries_of
from disp.errors import DispError


def test_modes_become_rgb_and_transparency_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("P", (4, 4), 0).save(tmp_path / "palette.png")
    assert open_image(tmp_path / "palette.png").mode == "RGB"
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == (7, 7, 7)


def test_bad_files_are_named(tmp_path, monkeypatch, picture):
    picture(1, 64).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no image")
    for name, message in (("torn.png", "cannot be read"), ("text.png", "cannot be read"), ("no.png", "no such image")):
        with pytest.raises(DispError, match=f"{name}.*{message}|{name}: {message}"):
            open_image(tmp_path / name)
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    with pytest.raises(DispError, match="64×64 pixels is more than the limit"):
        open_image(tmp_path / "whole.png")


def test_each_turn_is_a_query_with_its_history():
    turns = (Turn("a", "1"), Turn("b", "2"))
    first, second = queries_of([Sample("s", (), turns)])
    assert (first.key, first.history, first.prompt, first.response) == ("s#0", (), "a", "1")
    assert (second.key, second.history, second.prompt, second.response) == ("s#1", turns[:1], "b", "2")
    with pytest.raises(ValueError, match="2 turns, got 1"):
        Sample("s", (), turns).with_responses(["x"])
