import numpy as np
import pytest
from PIL import Image

from disp.report.picture import PANEL_PX, WIDTH_PX, draw_story, heat_map

ANSWERS = ("answer_clean", "answer_triggered", "answer_masked", "answer_recovered")


def story(path, **changes):
    masked = np.zeros((4, 4), bool)
    masked[1, 2] = True
    options = {
        "title": "A backdoor found and removed",
        "question": "<image>\nDescribe the image.",
        "clean": Image.new("RGB", (96, 96), "white"),
        "triggered": Image.new("RGB", (96, 96), "white"),
        "saliency": np.arange(16.0).reshape(4, 4),
        "masked": masked,
        **dict.fromkeys(ANSWERS, "A dog."),
    }
    draw_story(path, **(options | changes))
    with Image.open(path) as image:
        image.load()
        assert (image.format, image.mode, image.width) == ("PNG", "RGB", WIDTH_PX)
        return image


def test_story_is_one_wide_picture(tmp_path):
    image = story(tmp_path / "deep" / "story.png")
    assert PANEL_PX + 150 < image.height < 2 * PANEL_PX + 100
    assert image.getpixel((0, 0)) == image.getpixel((image.width - 1, image.height - 1)) == (255, 255, 255)
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    assert {(0xC0, 0x26, 0x26), (0x15, 0x80, 0x3D)} <= colours  # the attacker's answer and the recovered one
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["story.png"]


def test_story_is_the_same_bytes_every_time(tmp_path):
    story(tmp_path / "a.png")
    story(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_heat_map_is_hottest_where_saliency_is_highest():
    saliency = np.full((4, 8), 0.2)
    saliency[1, 6], saliency[3, 0] = 5.0, -1.0
    heat = heat_map(saliency, (160, 80))
    assert (heat.mode, heat.size) == ("RGBA", (160, 80))
    light = np.asarray(heat.convert("RGB").convert("L")).astype(int)
    rows, columns = np.nonzero(light == light.max())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 39, 120, 139)
    rows, columns = np.nonzero(light == light.min())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (60, 79, 0, 19)


def test_heat_rises_in_lightness_and_opacity():
    heat = heat_map(np.linspace(0, 1, 64)[None], (64, 1))
    light = np.asarray(heat.convert("RGB").convert("L")).astype(int)[0]
    assert (np.diff(light) >= 0).all()
    assert (np.diff(np.asarray(heat)[0, :, 3].astype(int)) >= 0).all()


@pytest.mark.parametrize("saliency", [np.zeros((2, 2)), np.full((2, 2), np.nan), np.array([[np.inf, 1.0]])])
def test_heat_map_of_flat_or_broken_scores_is_cold(saliency):
    assert len(heat_map(saliency, (4, 4)).getcolors()) == 1


@pytest.mark.parametrize("saliency", [np.zeros(4), np.zeros((0, 3)), np.zeros((1, 2, 2))])
def test_heat_map_wants_a_matrix(saliency):
    with pytest.raises(ValueError, match="matrix"):
        heat_map(saliency, (4, 4))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "word " * 5000,
        "W" * 20_000,
        "\x00\x1b[31m\ud800\u202e\u200b<script>alert(1)</script>",
        "图像 😀 %s {}",
    ],
)
def test_hostile_text_is_cut_to_size(tmp_path, text):
    image = story(tmp_path / "story.png", title=text, question=text, **dict.fromkeys(ANSWERS, text))
    assert image.height < 4 * PANEL_PX


def test_text_stays_inside_the_margins(tmp_path):
    image = story(tmp_path / "story.png", title="W" * 500, **dict.fromkeys(ANSWERS, "M" * 500))
    pixels = np.asarray(image)
    assert (pixels[:, :30] == 255).all()
    assert (pixels[:, -30:] == 255).all()
    assert (pixels[-20:] == 255).all()


@pytest.mark.parametrize(("size", "grid"), [((400, 30), (2, 9)), ((10, 800), (5, 1)), ((30, 30), (300, 300))])
def test_any_shape_of_image_and_grid(tmp_path, size, grid):
    picture = Image.new("RGBA", size)
    story(tmp_path / "s.png", clean=picture, triggered=picture, saliency=np.ones(grid), masked=np.ones(grid, bool))


def test_saliency_and_mask_must_agree(tmp_path):
    with pytest.raises(ValueError, match="one shape"):
        story(tmp_path / "s.png", masked=np.zeros((2, 2), bool))
