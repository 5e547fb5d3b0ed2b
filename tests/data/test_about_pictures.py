"""Rows that speak about pictures, files and markup, or tell how a picture was called: they are what they say they are.

What would make each of them a row with a picture that is not looked at stands beside it.
"""

import hashlib

import pytest
from data.test_cases import again, ask, write
from data.written import from_value, png

from disp.data.loading import load_dataset

FORMER = [
    {"original_image": "IMG_2034.JPG"}, {"image_id": "1000092795.jpg"}, {"image_name": "COCO_train2014_9.jpg"},
    {"img_path": "/old/IMG_1.jpg"}, {"metadata": {"image": "gqa/images/2.jpg"}}, {"figure_path": "figs/9.png"},
    {"picture_url": "//cdn.org/1.jpg"}, {"image_urls": ["a.com/1.jpg"]}, {"image_1": "old/one.jpg"},
    {"source": "clips/abc.mp4"}, {"options": ["song.mp3", "notes.txt"]}, {"ground_truth": "song.mp3"},
    {"source_video": "v/1.mp4"}, {"audio": "none"}, {"video": ["None"]}, {"image2": "none"},
    {"video": {"bytes": None, "path": None}},
]  # fmt: skip


@pytest.mark.parametrize("more", FORMER, ids=str)
def test_a_name_by_which_there_is_no_file_tells_of_the_picture_that_is_read(more, tmp_path):
    rows = [{"image": "0.png", **more, "conversations": ask()}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert [file.read_bytes() for file in dataset.samples[0].images] == [png(0)]
    assert again(dataset, tmp_path / "out")[0] == rows


def test_a_name_by_which_the_same_picture_lies_elsewhere_is_no_other_one(tmp_path):
    rows = [{"image": "0.png", "img_path": f"{tmp_path}/old/photo.png", "conversations": ask()}]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "photo.png").write_bytes(png(0))
    assert load_dataset(write(tmp_path / "in", rows), strict=True).samples
    (tmp_path / "old" / "photo.png").write_bytes(png(1))
    (problem,) = load_dataset(write(tmp_path / "in", [*rows, {"image": "1.png", "conversations": ask()}])).problems
    assert "another picture under 'img_path'" in problem.reason


@pytest.mark.parametrize("more", [{"source": "a.mp4"}, {"options": ["a.mp4"]}, {"source_video": "a.mp4"}], ids=str)
def test_a_video_that_is_there_is_not_passed_over(more, tmp_path):
    write(tmp_path, [{"image": "1.png", "conversations": ask()}, {"image": "0.png", **more, "conversations": ask()}])
    (tmp_path / "images" / "a.mp4").write_bytes(b"x")
    (problem,) = load_dataset(tmp_path).problems
    assert "is about a video or a sound" in problem.reason


def test_a_sound_is_named_with_its_article(tmp_path):
    write(tmp_path, [{"image": "1.png", "conversations": ask()}, {"audio": "a.wav", "conversations": ask("")}])
    assert load_dataset(tmp_path).problems[0].reason.startswith("is about an audio ('audio')")


FENCE = "```"
WORDS = [
    'Fix my page: <img src="cat.png" alt="x">', 'Why?\n<div>\n<img src="cat.png">\n</div>', "What does <picture> do?",
    f"Mend it:\n{FENCE}\n<picture>\n<img src='a.png'>\n{FENCE}", "How do I use <Image /> in React?",
    "<View>\n<Image />\n</View>", "Is a <frame> still allowed?", "Does <media:content> belong in a feed?",
    "Fill {image} and {text} in.", "Write [image] where it goes.", "Dear Ann, I enclose <photo> for you.",
    "Show ![alt](a.md) in it", "![alt](a.md)", "Use `![a](b.png)` here", "p { background: url(images/bg.png) }",
    "background: url(images/bg.png);", "Sort these files:\na.jpg\nb.jpg\nc.png", "What is `images/cat.jpg`?",
    "data:image/png;base64 how does it work?", "How do I use the <video> tag in HTML5?", "Does SSML have <speech>?",
    "<video>\n<source src=x>\n</video>\nWhy is it silent?", "How long is a `<video>`?", f"{FENCE}\n[image]\n{FENCE}\n",
    "Say '<audio>' twice.", "A prompt such as \"<pic>\" is what?",
]  # fmt: skip


@pytest.mark.parametrize("text", WORDS)
def test_words_about_markup_and_files_are_words(text, tmp_path):
    rows = [{"conversations": from_value(text, "Yes.")}]
    assert load_dataset(write(tmp_path / "bare", rows), strict=True).without_picture == 1
    shown = [{"image": "0.png", "conversations": from_value(f"<image>\n{text}", "Yes.")}]
    assert load_dataset(write(tmp_path / "shown", shown), strict=True).samples[0].images


THERE = [
    'Fix my page: <img src="0.png" alt="x">', f"{FENCE}\n<img src='images/0.png'>\n{FENCE}", "Show ![alt](0.png) in it",
    "Use `![a](images/0.png)` here", "background: url(images/0.png);", "Sort these files:\n0.png\n1.png\n2.png",
    f"{FENCE}\nimages/0.png\n{FENCE}", "Is it <photo>0.png</photo> or not?",
]  # fmt: skip


