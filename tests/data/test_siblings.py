"""How other trainers write their rows: each is read as it is meant, or set aside in a line that says what to do.

None that names a picture becomes a row of text.
"""

import base64
import bz2
import codecs
import gzip
import json

import pytest
from data.test_cases import again, write
from data.written import chat, from_value, png

from disp.data.loading import load_dataset
from disp.errors import DispError

Q = "Is there a lock?"
PNG = base64.b64encode(png(1)).decode()


def ask(image="<image>\n", answer="Yes."):
    return from_value(f"{image}{Q}", answer)


def user(content):
    return {"role": "user", "content": content}


YES = {"role": "assistant", "content": "Yes."}
TWO = ["0.png", "1.png"]
# Name: the row, the pictures it shows, and how its question begins.
READ = {
    "Bunny": ({"id": "1", "image": "0.png", "conversations": ask()}, [0], "<image>\n"),
    "InternVL, several pictures": (
        {"image": TWO, "width_list": [16, 16], "conversations": ask("Image-1: <image>\nImage-2: <image>\n")},
        [0, 1],
        "Image-1: <image>\nImage-2: <image>\n",
    ),
    "LLaVA-NeXT-Interleave": (
        {"sample_id": 5, "image": TWO, "conversations": ask("<image> <image>"), "choice_list": None},
        [0, 1],
        "<image> <image>",
    ),
    "MiniCPM-V, in another order": (
        {
            "image": {"<image_00>": "0.png", "<image_01>": "1.png"},
            "conversations": [user(f"<image_01><image_00>{Q}"), YES],
        },
        [1, 0],
        "<image><image>",
    ),
    "MiniCPM-V, the same twice": (
        {"image": {"<image_00>": "0.png"}, "conversations": [user(f"<image_00> and <image_00> {Q}"), YES]},
        [0, 0],
        "<image> and <image> ",
    ),
    "MiniCPM-V, one without a place": ({"image": {"<image>": "0.png"}, "conversations": [user(Q), YES]}, [0], ""),
    "PaliGemma": ({"image": "0.png", "prefix": Q, "suffix": "Yes."}, [0], ""),
    "CogVLM2": ({"image": "0.png", "conversations": [user(Q), YES]}, [0], ""),
    "Kimi, OpenAI": (
        {"messages": [user([{"type": "image_url", "image_url": {"url": "0.png"}}, {"type": "text", "text": Q}]), YES]},
        [0],
        "<image>",
    ),
    "OpenAI's newer types": (
        {
            "messages": [
                user([{"type": "input_image", "image_url": "0.png"}, {"type": "input_text", "text": Q}]),
                {"role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
            ]
        },
        [0],
        "<image>",
    ),
    "parts without a type": ({"messages": [user([{"image": "0.png"}, {"text": Q}]), YES]}, [0], "<image>"),
    "Idefics": (
        {
            "messages": [
                user([{"index": 0, "text": None, "type": "image"}, {"index": None, "text": Q, "type": "text"}]),
                {"role": "assistant", "content": [{"index": None, "text": "Yes.", "type": "text"}]},
            ],
            "images": ["0.png"],
        },
        [0],
        "<image>",
    ),
    "Gemma's speaker": (
        {"messages": [user(f"<image>{Q}"), {**YES, "role": "model"}], "images": ["0.png"]},
        [0],
        "<image>",
    ),
    "OpenAI's developer": (
        {"messages": [{"role": "developer", "content": "Be brief."}, user(f"<image>{Q}"), YES], "images": ["0.png"]},
        [0],
        "<image>",
    ),
    "speakers in capitals": (
        {"image": "0.png", "conversations": [{"from": "Human", "value": Q}, {"from": "GPT", "value": "Yes."}]},
        [0],
        "",
    ),
    "a system turn": (
        {"image": "0.png", "conversations": [{"from": "system", "value": "Be."}, *ask()]},
        [0],
        "<image>",
    ),
    "messages left empty": ({"image": "0.png", "conversations": ask(), "messages": []}, [0], "<image>"),
    "media left empty": ({"images": ["0.png"], "videos": [], "messages": [user(f"<image>{Q}"), YES]}, [0], "<image>"),
    "base64 alone": ({"image": PNG, "conversations": ask()}, [1], "<image>"),
    "base64 with other fields": (
        {"image": {"width": 16, "bytes": PNG, "path": "1.png", "license": None}, "conversations": ask()},
        [1],
        "<image>",
    ),
    "Phi-3's tag, with a picture": ({"image": "0.png", "conversations": ask("<|image_1|>\n")}, [0], "<|image_1|>"),
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read_and_written_back_as_it_was(name, tmp_path):
    row, pictures, beginning = READ[name]
    dataset = load_dataset(write(tmp_path / "in", [row]), strict=True)
    (sample,) = dataset.samples
    assert [file.read_bytes() for file in sample.images] == [png(number) for number in pictures]
    assert sample.turns[0].prompt.startswith(beginning) and sample.turns[0].prompt.endswith(Q)
    assert [turn.response for turn in sample.turns] == ["Yes."]
    rows, path = again(dataset, tmp_path / "out")
    assert rows == [row] and load_dataset(path).samples[0].turns == sample.turns


ASIDE = {
    "a name that is in no question": {
        "row": {"image": {"<image_00>": "0.png", "<image_01>": "1.png"}, "conversations": [user("<image_01> Hi"), YES]},
        "said": "image has the name <image_00>, which does not stand in a question; put it there",
    },
    "a tag without a name": {
        "row": {"image": {"<image_00>": "0.png"}, "conversations": [user("<image_00><image_07> Hi"), YES]},
        "said": "<image_07> stands in the text, but image has no such name; add the picture",
    },
    "a tag in an answer": {
        "row": {"image": {"<image>": "0.png"}, "conversations": [user("Draw."), {**YES, "content": "<image_00>"}]},
        "said": "an answer has a picture in it; models here answer in words: drop the row",
    },
    "Anthropic's source": {
        "row": {"messages": [user([{"type": "image", "source": {"data": PNG}}, {"type": "text", "text": Q}]), YES]},
        "said": "a part of type 'image' has its picture under 'source'; put the file name under 'image'",
    },
    "two system turns": {
        "row": {"image": "0.png", "conversations": [*[{"from": "system", "value": "Be."}] * 2, *ask()]},
        "said": "message 2 is from 'system', expected 'human'; questions and answers must follow each other",
    },
    "a tool": {
        "row": {"images": ["0.png"], "messages": [user("<image>"), YES, {"role": "tool", "content": "x"}, YES]},
        "said": "message 3 is from 'tool', expected 'user'",
    },
    "a chat as text": {
        "row": {"image": "0.png", "conversations": json.dumps(ask())},
        "said": "conversations holds text, and must be a list",
    },
    "a store": {
        "row": {"image": "langchao:s3://bucket/0.png", "conversations": ask()},
        "said": "lies in a store (langchao:s3://); download it and name the file",
    },
    "base64 that is none": {
        "row": {"image": f"{PNG[:-1]}!", "conversations": ask()},
        "said": "is not valid base64; give a file name",
    },
    "the key is another, with a placeholder": {
        "row": {"image_path": "0.png", "conversations": ask()},
        "said": "has no picture, but 'image_path' looks like one (0.png); name it under 'image'",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ASIDE)
def test_it_is_set_aside_and_says_why(name, tmp_path):
    good = {"id": "good", "image": "1.png", "conversations": ask()}
    dataset = load_dataset(write(tmp_path, [good, ASIDE[name]["row"]]))
    (problem,) = dataset.problems
    assert len(dataset.samples) == 1 and ASIDE[name]["said"] in problem.reason and "\n" not in problem.reason


TAGS = [
    "<IMAGE>", "<Image>", "<Image 1>", "<image/>", "< image >", "＜image＞", "&lt;image&gt;", "<image1>", "<picture>",
    "<frame>", "<|image|>", "<|image_1|>", "<image_soft_token>", "<start_of_image>", "<image_placeholder>", "<visual>",
    "<|vision_start|><|image_pad|><|vision_end|>", "<|media_begin|>image<|media_pad|>", "<|soi|>", "<im_patch>",
    "<Img><ImageHere></Img>", "<IMG_CONTEXT>", "[Image]", "[IMG]", "[image 2]", "{image}", "{{image_1}}",
    "<img src='a.png'/>", "![a](b.png)", "https://example.org/a.jpg", "s3://bucket/a.png?x=1", "/data/a.jpg",
    "../a.webp", "C:\\data\\a.jpg", "(<image>./</image>)", "data:image/png;base64,QUJD",
]  # fmt: skip
KEYS = [
    {"pic": "000123"}, {"img_id": 123}, {"media": ["0.png"]}, {"media": [{"kind": "x", "file": "0"}]},
    {"figure": "fig1.pdf"}, {"screenshot": "s1"}, {"src": "a/b.jxl"}, {"scan": "a/b.dcm"}, {"feature": "a/b.npy"},
    {"b64": PNG}, {"blob": png(1).hex()}, {"parts": [{"type": "image", "file": "0"}]}, {"Image": "0.png"},
    {"thumbnail": {"file": "x"}}, {"camelCaseImage": "x"}, {"userMedia": "x"},
    {"mime_type": "image/png", "content": "QUJD"},
]  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", ["question", "system message"])
def test_a_tag_of_any_kind_is_no_row_of_text(tag, place, tmp_path):
    row = {"conversations": ask(f"{tag}\n")}
    if place == "system message":
        row = {"conversations": [{"from": "system", "value": f"{tag}\nLook at it."}, *ask("")]}
    with pytest.raises(
        DispError,
        match=r"names a picture by .* name it under 'image'|<image> placeholders for 0|the system message holds",
    ):
        load_dataset(write(tmp_path, [row]))
    if place == "question":
        assert load_dataset(write(tmp_path / "shown", [{**row, "image": "0.png"}])).samples[0].images


@pytest.mark.parametrize("more", KEYS, ids=str)
def test_a_picture_under_any_key_is_no_row_of_text(more, tmp_path):
    with pytest.raises(DispError, match=r"has no picture, but .* looks like one"):
        load_dataset(write(tmp_path, [{**more, "conversations": ask("")}]))


TEXT = [
    "What is in photo.jpg?", "Write HTML with an iframe.", "Sort a List<Image> in Java.", "Is /tmp/a.jpg a good name?",
    "Compare a < b and c > d.", "Use <b>bold</b> and <imagine>.", "An array[image] in C", "f'{imagery}'", "a <- b -> c",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXT)
def test_words_about_pictures_are_words(text, tmp_path):
    row = {"conversations": from_value(text, "Yes."), "figurative": "a", "pick": "b", "source": "s3://bucket/a.jsonl"}
    assert load_dataset(write(tmp_path, [row]), strict=True).without_picture == 1


ENDLESS = ["![", "[ ", "{ ", "<a ", "<image", "&lt;", "/a.png? ", "a.png?", "data:image", "http://", "/9j/", "\n/x.pn"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ENDLESS)
def test_long_texts_are_looked_through_in_a_moment(text, tmp_path):
    endless = text * (200_000 // len(text))
    rows = [{"conversations": ask(endless)}, {"conversations": ask(""), "note": endless}, {"conversations": ask("")}]
    assert load_dataset(write(tmp_path, rows)).samples


ONE = {"id": "1", "image": "0.png", "conversations": ask()}
LINE = json.dumps(ONE)
BYTES = {
    "data.json": [codecs.BOM_UTF8 + f"[{LINE}]".encode(), f"[{LINE}]".encode("utf-16"), f"[\r\n{LINE}]\r\n".encode()],
    "data.jsonl": [codecs.BOM_UTF8 + LINE.encode() + b"\r\n", b"\n\n" + LINE.encode() + b"\n\n", LINE.encode()],
    "data.json.gz": [gzip.compress(codecs.BOM_UTF8 + f"[{LINE}]".encode())],
    "data.jsonl.gz": [gzip.compress(LINE.encode() + b"\r\n")],
}
WRONG = {
    "lines in UTF-16": ("data.jsonl", LINE.encode("utf-16"), "is not in UTF-8, and may be in UTF-16; save it as UTF-8"),
    "gzip under another name": ("data.json", gzip.compress(b"[]"), "is compressed with gzip; call it data.json.gz"),
    "Latin letters": ("data.json", f'["é", {LINE}]'.encode("latin-1"), "is not valid JSON .* mend the file"),
    "a comma too many": ("data.json", f"[{LINE},]".encode(), "is not valid JSON .* mend the file or write it again"),
    "rows below a key": ("data.json", f'{{"data": [{LINE}]}}'.encode(), "found dict with 'data'; write the list"),
    "InternVL's list": ("data.json", b'{"a": {"root": "x", "annotation": "a.jsonl"}}', "the file under 'annotation'"),
    "bzip2": ("data.json.bz2", bz2.compress(b"[]"), "must hold exactly one of data.json"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, each in BYTES.items() for place in range(len(each))]
)
def test_other_encodings_are_read(name, place, tmp_path):
    write(tmp_path, []), (tmp_path / "data.json").unlink()
    (tmp_path / name).write_bytes(BYTES[name][place])
    assert [sample.id for sample in load_dataset(tmp_path, strict=True).samples] == ["1"]


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_otherwise_is_named_with_the_remedy(name, tmp_path):
    file, content, said = WRONG[name]
    write(tmp_path, []), (tmp_path / "data.json").unlink()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DispError, match=said) as error:
        load_dataset(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def tar(path, members):
    import io
    import tarfile

    with tarfile.open(path, "w") as packed:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["a.npy", "a.mp4", "a.jxl", "a.bin"])
def test_a_member_that_is_not_understood_is_no_row_of_text(name, tmp_path):
    tar(tmp_path / "s.tar", {name: b"\0x", "a.json": json.dumps({"conversations": ask("")}).encode()})
    with pytest.raises(DispError, match="is no text and no picture that is understood; a picture is called jpg, png"):
        load_dataset(tmp_path)


def test_tar_files_beside_rows_are_not_guessed_at(tmp_path):
    tar(tmp_path / "images.tar", {"0.png": png(0)})
    (tmp_path / "train.jsonl").write_text(LINE)
    with pytest.raises(DispError, match=r"holds tar files and rows in train\.jsonl; give the one that is the dataset"):
        load_dataset(tmp_path)
    tar(tmp_path / "images.tar", {"a.png": png(0), "a.json": json.dumps({"conversations": ask()}).encode()})
    (tmp_path / "train.jsonl").rename(tmp_path / "sizes.json")
    (tmp_path / "sizes.json").write_text('{"images.tar": 1}')
    assert len(load_dataset(tmp_path).samples) == 1


def test_a_packed_shard_that_fills_the_memory_is_refused(tmp_path):
    tar(tmp_path / "s.tar", {f"{number}.txt": bytes(1 << 20) for number in range(70)})
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress((tmp_path / "s.tar").read_bytes()))
    (tmp_path / "s.tar").unlink()
    with pytest.raises(DispError, match=r"s\.tar\.gz unpacks to more than 200 times its size; unpack it yourself"):
        load_dataset(tmp_path)


def test_speakers_of_a_declared_set_are_what_it_says(tmp_path):
    rows = [{"conversations": chat(f"<image>{Q}", "Yes.", who="from", what="value", names=("model", "human"))}]
    tags = {"user_tag": "model", "assistant_tag": "human"}
    entry = {"file_name": "data.json", "formatting": "sharegpt", "columns": {"images": "images"}, "tags": tags}
    write(tmp_path, [{**rows[0], "images": ["0.png"]}])
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": entry}))
    assert load_dataset(tmp_path, strict=True).samples[0].turns[0].response == "Yes."
