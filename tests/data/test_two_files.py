"""A name that may mean two files, of which a trainer opens the one and an audit would look at the other."""

import json
import os

import pytest
from data.test_references import set_of, shown_by
from data.written import from_value, png

from disp.data.loading import load_dataset
from disp.data.saving import data_path, link_images, save_dataset
from disp.errors import DispError


def _fill(folder, **numbers):
    """Pictures, by their names and the number of what each shows."""
    for name, number in numbers.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))


# The name in the row, the files and what they show, and the picture that the row shows with --images of its folder.
TWO = {
    "a folder in the image folder": ("images/0.png", {"images/0.png": 0, "images/images/0.png": 1}, 0),
    "beside the image folder": ("0.png", {"0.png": 0, "images/0.png": 1}, 0),
    "by backslashes": ("images\\0.png", {"images/0.png": 0, "images/images/0.png": 1}, 0),
}


@pytest.mark.parametrize("case", TWO)
def test_a_name_of_two_files_that_differ_is_set_aside(case, tmp_path):
    name, files, shown = TWO[case]
    _fill(tmp_path / "set", **files, **{"good.png": 2})
    data = set_of(tmp_path / "set", name, "good.png")
    dataset = load_dataset(data)
    assert shown_by(dataset) == [png(2)]
    (problem,) = dataset.problems
    assert all(str(data.parent / each) in problem.reason for each in files)
    assert f"which differ; give --images {data.parent} if the second is meant" in problem.reason
    assert shown_by(load_dataset(data, data.parent, strict=True)) == [png(shown), png(2)]


def test_a_name_may_be_of_two_files_below_the_folder_that_is_given(tmp_path):
    _fill(tmp_path / "set", **{"images/0.png": 0, "images/images/0.png": 1})
    data = set_of(tmp_path / "set", "images/0.png")
    with pytest.raises(DispError, match="means two files"):
        load_dataset(data, tmp_path / "set" / "images")


def test_the_same_picture_in_two_places_is_one(tmp_path):
    _fill(tmp_path / "set", **{"0.png": 0, "images/0.png": 0, "images/1.png": 1})
    (tmp_path / "set" / "1.png").symlink_to("images/1.png")
    assert shown_by(load_dataset(set_of(tmp_path / "set", "0.png", "1.png"), strict=True)) == [png(0), png(1)]