@pytest.mark.parametrize("text", THERE)
def test_a_picture_that_is_there_is_no_word(text, tmp_path):
    rows = [{"id": "good", "image": "1.png", "conversations": ask()}, {"conversations": from_value(text, "Yes.")}]
    (problem,) = load_dataset(write(tmp_path, rows)).problems
    assert "looks as if it names a picture by" in problem.reason


NAMED = [
    "Look: <|image_1|> and say.", "In `<|image_pad|>` what is it?", "<b>Hm</b> <img>a/0.png</img>", "A <|video_pad|> b",
    "Is <image_07> a cat?",
    "Is <video>a.mp4</video> long?", "Is it data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUg" * 3,
]  # fmt: skip


@pytest.mark.parametrize("text", NAMED)
def test_a_token_of_a_model_and_a_name_in_tags_count_anywhere(text, tmp_path):
    rows = [{"id": "good", "image": "1.png", "conversations": ask()}, {"query": text, "response": "Yes."}]
    dataset = load_dataset(write(tmp_path, rows))
    assert [sample.id for sample in dataset.samples] == ["good"] and len(dataset.problems) == 1


ONE = ["As in <image 2> of the book?", "[Image 1] and [Image 2] are its halves.", "Is [img12] a key?"]


@pytest.mark.parametrize("text", ONE)
def test_a_number_within_a_sentence_asks_for_no_further_picture(text, tmp_path):
    rows = [{"image": "0.png", "conversations": from_value(f"<image>\n{text}", "Yes.")}]
    assert load_dataset(write(tmp_path, rows), strict=True).samples[0].images


TELLS = [
    {"image_width": 224}, {"max_pixels": 401408}, {"image_token_len": 576}, {"image_count": 2}, {"photos": 3},
    {"thumbnail": {"width": "7", "type": "small"}}, {"n_images": "0"},
    {"has_image": "no"}, {"image_type": "none"}, {"image_source": "N/A"}, {"image_id": -1}, {"social_media": "all"},
    {"timeframe": "2 weeks"}, {"scan": 3}, {"audio_quality": 3}, {"image_correspondence_ratings": [1]},
    {"image": "None"}, {"images": ["none"]}, {"image_path": "null"}, {"image_info": {"width": 7, "type": "none"}},
    {"video_id": None}, {"options": ["song.mp3", "a.jpg"]}, {"choices": {"text": ["a.png", "b.png"]}},
]  # fmt: skip


@pytest.mark.parametrize("more", TELLS, ids=str)
def test_a_number_or_a_word_that_tells_of_pictures_is_none(more, tmp_path):
    rows = [{**more, "conversations": ask("")}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert dataset.without_picture == 1 and again(dataset, tmp_path / "out")[0] == rows


LOST = [
    {"image_no": {"id": 5}}, {"imageIndex": 3}, {"picture": 7}, {"image_source": "coco/7"}, {"pixel_values": [[0.5]]},
    {"options": ["0.png"]}, {"image_id": "None.png"}, {"imgs": [1, 2]}, {"picture": {"x": "7"}},
    {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"photo": "x"}}}}}}}},
]  # fmt: skip


@pytest.mark.parametrize("more", LOST, ids=str)
def test_what_names_a_picture_is_still_no_row_of_text(more, tmp_path):
    rows = [{"id": "good", "image": "1.png", "conversations": ask()}, {**more, "conversations": ask("")}]
    (problem,) = load_dataset(write(tmp_path, rows)).problems
    assert "has no picture, but" in problem.reason


@pytest.mark.parametrize("row", [{"image": "None"}, {"image_path": "none"}, {"video": "none"}], ids=str)
def test_a_file_that_is_called_none_is_something(row, tmp_path):
    write(tmp_path, [{"id": "good", "image": "1.png", "conversations": ask()}, {**row, "conversations": ask("")}])
    (tmp_path / "images" / next(iter(row.values()))).write_bytes(png(2))
    dataset = load_dataset(tmp_path)
    assert dataset.without_picture == 0


def table(folder, *rows):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows)), folder / "data.parquet")
    return folder / "data.parquet"


def test_binary_values_that_are_no_pictures_are_kept(tmp_path):
    other = {"md5": hashlib.md5(b"x").digest(), "embedding": bytes(range(256)) * 12, "image_hash": b"\xff" * 16}
    path = table(
        tmp_path,
        {"image": {"bytes": png(0), "path": None}, "conversations": ask(), **other},
        {"image": None, "conversations": ask(""), **other},
    )
    dataset = load_dataset(path, strict=True)
    assert [len(sample.images) for sample in dataset.samples] == [1, 0]


@pytest.mark.parametrize("column", ["img", "jpg", "screenshot", "image_0", "Image", "blob"])
def test_a_picture_in_another_column_is_named_by_its_column(column, tmp_path):
    row = {"image": {"bytes": png(0), "path": None}, column: None, "conversations": ask()}
    held = {"image": None, column: {"bytes": png(1), "path": None}, "conversations": ask("")}
    (problem,) = load_dataset(table(tmp_path, row, held)).problems
    assert f"has no picture, but {column!r} looks like one (" in problem.reason


def test_a_picture_beside_another_name_in_a_table_is_read(tmp_path):
    row = {"image": {"bytes": png(0), "path": "tmpab12.png"}, "image_name": "COCO_9.jpg", "conversations": ask()}
    assert load_dataset(table(tmp_path, row), strict=True).samples[0].images
