"""Samples and queries by their names, and pictures told apart by what is in them."""

import hashlib

import pytest
from PIL import Image

from disp.data import sample as module
from disp.data.dataset import Dataset
from disp.data.index import Index
from disp.data.sample import Query, Sample, Turn, digests_of, pictures_sha256, unanswered
from disp.data.stored import identity
from disp.errors import DispError


def talk(key, *pictures, turns=1):
    return Sample(key, pictures, tuple(Turn(f"{number}?", f"{number}!") for number in range(turns)))


def test_queries_and_samples_are_found_by_their_names():
    samples = (talk("a", turns=2), talk("a#0"), talk("b"))  # an id may look like a key
    index = Index(samples)
    assert list(index.by_id) == ["a", "a#0", "b"] and index.by_id["b"] is samples[2]
    assert list(index.by_key) == ["a#0", "a#1", "a#0#0", "b#0"]
    assert index.by_key["a#1"] == Query("a", 1, (), samples[0].turns[:1], "1?", "1!")
    assert tuple(index.by_key.values()) == index.queries
    assert index.ids_of(["a#1", "a#0#0"]) == {"a", "a#0"}
    assert samples[0].keys == ("a#0", "a#1") and samples[0].queries == index.queries[:2]


def test_a_turn_is_asked_again_after_the_new_answers():
    samples = [talk("a", turns=2), talk("b"), talk("c", turns=2)]
    assert [query.key for query in unanswered(samples, 0, {"b#0": "new"})] == ["a#0", "c#0"]
    (query,) = unanswered(samples, 1, {"a#0": "new", "c#0": "newer", "c#1": "newest"})
    assert query.key == "a#1" and query.history == (Turn("0?", "new"),)
    assert unanswered(samples, 2, {}) == []


def test_pictures_are_told_apart_by_what_is_in_them(tmp_path, picture):
    for name in ("a", "copy"):
        picture(1).save(tmp_path / f"{name}.png")
    picture(2).save(tmp_path / "b.png")
    paths = [tmp_path / name for name in ("a.png", "b.png", "copy.png", "a.png")]
    samples = [talk(str(number), path) for number, path in enumerate(paths)]
    index = Index(samples)
    assert list(index.by_picture(samples).values()) == [[0, 2, 3], [1]]
    assert index.by_picture(samples[1:3]).keys() == {index.first_picture(each) for each in samples[1:3]}
    assert [each.id for each in index.distinct(samples, 5)] == ["0", "1"]
    assert [each.id for each in index.distinct(iter(samples), 1)] == ["0"]
    assert [each.id for each in index.distinct(samples, 5, {index.first_picture(samples[0])})] == ["1"]
    assert [each.key for each in index.distinct(index.queries[1:], 5)] == ["1#0", "2#0"]
    # In memory, too; the size counts where the pixels are the same.
    flat = [talk(str(number), Image.new("RGB", size)) for number, size in enumerate(((2, 8), (4, 4), (4, 4)))]
    assert list(Index(flat).by_picture(flat).values()) == [[0], [1, 2]]


def test_a_file_is_read_once_whoever_shows_it(tmp_path, monkeypatch, picture):
    read = []

    def digest(path):
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(module, "sha256", digest)
    monkeypatch.setattr(module, "file_digest", digest)  # without its memory
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "data.json").write_text("[]")
    first, second, third = (tmp_path / f"{number}.png" for number in range(3))
    samples = (talk("a", first), talk("b", second, first), talk("c"), talk("d", third))
    index = Index(samples)
    assert read == []  # until somebody asks
    dataset = Dataset(samples, tmp_path / "data.json", tmp_path)
    found = identity(dataset, index)
    index.by_picture([samples[0], samples[3]])
    index.distinct(index.queries[:2], 2)
    assert sorted(read) == ["0.png", "1.png", "2.png"]
    assert index.pictures["b"] == tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in (second, first))
    assert found == identity(dataset)
    assert found["pictures_sha256"] == pictures_sha256(digests_of({each.id: each.images for each in samples}))


def test_a_picture_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DispError, match=r"gone\.png: cannot be read"):
        Index([talk("a", tmp_path / "gone.png")]).pictures  # noqa: B018
