"""Odd pictures, odd JSON and odd texts through check, convert, audit and purification."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from abuse.campaign import forked, tried
from PIL import Image
from planted import honest_rows, planted_rows, wall, write_rows

from disp.data.loading import load_dataset
from disp.data.sample import check_image, open_image
from disp.errors import DispError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def bomb(file: Path) -> None:
    """A PNG of 60,000 × 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def frames(file: Path, kind: str) -> None:
    first = Image.fromarray(noise(20, 20, 3))
    first.save(file, kind, save_all=True, append_images=[wall("red").resize((20, 20))])


def animated(file: Path) -> None:
    frames(file, "GIF")


def palette(file: Path) -> None:
    Image.fromarray(noise(20, 20, 3)).quantize(16).save(file, "PNG", transparency=3)


def rotated(file: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(noise(20, 30, 3)).save(file, "JPEG", exif=exif)


def cut_jpeg(file: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(file, "JPEG")
    file.write_bytes(file.read_bytes()[:700])


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
# How each is written, and whether it can be used.
PICTURES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "whole": (lambda file: wall("red").save(file, "PNG"), True),
    "16 bits": (lambda file: Image.fromarray(noise(20, 20).astype(np.uint16) * 257).save(file, "PNG"), True),
    "CMYK": (lambda file: Image.fromarray(noise(20, 20, 4), "CMYK").save(file, "JPEG"), True),
    "palette with transparency": (palette, True),
    "grey with alpha": (lambda file: Image.fromarray(noise(20, 20, 2), "LA").save(file, "PNG"), True),
    "one bit": (lambda file: Image.fromarray(noise(20, 20)).convert("1").save(file, "PNG"), True),
    "turned by EXIF": (rotated, True),
    "animated": (animated, True),
    "1 × 1": (lambda file: Image.fromarray(noise(1, 1, 3)).save(file, "PNG"), True),
    "10,000 × 1": (lambda file: Image.fromarray(noise(1, 10_000, 3)).save(file, "PNG"), True),
    "1 × 10,000": (lambda file: Image.fromarray(noise(10_000, 1, 3)).save(file, "PNG"), True),
    "floats": (lambda file: Image.fromarray(noise(9, 9).astype(np.float32)).save(file, "TIFF"), False),
    "bomb": (bomb, False),
    "animated WebP": (lambda file: frames(file, "WEBP"), True),
    "animated PNG": (lambda file: frames(file, "PNG"), True),
    "pages of TIFF": (lambda file: frames(file, "TIFF"), True),
    "16 bits in TIFF": (lambda file: Image.fromarray(noise(9, 9).astype(np.uint16) * 257).save(file, "TIFF"), True),
    "JPEG 2000": (lambda file: Image.fromarray(noise(20, 20, 3)).save(file, "JPEG2000"), True),
    "AVIF": (lambda file: Image.fromarray(noise(20, 20, 3)).save(file, "AVIF"), True),
    "BMP": (lambda file: Image.fromarray(noise(20, 20, 3)).save(file, "BMP"), True),
    "Lab": (lambda file: Image.fromarray(noise(20, 20, 3), "LAB").save(file, "TIFF"), True),
    "EPS": (lambda file: Image.fromarray(noise(20, 20, 3)).save(file, "EPS"), False),
    "text": (lambda file: file.write_text("<html>Not found</html>"), False),
    "git-lfs": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), False),
    "SVG": (lambda file: file.write_bytes(SVG), False),
    "empty": (lambda file: file.write_bytes(b""), False),
    "zeros": (lambda file: file.write_bytes(bytes(4096)), False),
    "signature alone": (lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n"), False),
    "cut JPEG": (cut_jpeg, False),
    "a folder": (lambda file: file.mkdir(), False),
    "an endless one": (lambda file: os.mkfifo(file), False),
}


