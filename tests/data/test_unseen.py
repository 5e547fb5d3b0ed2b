"""Videos, sounds and further pictures of a row are named, and do not pass as text or unseen beside a picture."""

import base64
import json

import pytest
from data.test_cases import again, ask, talk, write
from data.written import from_value, png

from disp.data.loading import load_dataset
from disp.errors import DispError

GOOD = {"id": "good", "image": "1.png", "conversations": ask()}
MOVING = "is about a video or a sound"
FIELDS = [
    {"file": "0.mp4"}, {"clip": "v/0.webm"}, {"source": "a.mov"}, {"audio_url": "a.wav"}, {"wav": "a.wav"},
    {"sound": "a.mp3"}, {"speech": "x.flac"}, {"video_id": "v1"}, {"audio_id": 7}, {"meta": {"track": "b/a.OGG"}},
    {"speech": {"array": [0.1], "sampling_rate": 16000}}, {"url": "https://x.org/a.mp4?t=1"}, {"files": ["a.m4a"]},
]  # fmt: skip
MEDIA_TAGS = [
    "<|video|>", "<|video_pad|>", "<Video>", "<video_0>", "<|AUDIO|>", "<speech>", "<|audio_bos|>", "<audio 1>",
    "<video/>", "<|vision_start|><|video_pad|><|vision_end|>",
]  # fmt: skip
PLACES = [
    "<pic>", "<pic_1>", "<|endofimage|>", "images/0.jpg", "0.jpg", "Picture 1: images/0.jpg", "Image: 0.jpg", "<0.jpg>",
    '"images/0.jpg"', '"0.jpg"', "C:/data/0.jpg", r"\\srv\0.jpg", r"images\0.jpg", "/data/0.jpg, look.", "(0.jpg)",
    "<file>images/0.jpg</file>", "<file>0.jpg</file>", "clips/0.mp4", "0.mp4", "Look at this. images/0.jpg", "“0.jpg”",
]  # fmt: skip


def reasons(folder, *rows):
    dataset = load_dataset(write(folder, [GOOD, *rows]))
    assert [sample.id for sample in dataset.samples] == ["good"]
    return [problem.reason for problem in dataset.problems]


@pytest.mark.parametrize("more", FIELDS, ids=str)
def test_a_field_with_a_video_or_a_sound_is_no_row_of_text(more, tmp_path):
    (reason,) = reasons(tmp_path, {**more, "conversations": ask("")})
    assert MOVING in reason


@pytest.mark.parametrize("tag", MEDIA_TAGS)
def test_a_tag_for_a_video_or_a_sound_is_no_row_of_text(tag, tmp_path):
    rows = [{"conversations": ask(f"{tag}\n")}, {"image": "0.png", "conversations": ask(f"<image>{tag}\n")}]
    assert all(MOVING in reason for reason in reasons(tmp_path, *rows))


@pytest.mark.parametrize("place", PLACES)
def test_a_line_that_names_a_file_is_no_row_of_text(place, tmp_path):
    rows = [{"conversations": from_value(text, "Yes.")} for text in (f"{place}\nWhat is it?", f"What is it?\n{place}")]
    assert all("names a picture by" in reason for reason in reasons(tmp_path, *rows))
    shown = {"image": "0.png", "conversations": ask(f"{place}\n")}
    assert load_dataset(write(tmp_path / "shown", [shown])).samples[0].images


def test_a_name_in_brackets_begins_a_question(tmp_path):
    assert reasons(tmp_path, {"conversations": ask("[0.jpg] ")}, {"conversations": ask("images/0.jpg ")})


HONEST = [
    "What makes a good video?", "How do I open images/cat.jpg?", "Convert a.mov to a.mp4 with ffmpeg.",
    "I saved it as video.mp4.", "What is in photo.jpg?", "images/cat.jpg is not shown on my page, why?",
    "Is the speech of Antony in the play long?", "Is cat.png, or dog.png, larger?", "Use `a.wav` and listen.",
    "The epic <i>speech</i> of a <b>pict</b>", "Why does my <audiobook> element fail?", "Say and/or, e.g. a/b.",
    "Rename a.jpg and\nb.jpg to c.jpg please", "A list<Video> in Java", "The clip was long: nobody watched it.",
]  # fmt: skip
BESIDE = {"clip_score": 0.3, "part_of_speech": "noun", "sound": "meow", "speech": "Friends, Romans", "source": "web"}


