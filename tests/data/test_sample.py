"""Opening images: modes are converted, and bad files are named."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from disp.data import sample as module
from disp.data.sample import Sample, Turn, batches, check_image, image_size, open_image, picture_digest, queries_of
from disp.errors import DispError


def test_modes_become_rgb_and_transparent_pixels_keep_the_colours_that_trainers_see(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 0, 0)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 8, 7, *[0] * 765])
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "clear-palette.png", transparency=b"\x00\x10")
    assert open_image(tmp_path / "palette.png").getpixel((0, 0)) == (9, 8, 7)
    assert open_image(tmp_path / "clear-palette.png").getpixel((0, 0)) == (9, 8, 7)
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == (7, 7, 7)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert open_image(tmp_path / "key.png").getpixel((0, 0)) == (1, 2, 3)
    Image.new("LA", (4, 4), (5, 0)).save(tmp_path / "clear-grey.png")
    assert open_image(tmp_path / "clear-grey.png").getpixel((0, 0)) == (5, 5, 5)


def test_grey_levels_of_16_bits_are_those_that_trainers_see_and_of_no_known_range_refused(tmp_path):
    levels = np.array([[0, 7, 200, 255, 256, 1000, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    Image.fromarray(levels).save(tmp_path / "deep.tiff")
    Image.frombytes("I;16B", (7, 1), levels.astype(">u2").tobytes()).save(tmp_path / "other-end.tiff")
    Image.fromarray(levels).save(tmp_path / "key.png", transparency=7)
    for name in ("deep.png", "deep.tiff", "other-end.tiff", "key.png"):
        with Image.open(tmp_path / name) as trained:
            assert trained.mode.startswith("I;16")
            seen = np.asarray(trained.convert("RGB"))
        assert np.asarray(open_image(tmp_path / name)).tolist() == seen.tolist(), name
        assert seen[0, :, 0].tolist() == [0, 7, 200, 255, 255, 255, 255]
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DispError, match=r"float\.tiff: cannot be read as an image \(its grey levels of mode F"):
        open_image(tmp_path / "float.tiff")


def test_bad_files_are_named(tmp_path, monkeypatch, picture):
    picture(1, 64).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    picture(1, 64).save(tmp_path / "whole.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no image")
    bad = {"torn.png": "cannot be read", "torn.jpg": "cannot be read", "text.png": "cannot be read"}
    for look in (open_image, check_image):
        for name, message in {**bad, "no.png": "no such image"}.items():
            with pytest.raises(DispError, match=f"{name}.*{message}|{name}: {message}"):
                look(tmp_path / name)
    for name in ("whole.png", "whole.jpg"):
        check_image(tmp_path / name)
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    for look in (open_image, check_image, image_size):
        for name in ("whole.png", "whole.jpg"):
            with pytest.raises(DispError, match="64×64 pixels is more than the limit"):
                look(tmp_path / name)


def test_no_other_program_opens_a_picture(tmp_path, monkeypatch):
    """Pillow opens EPS by starting Ghostscript, under any name of a file."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    for look in (open_image, check_image, image_size):
        with pytest.raises(DispError, match=r"a\.png: cannot be read as an image"):
            look(tmp_path / "a.png")


def test_usual_formats_are_opened(tmp_path):
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"{kind}.img", kind)
        assert open_image(tmp_path / f"{kind}.img").size == (16, 16), kind


def test_a_file_is_digested_once_and_anew_when_it_has_changed(tmp_path, monkeypatch):
    file, read = tmp_path / "a.png", []
    file.write_bytes(b"first")

    def digest(path):
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(module, "sha256", digest)
    first = picture_digest(file)
    assert first == picture_digest(file) == hashlib.sha256(b"first").hexdigest()
    assert read == [file]
    file.write_bytes(b"other and longer")
    assert picture_digest(file) == hashlib.sha256(b"other and longer").hexdigest()


def test_each_turn_is_a_query_with_its_history():
    turns = (Turn("a", "1"), Turn("b", "2"))
    first, second = queries_of([Sample("s", (), turns)])
    assert (first.key, first.history, first.prompt, first.response) == ("s#0", (), "a", "1")
    assert (second.key, second.history, second.prompt, second.response) == ("s#1", turns[:1], "b", "2")
    with pytest.raises(DispError, match="batch_size must be at least 1, got 0"):
        list(batches([1, 2], 0))
    with pytest.raises(ValueError, match="2 turns, got 1"):
        Sample("s", (), turns).with_responses(["x"])


def test_a_turn_has_the_pictures_that_were_shown_up_to_it(picture):
    images = (picture(1), picture(2), picture(3))
    named = (Turn("<image>\nWhat is this?", "a cat"), Turn("And?", "a dog"), Turn("<image><image> these?", "cups"))
    assert [query.images for query in queries_of([Sample("s", images, named)])] == [images[:1], images[:1], images]
    # Of an image without a placeholder nobody knows when it was shown.
    unnamed = (Turn("What is this?", "a cat"), Turn("<image> and this?", "a dog"))
    assert [query.images for query in queries_of([Sample("s", images[:2], unnamed)])] == [images[:2]] * 2