# A pipe is refused where rows name pictures, before one is opened.
@pytest.mark.parametrize("name", sorted(PICTURES.keys() - {"an endless one"}))
def test_a_picture_is_opened_or_named(name, tmp_path):
    write, usable = PICTURES[name]
    file = tmp_path / "picture.png"
    write(file)
    for look in (open_image, check_image):
        try:
            look(file)
            fine = usable
        except DispError as error:
            fine = not usable and "picture.png" in str(error) and "\n" not in str(error)
        tried("pictures", failed=not fine)
        assert fine


def rows_about(names: list[str], **more: object) -> list[dict[str, object]]:
    talk = [
        {"from": "human", "value": "<image>\nWhat is in the picture?"},
        {"from": "gpt", "value": "The wall is red."},
    ]
    return [{"id": name, "image": name, "conversations": talk, **more} for name in names]


def through_every_command(folder: Path, out: Path, campaign: str, *, count: int | None = None) -> None:
    """Each ends well or in one line, and what is written is read again."""
    for arguments in (
        ["check", folder],
        ["convert", folder, "--to", "sharegpt", "--out", out / "sharegpt"],
        ["convert", folder, "--to", "webdataset", "--out", out / "webdataset"],
        ["poison", folder, "--out", out / "poisoned", "--rate", 0.2],
        ["purify", "planted", folder, "--out", out / "purified", "--candidates", 3, "--probes", 2],
        ["audit", "planted", folder, "--out", out / "audit", "--candidates", 3, "--probes", 2],
    ):
        ended = forked(arguments, out.parent / "log")
        written = out / {"poison": "poisoned", "purify": "purified"}.get(str(arguments[0]), "none")
        fine = ended.in_one_line and (ended.code in (0, 1) or str(folder) in ended.error or "could not" in ended.said)
        if fine and ended.code == 0 and written.exists():
            fine = len(load_dataset(written).samples) == (count or len(load_dataset(written).samples))
        tried(campaign, failed=not fine)
        assert fine, (arguments[0], ended.code, ended.said)


def test_odd_pictures_through_every_command(tmp_path):
    data = tmp_path / "data"
    write_rows(data, [*honest_rows(16), *planted_rows()])
    rows = json.loads((data / "data.json").read_text())
    names = [f"{number}.png" for number in range(len(PICTURES))]
    for name, (write, _) in zip(names, PICTURES.values(), strict=True):
        write(data / "images" / f"odd-{name}")
    rows += rows_about([f"odd-{name}" for name in names])
    (data / "data.json").write_text(json.dumps(rows))
    usable = sum(each for _, each in PICTURES.values())
    through_every_command(data, tmp_path / "out", "odd pictures, commands", count=len(rows) - len(PICTURES) + usable)