def test_rows_beside_the_folder_of_the_pictures_may_mean_two_files(tmp_path):
    _fill(tmp_path / "set", **{"images/0.png": 0, "data/0.png": 1})
    (tmp_path / "set" / "data").mkdir(exist_ok=True)
    row = {"image": "0.png", "conversations": from_value("<image>?", "A.")}
    for part in range(2):
        (tmp_path / "set" / "data" / f"train-{part}-of-2.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DispError, match="means two files"):
        load_dataset(tmp_path / "set")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_names_in_metadata_are_relative_to_its_own_folder(name, tmp_path):
    _fill(tmp_path / "train", **{"0.png": 0, "images/0.png": 1, "images/1.png": 2})
    rows = [{"file_name": "0.png", "text": "A."}, {"file_name": "1.png", "text": "B."}]
    lines = "file_name,text\n0.png,A.\n1.png,B.\n" if name.endswith("csv") else "\n".join(map(json.dumps, rows))
    (tmp_path / "train" / name).write_text(lines)
    dataset = load_dataset(tmp_path)
    assert shown_by(dataset) == [png(0)]
    (problem,) = dataset.problems
    assert "'1.png' does not exist" in problem.reason
    path = data_path(dataset, tmp_path / "out")
    (tmp_path / "out").mkdir()
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    assert shown_by(load_dataset(path, strict=True)) == [png(0)]


def test_what_is_written_means_one_file(tmp_path):
    """A set with pictures in and beside ``images``, to whose folder a run folder's link ``images`` leads."""
    _fill(tmp_path / "set", **{"images/0.png": 0, "0.png": 1, "images/1.png": 2})
    data = set_of(tmp_path / "set", "images/0.png", "0.png", "images/1.png")
    dataset = load_dataset(data, tmp_path / "set", strict=True)
    (tmp_path / "out").mkdir()
    path = data_path(dataset, tmp_path / "out")
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    link_images(dataset, tmp_path / "out")
    assert shown_by(load_dataset(path, strict=True)) == [png(0), png(1), png(2)]
    # A trainer that joins them with the image folder opens the same.
    names = [row["image"] for row in json.loads(path.read_text())]
    opened = [open(os.path.join(tmp_path / "out" / "images", name), "rb").read() for name in names]
    assert opened == [png(0), png(1), png(2)] and names[1:] == ["0.png", "images/1.png"]


@pytest.mark.parametrize("below", ["", "images/"])
def test_a_name_that_goes_up_behind_a_link_is_set_aside(below, tmp_path):
    _fill(tmp_path / "set", **{f"{below}0.png": 0, f"{below}a/1.png": 0})
    _fill(tmp_path / "other", **{"0.png": 1, "k/1.png": 1})
    (tmp_path / "set" / below / "link").symlink_to(tmp_path / "other" / "k")
    names = [f"{below}a/../0.png", f"{below}gone/../0.png", f"{below}link/../0.png"]
    data = set_of(tmp_path / "set", *names)
    dataset = load_dataset(data)
    assert shown_by(dataset) == [png(0), png(0)]
    (problem,) = dataset.problems
    assert "link/../0.png' leads through a link and back by '..'" in problem.reason
    for name, picture in zip(names, (png(0), None, png(1)), strict=True):  # what the operating system opens
        if picture:
            assert (data.parent / name).read_bytes() == picture


def _as_uri(folder, *names):
    return set_of(folder, *(f"file://{folder.as_posix()}/{name}" for name in names))


def test_a_uri_is_the_file_of_that_very_name(tmp_path):
    folder = tmp_path / "set"
    _fill(folder, **{"a#1.png": 0, "b%20c.png": 1, "d e.png": 2, "f?g.png": 3, "h.png": 4})
    data = _as_uri(folder, "a#1.png", "b%20c.png", "d%20e.png", "f?g.png", "h.png?x=1#top")
    assert shown_by(load_dataset(data, strict=True)) == [png(number) for number in range(5)]


@pytest.mark.parametrize(("name", "other"), [("a%20b.png", "a b.png"), ("a.png#b.png", "a.png")])
def test_a_uri_of_two_files_is_set_aside(name, other, tmp_path):
    folder = tmp_path / "set"
    _fill(folder, **{name: 0, other: 1, "good.png": 2})
    data = _as_uri(folder, name, "good.png")
    dataset = load_dataset(data)
    assert shown_by(dataset) == [png(2)] and "means two files" in dataset.problems[0].reason
    (folder / other).write_bytes(png(0))
    assert shown_by(load_dataset(data, strict=True)) == [png(0), png(2)]


@pytest.mark.parametrize(
    "name", ["..", "../..", "./..", "..\\..", ".", "/", "file://[", "file://", "file:///", "file://x/[", "a/../.."]
)
@pytest.mark.parametrize("form", [lambda name: name, lambda name: {"path": name}, lambda name: [name]])
def test_a_name_that_is_no_file_is_set_aside_alone(name, form, tmp_path):
    _fill(tmp_path, **{"good.png": 2})
    rows = [{"image": each, "conversations": from_value("<image>?", "A.")} for each in (form(name), "good.png")]
    rows.append({**rows[1], "image2": name})
    (tmp_path / "train.json").write_text(json.dumps(rows))
    dataset = load_dataset(tmp_path)
    assert shown_by(dataset)[0] == png(2) and dataset.problems[0].place == "train.json:row 1"


@pytest.mark.parametrize(("name", "there"), [("0.PNG", "0.png"), ("a%20b.png", "a b.png"), ("x/0.Png", "x/0.png")])
def test_a_file_that_is_spelt_otherwise_is_named(name, there, tmp_path):
    _fill(tmp_path, **{there: 0})
    with pytest.raises(DispError, match=rf"does not exist in \S+, where '{there}' does; call one as the other"):
        load_dataset(set_of(tmp_path, name))