@pytest.mark.parametrize("text", HONEST)
def test_words_about_videos_and_files_are_words(text, tmp_path):
    row = {"conversations": from_value(text, "See a.mp4"), **BESIDE}
    assert load_dataset(write(tmp_path, [row]), strict=True).without_picture == 1


@pytest.mark.parametrize("kind", ["videos", "audios"])
@pytest.mark.parametrize("formatting", ["sharegpt", "alpaca"])
def test_a_declared_column_of_videos_is_known(kind, formatting, tmp_path):
    said = {"conversations": ask()} if formatting == "sharegpt" else {"instruction": "<image>Hm?", "output": "Yes."}
    rows = [{**said, "images": ["0.png"], "clips": clips} for clips in ([], None, ["a"])]
    entry = {"file_name": "data.json", "formatting": formatting, "columns": {"images": "images", kind: "clips"}}
    write(tmp_path, rows)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": entry}))
    dataset = load_dataset(tmp_path)
    assert len(dataset.samples) == 2 and f"{MOVING} ('clips')" in dataset.problems[0].reason


PNG = base64.b64encode(png(0)).decode()


def nested(value, depth):
    return {"x": [nested(value, depth - 2)]} if depth else value


def parts(**more):
    return [{"role": "user", "content": [{"type": "image", **more}, {"type": "text", "text": "Hm?"}]}, talk()[1]]