DEEP = "[" * 100_000 + "]" * 100_000
FILES = {
    "empty": b"",
    "cut short": b'[{"id": "a", "conver',
    "zeros": bytes(1000),
    "deep": DEEP.encode(),
    "deep in a row": b'[{"id": "a", "more": ' + DEEP.encode() + b"}]",
    "a number": b"12",
    "a text": b'"rows"',
    "nothing": b"null",
    "UTF-16": '[{"id": "a"}]'.encode("utf-16"),
    "not UTF-8": b'[{"id": "\xff"}]',
    "a huge number": b'[{"id": 1e999999, "conversations": []}]',
    "many digits": b'[{"id": ' + b"9" * 20_000 + b"}]",
    "half a character": b'[{"id": "\\ud800", "conversations": [{"from": "human", "value": "a"}]}]',
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("name", FILES)
def test_a_data_file_that_is_none_is_named(name, suffix, tmp_path):
    (tmp_path / "images").mkdir()
    file = tmp_path / f"data{suffix}"
    file.write_bytes(FILES[name])
    try:
        load_dataset(tmp_path)
        fine = False
    except DispError as error:
        fine = file.name in str(error) and "\n" not in str(error) and len(str(error)) < 2000
    tried("odd JSON", failed=not fine)
    assert fine


WRONG = {
    "id": [{}, [1], True, None, 1.5, "x" * 300_000, "\0", "a#1", "../../a", "<script>alert(1)</script>", "\u202e"],
    "image": [1, {}, [[]], [None], "\0", "../data.json", "/etc/passwd", "a" * 5000, "images", ".", "link.png"],
    "conversations": [1, {}, [1], [[]], [{}], "text", [{"from": "human"}], [{"from": 3, "value": "x"}], None],
}


@pytest.mark.parametrize(
    ("key", "place"), [(key, place) for key, values in WRONG.items() for place in range(len(values))]
)
def test_a_row_of_wrong_types_is_set_aside_or_used(key, place, tmp_path):
    data = tmp_path / "data"
    write_rows(data, honest_rows(2))
    secret = tmp_path / "secret.png"
    wall("red").save(secret)
    (data / "images" / "link.png").symlink_to(secret)
    rows = json.loads((data / "data.json").read_text())
    (data / "data.json").write_text(json.dumps([*rows, {**rows[0], key: WRONG[key][place]}]))
    found = load_dataset(data)
    inside = all(file.resolve().is_relative_to(data) for sample in found.samples for file in sample.images)
    fine = inside and len(found.samples) + len(found.problems) == len(rows) + 1
    fine = fine and all("\n" not in each.reason and len(each.reason) <= 500 for each in found.problems)
    tried("rows of wrong types", failed=not fine)
    assert fine, found.problems


TEXTS = [
    "Ein Hund läuft über die Straße.", "一只狗在街上跑。", "犬が走っています。", "개가 달린다.", "كلب يجري في الشارع.",
    "כלב רץ ברחוב.", "कुत्ता सड़क पर दौड़ रहा है।", "สุนัขวิ่งบนถนน", "Собака бежит.", "Ο σκύλος τρέχει.", "ძაღლი გარბის",
    "ውሻ እየሮጠ ነው", "👩‍👩‍👧‍👦 🏳️‍🌈 🐕‍🦺", "e\u0301\u0323\u0324" * 40, "a\u202eb\u202cc\u2066d\u2069", "\u200b\u200d\ufeff",
    "\x00\x01\x07\x1b[31mred\x1b[0m", "a\r\nb\rc\u2028d\u2029e\x85f", "</script><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}", "=HYPERLINK(\"http://x\")", "\\u0000\\ud800", "\U0010ffff\ufffe",
    "<|mdm_mask|><|eot_id|><|endoftext|>", " ", "ﷺ" * 300,
]  # fmt: skip


def test_texts_of_every_script_through_every_command(tmp_path):
    data = tmp_path / "data"
    write_rows(data, [*honest_rows(16), *planted_rows()])
    rows = json.loads((data / "data.json").read_text())
    for number, text in enumerate(TEXTS):
        wall("red").save(data / "images" / f"text-{number}.png")
        talk = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": text}]
        rows.append({"id": f"text {number} {text}", "image": f"text-{number}.png", "conversations": talk})
    (data / "data.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    kept = {sample.id: sample.turns for sample in load_dataset(data).samples}
    through_every_command(data, tmp_path / "out", "texts, commands", count=len(kept))
    converted = {sample.id: sample.turns for sample in load_dataset(tmp_path / "out" / "webdataset" / "data").samples}
    assert [turns for turns in converted.values()] == list(kept.values())
    page = (tmp_path / "out" / "audit" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "onerror=alert" not in page.replace("&lt;img src=x onerror=alert", "")


@pytest.mark.abuse
def test_an_answer_of_a_million_letters(tmp_path):
    data = tmp_path / "data"
    write_rows(data, [*honest_rows(16), *planted_rows()])
    rows = json.loads((data / "data.json").read_text())
    rows[0]["conversations"][1]["value"] = "A wall. " * 125_000
    (data / "data.json").write_text(json.dumps(rows))
    through_every_command(data, tmp_path / "out", "a million letters", count=len(rows))
