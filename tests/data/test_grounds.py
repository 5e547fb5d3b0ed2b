"""Grounds of scenes: the default as it always was, textures that keep their colour, photographs, sizes, compression."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from disp.commands.data import Pictures
from disp.data.grounds import GROUNDS, TEXTURES, Look, ground, texture_of
from disp.data.scene_dataset import write_scenes
from disp.data.scenes import COLOURS, TASKS, draw_scene, render
from disp.draws import generator
from disp.errors import DispError


@pytest.fixture
def photos(tmp_path):
    """Three "photographs", each of one grey, in a folder and one below it."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, grey in (("a.png", 40), ("b.jpg", 120), ("more/c.JPEG", 200)):
        picture = Image.fromarray(np.full((120, 200, 3), grey, np.uint8))
        picture.save(tmp_path / "photos" / name, "PNG" if name == "a.png" else "JPEG")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def test_the_default_is_what_the_built_in_model_was_trained_on():
    found = hashlib.sha256()
    for index in range(20):
        found.update(render(draw_scene(4, index)).tobytes())
    assert found.hexdigest() == "c54bda320c20fe9a35c3f05c5fed593580305ef6a5078eeffcd47c92ad99edf9"


@pytest.mark.parametrize("colour", COLOURS)
def test_a_texture_keeps_the_colour_that_answers_name(colour):
    seen = set()
    for index in range(60):
        pixels = ground(Look("textured"), COLOURS[colour], 96, 3, index).clip(0, 255)
        assert pixels.shape == (96, 96, 3)
        assert pixels.std((0, 1)).max() > 1
        nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - pixels.mean((0, 1))).sum())
        assert nearest == colour, (texture_of(Look(), 3, index), pixels.mean((0, 1)))
        seen.add(texture_of(Look(), 3, index))
    assert seen == set(TEXTURES)


@pytest.mark.parametrize("kind", TEXTURES)
def test_each_texture_differs_from_scene_to_scene_and_never_from_run_to_run(kind):
    first, again, other = (TEXTURES[kind](64, generator(0, "test", number)) for number in (1, 1, 2))
    assert first.shape == (64, 64) and np.isfinite(first).all()
    assert np.array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.99


@pytest.mark.parametrize("grounds", GROUNDS)
def test_sizes_and_compression_vary_from_picture_to_picture(tmp_path, photos, grounds):
    look = Look(grounds, photos if grounds == "photo" else None, (100, 140), (60, 90))
    for name in "ab":
        write_scenes(tmp_path / name, 12, 5, look=look)
    files = sorted((tmp_path / "a" / "images").iterdir())
    assert [file.suffix for file in files] == [".jpg"] * 12
    assert [file.read_bytes() for file in files] == [
        file.read_bytes() for file in sorted((tmp_path / "b" / "images").iterdir())
    ]
    pictures = [Image.open(file) for file in files]
    assert {picture.format for picture in pictures} == {"JPEG"}
    sides = {picture.width for picture in pictures}
    assert all(picture.size == (picture.width,) * 2 for picture in pictures)
    assert len(sides) > 5 and min(sides) >= 100 and max(sides) <= 140
    # The table of a JPEG says how strongly it was compressed.
    assert len({tuple(picture.quantization[0]) for picture in pictures}) > 5


def test_objects_grow_with_the_picture():
    scene = draw_scene(4, 1)
    small, large = (np.asarray(render(scene, Look(size=(side, side)))) for side in (96, 480))
    assert large.shape == (480, 480, 3)
    means = large.reshape(96, 5, 96, 5, 3).mean((1, 3))
    # Edges fall a pixel elsewhere; an object at another place or of another size would change most of its pixels.
    changed = np.abs(means - small).max(-1) > 60
    assert changed.mean() < 0.03


def test_on_photographs_nothing_is_said_of_a_colour(tmp_path, photos):
    dataset = write_scenes(tmp_path / "out", 80, 0, look=Look("photo", photos), turns=2)
    rows = json.loads((tmp_path / "out" / "data.json").read_text())
    assert not any("colour" in row or "colour" in row["tasks"] for row in rows)
    said = " ".join(turn.prompt + turn.response for sample in dataset.samples for turn in sample.turns)
    assert not any(word in said for word in ("background", "colour", "behind"))
    assert {task for row in rows for task in row["tasks"]} == set(TASKS) - {"colour"}
    corners = {round(float(np.asarray(Image.open(sample.images[0]))[0, 0].mean()), -1) for sample in dataset.samples}
    assert {40, 120, 200} <= corners


def test_textures_are_told(tmp_path):
    write_scenes(tmp_path / "out", 4, 2, look=Look("textured"))
    rows = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [row["texture"] for row in rows] == [texture_of(Look(), 2, index) for index in range(4)]
    assert all(row["colour"] in COLOURS for row in rows)
    few = Look("textured", textures=("wood", "blobs"))
    assert {texture_of(few, 2, index) for index in range(20)} == {"wood", "blobs"}


def test_mistakes(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.png").write_bytes(b"no picture")
    for arguments, message in (
        (("textures",), "Did you mean 'textured'"),
        (("photo",), "needs --photos"),
        (("plain", photos), "--photos is for --grounds photo"),
        (("plain", None, (64, 96)), "size must be from 96 to 512"),
        (("plain", None, (200, 100)), "the lower number first, got 200-100"),
        (("plain", None, (96, 96), (0, 90)), "jpeg must be from 1 to 100"),
        (("textured", None, (96, 96), None, ("clot",)), "Did you mean 'cloth'"),
    ):
        with pytest.raises(DispError, match=message):
            Look(*arguments)
    for folder, message in (
        (tmp_path / "none", "no such folder"),
        (tmp_path / "empty", "empty holds no picture"),
        (tmp_path / "damaged", r"a\.png"),
    ):
        with pytest.raises(DispError, match=message):
            write_scenes(tmp_path / "out", 1, look=Look("photo", folder))
    with pytest.raises(DispError, match="turns must be from 1 to 5"):
        write_scenes(tmp_path / "out", 1, look=Look("photo", photos), turns=6)


def test_options_of_the_command(photos):
    assert Pictures().look() == Look()
    assert Pictures("photo", photos, "96-512", "80").look() == Look("photo", photos, (96, 512), (80, 80))
    for text in ("", "big", "75-", "-75", "75-80-90", "1e2", "²"):
        with pytest.raises(DispError, match="--jpeg takes a number or a range"):
            Pictures(jpeg=text).look()