OTHERS = {
    "a second field": ({"image": "0.png", "image2": "1.png"}, "another picture under 'image2' (1.png)"),
    "a later picture": ({"image": "0.png", "image_after": "a/1.png"}, "another picture under 'image_after'"),
    "a mask": ({"image": "0.png", "mask_file_name": "0_mask.png"}, "another picture under 'mask_file_name'"),
    "one below": ({"image": "0.png", "meta": {"pictures": ["1.png"]}}, "another picture under 'pictures'"),
    "a video": ({"image": "0.png", "video_file": "a.mp4"}, f"{MOVING} ('video_file': a.mp4)"),
    "a sound": ({"image": "0.png", "file": "a.wav"}, f"{MOVING} ('file': a.wav)"),
    "a later picture that is elsewhere": ({"image": "0.png", "image_2": "https://x.org/1.jpg"}, "under 'image_2'"),
    "a name that an answer has": (
        {"image": "0.png", "image_path": "1.png", "conversations": ask(answer="1.png")},
        "another picture under 'image_path'",
    ),
    "a name without a suffix": ({"image": "0.png", "photo_file": "bare"}, "another picture under 'photo_file' (bare)"),
    "one of another folder": ({"image": "0.png", "image_path": "{folder}/1b.png"}, "picture under 'image_path'"),
    "one beside a picture without a name": ({"image": PNG, "image_name": "1.png"}, "picture under 'image_name'"),
    "a data URI": ({"image": "0.png", "shown": f"data:image/png;base64,{PNG}"}, "another picture under 'shown'"),
    "a data URI of any kind": ({"image": "0.png", "shown": f"data:;base64,{PNG}"}, "another picture under 'shown'"),
    "base64 behind a blank": ({"image": "0.png", "shown": f" {PNG}"}, "another picture under 'shown'"),
    "a name with a blank": ({"image": "0.png", "image_path": "1.png "}, "another picture under 'image_path'"),
    "a name with a question": ({"image": "0.png", "image_path": "1.png?w=9"}, "another picture under 'image_path'"),
    "one far down": ({"image": "0.png", "a": nested({"image": "1.png"}, 40)}, "another picture under 'image' (1.png)"),
    "bytes": ({"image": "0.png", "b64": "/9j/" + "A" * 200}, "another picture under 'b64'"),
    "two numbers": ({"image": "0.png", "conversations": ask("<|image_1|>\n<|image_2|>")}, "'<|image_2|>' in its text"),
    "a higher number": ({"image": "0.png", "conversations": ask("<image>\n<image2>\n")}, "by '<image2>' in its text"),
    "numbers from zero": ({"image": "0.png", "conversations": ask("[image 0] [image 1]")}, "by '[image 1]'"),
    "a tag twice": ({"image": "0.png", "conversations": ask("<ImageHere><ImageHere>")}, "by '<ImageHere>'"),
    "a name in a tag": ({"image": "0.png", "conversations": ask("<img>1.png</img>")}, "by '<img>1.png</img>'"),
    "in a message": (
        {"messages": [{**parts(image="0.png")[0], "images": ["1.png"]}, talk()[1]]},
        "another picture under 'images' (1.png)",
    ),
    "column and part": ({"images": ["0.png"], "messages": parts(image="0.png")}, "picture '0.png' both in"),
    "column and part, from another folder": ({"images": ["images/0.png"], "messages": parts(image="0.png")}, "both in"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_further_picture_is_not_left_unseen(name, tmp_path):
    more, said = OTHERS[name]
    row = json.loads(json.dumps(more).replace("{folder}", str(tmp_path / "elsewhere")))
    write(tmp_path, [])
    for file in (tmp_path / "images" / "a.wav", tmp_path / "images" / "bare", tmp_path / "elsewhere" / "1b.png"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png(1))
    (reason,) = reasons(tmp_path, row if "messages" in row else {"conversations": ask(), **row})
    assert said in reason and "\n" not in reason


def test_a_further_picture_in_a_table_is_not_left_unseen(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    picture = lambda number: {"bytes": png(number), "path": None}  # noqa: E731
    rows = [{"image": picture(0), "mask": picture(number), "conversations": ask()} for number in (0, 1)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    dataset = load_dataset(tmp_path / "data.parquet")
    assert len(dataset.samples) == 1 and "another picture under 'mask' (" in dataset.problems[0].reason


SAME = [
    {"image": "0.png", "image_path": "/data/coco/0.jpg", "image_id": 7, "image_size": [16, 12], "has_image": True},
    {"image": "0.png", "image_url": "https://x.org/9.jpg", "coco_url": "http://x.org/1.jpg", "image_source": "coco"},
    {"image": "0.png", "file_name": "COCO_000001.jpg", "source": "train.json", "caption_file": "a/9.json"},
    {"image": ["0.png", "1.png"], "conversations": ask("<|image_1|>\n<|image_2|>\n")},
    {"image": "0.png", "conversations": ask("<image>\nLook at <image 1>. ")},
    {"image": "0.png", "conversations": ask("<|vision_start|><|image_pad|><|image_pad|><|vision_end|>")},
    {"image": "0.png", "conversations": from_value("<image>\nIs it in b.mp4", "It is in image2.jpg")},
    {"image": ["0.png", "0.png"], "conversations": ask("<image><image>")},
    {"images": ["0.png"], "messages": parts()},
    {"images": ["1.png"], "messages": [*parts(image="0.png"), *talk()]},
]  # fmt: skip


@pytest.mark.parametrize("row", SAME, ids=str)
def test_what_names_no_other_picture_is_read_and_goes_back_as_it_was(row, tmp_path):
    rows = [row if "messages" in row else {"conversations": ask(), **row}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert dataset.samples[0].images and again(dataset, tmp_path / "out")[0] == rows


def test_the_remedy_leaves_the_row_its_own_pictures(tmp_path):
    row = {"images": ["0.png"], "messages": [{**talk()[0], "images": ["1.png"]}, talk()[1]]}
    (reason,) = reasons(tmp_path, row)
    assert "another picture under 'images' (1.png)" in reason and "--leave-out" not in reason
    (reason,) = reasons(tmp_path, {"image": "0.png", "conversations": ask(), "extra_images": [["1.png"]]})
    assert "as --leave-out extra_images does" in reason


def test_what_is_quoted_is_no_command_to_a_terminal(tmp_path):
    rows = [
        {"image": "0.png", "conversations": ask(), "image2": "\x1b[2J1.png"},
        {"conversations": ask("<video>\x1b[2Ja.mp4</video>")},
        {"image": {"<image_00>": "0.png"}, "conversations": talk("<image_01>"), "\u202e": 1},
    ]
    found = reasons(tmp_path, *rows)
    assert len(found) == 3 and all(reason.isprintable() for reason in found) and "\\x1b[2J" in found[0] + found[1]
    with pytest.raises(DispError) as error:
        load_dataset(write(tmp_path / "keys", [{"\x1b[2J\n": 1}]))
    assert str(error.value).isprintable() and r"found \x1b[2J\n; wanted" in str(error.value)
