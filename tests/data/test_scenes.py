"""Scenes: reproducible, disjoint, and with answers that are right."""

import json

import numpy as np
import pytest

from disp.data.nouns import NOUNS, NOUNS_BY_CATEGORY
from disp.data.scene_dataset import write_scenes
from disp.data.scenes import COLOURS, TASKS, ask, draw_scene, is_held_out, render, token_labels
from disp.draws import generator
from disp.errors import DispError


def test_the_vocabulary_is_large_and_varied():
    assert len(NOUNS) >= 100
    assert len(set(NOUNS.values())) == len(NOUNS)
    assert len(NOUNS_BY_CATEGORY) >= 5


def test_a_dataset_is_the_same_every_time_and_differs_by_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_scenes(tmp_path / name, 6, seed)
    contents = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*")) if path.is_file()] for name in "abc"
    }
    assert contents["a"] == contents["b"]
    assert not set(contents["a"]) & set(contents["c"]) - {(tmp_path / "a" / "ATTRIBUTION.txt").read_bytes()}
    assert "CC BY-SA 4.0" in (tmp_path / "a" / "ATTRIBUTION.txt").read_text()


def test_held_out_pairs_are_in_no_ordinary_scene_and_in_every_held_out_one():
    def pairs(scene):
        return [is_held_out(a, b) for i, a in enumerate(scene.nouns) for b in scene.nouns[:i]]

    assert not any(any(pairs(draw_scene(3, index))) for index in range(400))
    assert all(any(pairs(draw_scene(3, index, held_out=True))) for index in range(100))
    names = list(NOUNS)
    share = np.mean([is_held_out(a, b) for i, a in enumerate(names) for b in names[:i]])
    assert 0.04 < share < 0.06


def test_answers_are_right():
    draw = generator(0, "test")
    for index in range(150):
        scene = draw_scene(5, index)
        xs = [placed.x for placed in scene.objects]
        assert xs == sorted(xs)
        assert len(set(scene.nouns)) == len(scene.nouns)
        answers = {task: ask(scene, task, draw).response.lower() for task in TASKS}
        assert all(noun in answers["caption"] for noun in scene.nouns)
        assert scene.objects[int(np.argmin(xs))].noun in answers["left"]
        assert scene.objects[int(np.argmax(xs))].noun in answers["right"]
        assert scene.colour in answers["colour"]
        assert ["one", "two", "three"][len(scene.nouns) - 1] in answers["count"]


def test_yes_and_no_are_balanced_and_right():
    draw = generator(1, "test")
    said = []
    for index in range(300):
        scene = draw_scene(6, index)
        turn = ask(scene, "exists", draw)
        shown = any(f" {noun}" in turn.prompt.replace("?", " ") for noun in scene.nouns)
        said.append(turn.response.startswith("Yes"))
        assert said[-1] == shown, turn
    assert 110 < sum(said) < 190  # within 4.6 standard deviations of a half


def test_labels_say_what_is_painted_where():
    names = list(NOUNS)
    for index in range(20):
        scene = draw_scene(8, index)
        labels = token_labels(scene, 12)
        assert {names[label] for label in set(labels.flat) - {len(NOUNS)}} == set(scene.nouns)
        for placed in scene.objects:
            rows, columns = np.nonzero(labels == names.index(placed.noun))
            assert abs((columns.mean() + 0.5) * 8 - placed.x) < 10
            assert abs((rows.mean() + 0.5) * 8 - placed.y) < 10


def test_the_ground_has_its_colour():
    scene = draw_scene(9, 0)
    corner = np.asarray(render(scene))[token_labels(scene, 12).repeat(8, 0).repeat(8, 1) == len(NOUNS)].mean(0)
    nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - corner).sum())
    assert nearest == scene.colour


def test_options(tmp_path):
    dataset = write_scenes(
        tmp_path / "cars", 40, 0, must_show=["car"], must_show_share=0.5, never_show=["banana"], turns=2
    )
    rows = json.loads((tmp_path / "cars" / "data.json").read_text())
    assert 10 < sum("car" in row["nouns"] for row in rows) < 32
    assert not any("banana" in row["nouns"] for row in rows)
    assert all(len(sample.turns) == 2 for sample in dataset.samples)
    assert all("<image>" not in sample.turns[1].prompt for sample in dataset.samples)
    for mistake, message in (
        ({"must_show": ["carr"]}, "Did you mean 'car'"),
        ({"count": 0}, "at least 1"),
        ({"turns": 9}, "from 1 to 6"),
        ({"must_show_share": 2}, "must_show_share must be in"),
        ({"must_show": ["car", "dog"], "never_show": ["dog"]}, "both hold dog"),
        ({"never_show": list(NOUNS)[2:]}, "leaves 2 nouns"),
    ):
        with pytest.raises(DispError, match=message):
            write_scenes(tmp_path / "x", **mistake)
    with pytest.raises(DispError, match=r"cars holds data\.json"):
        write_scenes(tmp_path / "cars", 2)


def test_what_a_stopped_run_drew_is_not_left_beside_the_scenes(tmp_path):
    class Stopped(Exception):
        pass

    def stop(count):
        raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            write_scenes(tmp_path, 3, seed=1, progress=stop)
    (tmp_path / "images" / "000009.png").write_bytes(b"of a larger run")
    write_scenes(tmp_path, 2, seed=2)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["000000.png", "000001.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ATTRIBUTION.txt", "data.json", "images"]
    with pytest.raises(DispError, match="which is not of this run"):
        write_scenes(tmp_path, 2, seed=2)
