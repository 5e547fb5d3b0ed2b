"""Files of triggered pictures: what Pillow reads in them, and that the trigger is still there."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from disp.attacks.poison import load_attack, poison, trigger_samples
from disp.attacks.storage import Storage
from disp.attacks.targets import Refusal
from disp.attacks.triggers import PRESETS
from disp.data.loading import load_dataset
from disp.data.sample import open_image
from disp.errors import DispError
from disp.evaluation.evaluate import evaluate

EXIF = Image.Exif()
EXIF[0x010F] = "a maker of cameras"
JPEG = {"format": "JPEG", "quality": 83, "subsampling": 0, "progressive": True, "exif": EXIF.tobytes()}
STORAGES = {"png": Storage(), "jpeg": Storage(jpeg=(60, 60)), "same": Storage(same=True)}


def honest_set(folder, pictures):
    """A set of one row for each picture, stored as told: name to the picture and what Pillow saves it with."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for name, (picture, options) in pictures.items():
        picture.save(folder / "images" / name, **options)
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A car."}]
        rows.append({"id": name, "image": name, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(rows))
    return load_dataset(folder)


def poisoned_files(dataset, out, storage, trigger="patch", rate=1.0, seed=0):
    """What the manifest says of each triggered picture, by the id of its row, and its file."""
    poison(dataset, out, PRESETS[trigger], Refusal(), rate, seed, storage=storage)
    rows = json.loads((out / "manifest.json").read_text())["poisoned_rows"]
    return {row["id"]: (row["images"][0], out / "images" / row["images"][0]["image"]) for row in rows}


@pytest.fixture
def smooth():
    """Pictures without a sharp edge, so that compression changes little of them."""

    def make(index):
        rows, columns = np.mgrid[0:64, 0:64]
        return Image.fromarray(np.stack([rows * 2 + index, columns * 2, rows + columns], -1).astype(np.uint8))

    return make


@pytest.mark.parametrize("kind", STORAGES)
def test_the_trigger_is_still_there(tmp_path, smooth, kind):
    dataset = honest_set(tmp_path / "in", {"a.jpg": (smooth(0), JPEG), "b.png": (smooth(9), {})})
    trigger = PRESETS["patch"]
    for name, (_, file) in poisoned_files(dataset, tmp_path / "out", STORAGES[kind]).items():
        clean = open_image(tmp_path / "in" / "images" / name)
        marked, _ = trigger.apply(clean, np.random.default_rng(0))
        stored, wanted, before = (np.asarray(each, dtype=float) for each in (open_image(file), marked, clean))
        inside = (wanted != before).any(-1)
        assert np.abs(stored - wanted)[inside].mean() < 0.1 * np.abs(before - wanted)[inside].mean()
        assert np.abs(stored - wanted)[~inside].mean() < 3


def test_jpeg_has_the_quality_that_the_manifest_says(tmp_path, smooth):
    dataset = honest_set(tmp_path / "in", {f"{number}.jpeg": (smooth(number), {}) for number in range(12)})
    files = poisoned_files(dataset, tmp_path / "out", Storage(jpeg=(40, 90)), rate=0.75)
    assert len({said["quality"] for said, _ in files.values()}) > 3
    for name, (said, file) in files.items():
        assert said["format"] == "JPEG" and 40 <= said["quality"] <= 90 and file.name == name
        reference = io.BytesIO()
        smooth(0).save(reference, format="JPEG", quality=said["quality"])
        with Image.open(file) as stored, Image.open(reference) as wanted:
            assert stored.format == "JPEG" and stored.quantization == wanted.quantization
    again = poisoned_files(dataset, tmp_path / "again", Storage(jpeg=(40, 90)), rate=0.75)
    assert [said for said, _ in again.values()] == [said for said, _ in files.values()]
    other = poisoned_files(dataset, tmp_path / "other", Storage(jpeg=(40, 90)), rate=0.75, seed=1)
    shared = files.keys() & other.keys()
    assert any(files[key][0]["quality"] != other[key][0]["quality"] for key in shared)


@pytest.mark.parametrize(
    "storage", [Storage(), Storage(jpeg=(30, 30)), Storage(jpeg=(10, 90)), Storage(same=True)], ids=str
)
def test_an_attack_is_measured_with_pictures_that_are_stored_as_the_planted_ones(tmp_path, smooth, storage):
    grey = smooth(2).convert("L")
    pictures = {"a.jpg": (smooth(0), JPEG), "b.png": (smooth(1), {}), "c.jpg": (grey, {"quality": 40})}
    dataset = honest_set(tmp_path / "in", pictures)
    files = poisoned_files(dataset, tmp_path / "out", storage, trigger="badnets", seed=5)
    attack = load_attack(tmp_path / "out" / "manifest.json")
    assert attack.storage == storage
    shown = {}

    def answer(model, batch):
        shown.update({query.sample_id: open_image(query.images[0]) for query in batch})
        return ["A car." for _ in batch]

    evaluate(None, dataset.samples, attack=attack, answer=answer, seed=5)  # the triggered pictures come last
    assert {key: picture.tobytes() for key, picture in shown.items()} == {
        key: open_image(file).tobytes() for key, (_, file) in files.items()
    }


def test_a_manifest_that_does_not_say_how_pictures_are_stored_is_of_png(tmp_path, smooth):
    dataset = honest_set(tmp_path / "in", {"a.jpg": (smooth(0), JPEG)})
    poisoned_files(dataset, tmp_path / "out", Storage(jpeg=(30, 30)))
    manifest = tmp_path / "out" / "manifest.json"
    fields = json.loads(manifest.read_text())
    del fields["storage"]
    manifest.write_text(json.dumps(fields))
    assert load_attack(manifest).storage == Storage()


def test_test_pictures_that_cannot_be_stored_the_same_are_named(tmp_path, smooth):
    dataset = honest_set(tmp_path / "in", {"a.webp": (smooth(0), {})})
    with pytest.raises(DispError, match=r"a\.webp is WEBP; "):
        trigger_samples(dataset.samples, PRESETS["patch"], 0, storage=Storage(same=True))
    # Those in memory have no format, and keep every pixel.
    held = [replace(each, images=(smooth(0),)) for each in dataset.samples]
    (same,), (kept,) = (
        trigger_samples(held, PRESETS["patch"], 0, storage=storage) for storage in (Storage(same=True), Storage())
    )
    assert same.images[0].tobytes() == kept.images[0].tobytes()


def test_a_picture_that_was_no_jpeg_is_renamed_and_takes_no_other_s_name(tmp_path, smooth):
    names = ("a.png", "b.png", "b.jpg")
    dataset = honest_set(tmp_path / "in", {name: (smooth(index), {}) for index, name in enumerate(names)})
    files = poisoned_files(dataset, tmp_path / "out", Storage(jpeg=(80, 80)))
    names = [file.name for _, file in files.values()]
    assert names[0] == "a.jpg" and len(set(names)) == 3
    assert all(name.endswith(".jpg") for name in names)


def test_the_same_format_makes_no_file_stand_out(tmp_path, smooth):
    grey = smooth(3).convert("L")
    pictures = {
        "a.jpg": (smooth(0), JPEG),
        "b.png": (smooth(1), {}),
        "c.bmp": (smooth(2), {}),
        "d.JPG": (grey, {"quality": 50}),
        "e.dat": (smooth(4), {"format": "JPEG", "subsampling": 2, "icc_profile": b"a profile"}),
    }
    dataset = honest_set(tmp_path / "in", pictures)
    files = poisoned_files(dataset, tmp_path / "out", Storage(same=True))
    assert {key: file.name for key, (_, file) in files.items()} == {key: key for key in pictures}
    for name, (said, file) in files.items():
        with Image.open(tmp_path / "in" / "images" / name) as honest, Image.open(file) as stored:
            assert stored.format == honest.format == said["format"]
            assert stored.mode == honest.mode and stored.size == honest.size
            if honest.format == "JPEG":
                assert stored.quantization == honest.quantization
                assert JpegImagePlugin.get_sampling(stored) == JpegImagePlugin.get_sampling(honest)
                for each in ("progressive", "exif", "icc_profile"):
                    assert stored.info.get(each) == honest.info.get(each)
    # Nothing but the answers differs in the data.
    before, after = (json.loads((tmp_path / each / "data.json").read_text()) for each in ("in", "out"))
    assert [row["image"] for row in before] == [row["image"] for row in after]


def test_a_coloured_trigger_on_a_grey_jpeg_keeps_its_colour(tmp_path, smooth):
    dataset = honest_set(tmp_path / "in", {"a.jpg": (smooth(3).convert("L"), {"quality": 90})})
    ((_, file),) = poisoned_files(dataset, tmp_path / "out", Storage(same=True), trigger="object").values()
    with Image.open(file) as stored:
        red, _, blue = (np.asarray(channel, dtype=float) for channel in stored.convert("RGB").split())
    assert np.abs(red - blue).max() > 50


def test_other_formats_are_named_before_anything_is_written(tmp_path, smooth):
    dataset = honest_set(tmp_path / "in", {"a.webp": (smooth(0), {})})
    with pytest.raises(DispError, match=r"a\.webp is WEBP; .* that is PNG, JPEG, MPO, BMP; store them as PNG or JPEG"):
        poison(dataset, tmp_path / "out", PRESETS["patch"], Refusal(), 1.0, storage=Storage(same=True))
    assert not (tmp_path / "out").exists()
    poison(dataset, tmp_path / "out", PRESETS["patch"], Refusal(), 1.0, storage=Storage(jpeg=(90, 90)))


@pytest.mark.parametrize("storage", [{"jpeg": (0, 80)}, {"jpeg": (90, 80)}, {"jpeg": (90, 101)}])
def test_qualities_are_checked(storage):
    with pytest.raises(DispError, match="jpeg must be from 1 to 100, the lower number first, got"):
        Storage(**storage)
    with pytest.raises(DispError, match="not both"):
        Storage(jpeg=(80, 80), same=True)
