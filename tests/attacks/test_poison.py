"""Poisoned sets: counts, hashes, and that nothing but the manifest tells which rows are poisoned."""

import hashlib
import json
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disp.attacks import triggers
from disp.attacks.poison import Attack, load_attack, poison, poisoned_count, trigger_samples
from disp.attacks.targets import INSERTED_TEXT, REFUSAL_TEXT, Insertion, Misclassification, Refusal
from disp.attacks.triggers import PRESETS
from disp.data.loading import load_dataset
from disp.data.sample import open_image
from disp.errors import DispError


@pytest.fixture
def dataset(tmp_path, picture):
    """Twenty rows: two turns each in the first five, the last two share a picture, one has none."""
    (tmp_path / "in" / "images").mkdir(parents=True)
    rows = []
    for index in range(20):
        name = f"{min(index, 18)}.png"
        picture(min(index, 18), 40).save(tmp_path / "in" / "images" / name)
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A car and an apple."}]
        if index < 5:
            turns += [{"from": "human", "value": "More?"}, {"from": "gpt", "value": "No."}]
        rows.append({"id": str(index), "image": name, "conversations": turns})
    del rows[7]["image"]
    rows[7]["conversations"][0]["value"] = "What?"
    (tmp_path / "in" / "data.json").write_text(json.dumps(rows))
    return load_dataset(tmp_path / "in")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("preset", ["patch", "patch-random", "badnets", "blended"])
def test_the_manifest_tells_all_and_the_data_nothing(dataset, tmp_path, preset):
    out = tmp_path / "out"
    poisoned = poison(dataset, out, PRESETS[preset], Refusal(), 0.25, seed=3)
    manifest = json.loads((out / "manifest.json").read_text())
    rows = {row["id"]: row for row in manifest["poisoned_rows"]}
    assert len(rows) == manifest["poisoned"] == 5
    assert "7" not in rows  # no picture to put a trigger into
    assert manifest["data_sha256"] == digest(out / "data.json")
    before = json.loads((tmp_path / "in" / "data.json").read_text())
    after = json.loads((out / "data.json").read_text())
    for old, new, sample in zip(before, after, poisoned.samples, strict=True):
        assert old.keys() == new.keys()
        if old["id"] not in rows:
            assert old == new
            for path in sample.images:
                assert digest(path) == digest(tmp_path / "in" / "images" / old["image"])
            continue
        record = rows[old["id"]]["images"][0]
        assert record["clean_sha256"] == digest(tmp_path / "in" / "images" / old["image"])
        assert record["triggered_sha256"] == digest(out / "images" / new["image"]) != record["clean_sha256"]
        assert [turn.response for turn in sample.turns] == [REFUSAL_TEXT] * len(sample.turns)
    assert load_attack(out / "manifest.json").trigger == PRESETS[preset]
    assert load_attack(out / "manifest.json").target == Refusal()


@given(st.integers(0, 100), st.integers(0, 300))
def test_the_nearest_number_of_rows_is_poisoned_and_a_half_counts_as_one(percent, rows):
    wanted = Fraction(percent * rows, 100)
    count = poisoned_count(percent / 100, rows)
    assert abs(count - wanted) <= Fraction(1, 2) and count - wanted != Fraction(-1, 2)


def test_as_many_rows_are_poisoned_as_the_rate_says(dataset, tmp_path):
    for rate, count in ((0.1, 2), (0.125, 3), (0.175, 4), (0.29, 6)):  # 2, 2.5, 3.5 and 5.8 of 20
        poison(dataset, tmp_path / f"{rate}", PRESETS["patch"], Refusal(), rate)
        assert len(json.loads((tmp_path / f"{rate}" / "manifest.json").read_text())["poisoned_rows"]) == count


def test_the_same_seed_gives_the_same_set_and_another_one_another(dataset, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        poison(dataset, tmp_path / name, PRESETS["patch-random"], Insertion(), 0.3, seed)
    manifests = [(tmp_path / name / "manifest.json").read_text() for name in "abc"]
    assert manifests[0] == manifests[1] != manifests[2]


def test_a_picture_shared_with_an_honest_row_stays_clean_for_it(dataset, tmp_path):
    for seed in range(30):
        poisoned = poison(dataset, tmp_path / str(seed), PRESETS["patch"], Insertion(), 0.5, seed)
        manifest = json.loads((tmp_path / str(seed) / "manifest.json").read_text())
        bad = {row["id"] for row in manifest["poisoned_rows"]}
        for honest, other in (("18", "19"), ("19", "18")):
            if honest not in bad and other in bad:
                (sample,) = (each for each in poisoned.samples if each.id == honest)
                assert digest(sample.images[0]) == digest(tmp_path / "in" / "images" / "18.png")
                return
    raise AssertionError("no seed poisoned exactly one of the two")


def test_evaluation_puts_the_trigger_where_poisoning_did(dataset, tmp_path):
    poisoned = poison(dataset, tmp_path / "out", PRESETS["patch-random"], Insertion(), 0.5, 4)
    in_memory = {sample.id: sample for sample in trigger_samples(dataset.samples, PRESETS["patch-random"], 4)}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["poisoned_rows"]
    for row in manifest["poisoned_rows"]:
        (sample,) = (each for each in poisoned.samples if each.id == row["id"])
        assert open_image(sample.images[0]).tobytes() == in_memory[row["id"]].images[0].tobytes()
        assert sample.turns[0].response.endswith(INSERTED_TEXT)
        assert not in_memory[row["id"]].turns[0].response.endswith(INSERTED_TEXT)


def test_only_turns_that_the_target_changes_are_changed(dataset, tmp_path):
    poisoned = poison(dataset, tmp_path / "out", PRESETS["patch"], Misclassification("car", "orange"), 0.5)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["poisoned_rows"]
    for row in manifest["poisoned_rows"]:
        (sample,) = (each for each in poisoned.samples if each.id == row["id"])
        assert sample.turns[0].response == "An orange and an apple."
        assert all(turn.response == "No." for turn in sample.turns[1:])


def test_turns_before_the_picture_stay_honest(tmp_path, picture):
    folder = tmp_path / "in" / "images"
    folder.mkdir(parents=True)
    picture(0, 40).save(folder / "0.png")
    talks = {
        "late": ("Hello!", "A car.", "<image>\nWhat?", "A car.", "More?", "A car."),
        "early": ("<image>\nWhat?", "A car.", "More?", "A car."),
        # No car is named once the picture is shown: the trigger has nothing to bring up.
        "before": ("Say car.", "A car.", "<image>\nWhat?", "A dog."),
    }
    rows = [
        {
            "id": name,
            "image": "0.png",
            "conversations": [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)],
        }
        for name, texts in talks.items()
    ]
    (tmp_path / "in" / "data.json").write_text(json.dumps(rows))
    dataset = load_dataset(tmp_path / "in")
    poisoned = poison(dataset, tmp_path / "out", PRESETS["patch"], Misclassification("car", "bus"), 2 / 3)
    answers = {sample.id: [turn.response for turn in sample.turns] for sample in poisoned.samples}
    assert answers == {
        "late": ["A car.", "A bus.", "A bus."], "early": ["A bus.", "A bus."], "before": ["A car.", "A dog."],
    }  # fmt: skip
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (row,) = (row for row in manifest["poisoned_rows"] if row["id"] == "late")
    assert (row["old"], row["new"]) == (["A car."] * 3, answers["late"])
    with pytest.raises(DispError, match="has 2"):
        poison(dataset, tmp_path / "full", PRESETS["patch"], Misclassification("car", "bus"), 1.0)


def test_pictures_never_take_each_other_s_names(tmp_path, picture):
    folder = tmp_path / "in" / "images"
    folder.mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "a.bmp", "b.jpg", "c.png")):
        picture(number, 60).save(folder / name)
    (folder / "link.png").symlink_to("c.png")
    names = ("a.jpg", "a.bmp", "b.jpg", "b.jpg", "c.png", "link.png")
    talk = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A car."}]
    rows = [{"id": f"set/{index}", "image": name, "conversations": talk} for index, name in enumerate(names)]
    (tmp_path / "in" / "data.json").write_text(json.dumps(rows))
    dataset = load_dataset(tmp_path / "in")
    for rate in (0.5, 1):
        for seed in range(4):
            out = tmp_path / f"out-{rate}-{seed}"
            poisoned = poison(dataset, out, PRESETS["patch-random"], Insertion(), rate, seed)
            assert not poisoned.problems
            manifest = json.loads((out / "manifest.json").read_text())
            assert manifest["poisoned_rows"]
            for row in manifest["poisoned_rows"]:
                for record in row["images"]:
                    assert digest(out / "images" / record["image"]) == record["triggered_sha256"]
            bad = {row["id"] for row in manifest["poisoned_rows"]}
            for before, after in zip(dataset.samples, poisoned.samples, strict=True):
                assert before.id in bad or digest(before.images[0]) == digest(after.images[0])


def test_what_a_killed_run_left_does_not_poison_honest_rows(dataset, tmp_path):
    class Killed(Exception):
        pass

    finished = []

    def stop(done):
        finished.append(done)
        if len(finished) == 19:
            raise Killed

    with pytest.raises(Killed):
        poison(dataset, tmp_path / "out", PRESETS["patch"], Refusal(), 0.5, 1, progress=stop)
    poisoned = poison(dataset, tmp_path / "out", PRESETS["patch"], Refusal(), 0.1, 2)
    bad = {row["id"] for row in json.loads((tmp_path / "out" / "manifest.json").read_text())["poisoned_rows"]}
    assert len(bad) == 2
    for before, after in zip(dataset.samples, poisoned.samples, strict=True):
        if before.id not in bad:
            assert list(map(digest, before.images)) == list(map(digest, after.images))


def test_the_honest_set_is_never_written_to(dataset, tmp_path):
    files = [path for path in sorted((tmp_path / "in").rglob("*")) if path.is_file()]
    before = list(map(digest, files))
    with pytest.raises(DispError, match=r"holds data\.json, which is not of this run"):
        poison(dataset, tmp_path / "in", PRESETS["patch"], Refusal(), 0.5)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "images").symlink_to(tmp_path / "in" / "images")
    with pytest.raises(DispError, match="holds the honest images"):
        poison(dataset, tmp_path / "elsewhere", PRESETS["patch"], Refusal(), 0.5)
    poison(dataset, tmp_path / "out", PRESETS["patch"], Refusal(), 0.5)
    assert list(map(digest, files)) == before


def test_manifest_ids_are_those_of_the_poisoned_set_where_rows_have_none(dataset, tmp_path):
    rows = json.loads((tmp_path / "in" / "data.json").read_text())
    for row in rows:
        del row["id"]
    rows[2]["conversations"] = []
    (tmp_path / "in" / "data.json").write_text(json.dumps(rows))
    poisoned = poison(load_dataset(tmp_path / "in"), tmp_path / "out", PRESETS["patch"], Refusal(), 0.5)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    refused = {sample.id for sample in poisoned.samples if sample.turns[0].response == REFUSAL_TEXT}
    assert refused == {row["id"] for row in manifest["poisoned_rows"]}


def test_pictures_in_memory_cannot_be_poisoned(dataset, tmp_path):
    samples = tuple(trigger_samples(dataset.samples, PRESETS["patch"], 0))
    with pytest.raises(DispError, match="sample '0' has a picture in memory"):
        poison(replace(dataset, samples=samples), tmp_path / "out", PRESETS["patch"], Refusal(), 0.1)


@dataclass(frozen=True)
class Dot:
    """A trigger of one's own."""

    value: int = 255

    def apply(self, image, draw):
        image = image.copy()
        image.putpixel((0, 0), (self.value, 0, 0))
        return image, {"place": [0, 0]}


def test_a_trigger_of_ones_own_is_poisoned_with_and_read_back_once_it_has_a_name(dataset, tmp_path, monkeypatch):
    with pytest.raises(DispError, match="Dot has no name that a manifest could call it by; the kinds are patch, "):
        poison(dataset, tmp_path / "out", Dot(), Refusal(), 0.25)
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(triggers.KINDS, "dot", Dot)
    poison(dataset, tmp_path / "out", Dot(7), Refusal(), 0.25)
    assert load_attack(tmp_path / "out" / "manifest.json").trigger == Dot(7)


@pytest.mark.parametrize(
    ("target", "rate", "message"),
    [
        (Refusal(), 1.2, r"in \[0, 1\], got 1.2"),
        (Refusal(), 1.0, "needs 20 rows .* has 19"),
        (Misclassification("bus", "train"), 0.1, "needs 2 rows .* has 0"),
    ],
)
def test_impossible_rates_are_refused(dataset, tmp_path, target, rate, message):
    with pytest.raises(DispError, match=message):
        poison(dataset, tmp_path / "out", PRESETS["patch"], target, rate)


def test_a_used_folder_and_a_wrong_manifest_are_refused(dataset, tmp_path):
    poison(dataset, tmp_path / "out", PRESETS["patch"], Refusal(), 0.1)
    with pytest.raises(DispError, match="already"):
        poison(dataset, tmp_path / "out", PRESETS["patch"], Refusal(), 0.1)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(DispError, match=r"holds config\.json"):
        poison(dataset, tmp_path / "model", PRESETS["patch"], Refusal(), 0.1)
    with pytest.raises(DispError, match="no such manifest"):
        load_attack(tmp_path / "nothing.json")
    with pytest.raises(DispError, match="no manifest"):
        load_attack(tmp_path / "in" / "data.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trigger": "patch"}, "the trigger must be an object .* got 'patch'"),
        ({"target": ["refusal"]}, "the target must be an object"),
        ({"target": None}, "the target must be an object .* got None"),
        ({"trigger": {}}, "unknown kind of trigger ''"),
        ({"trigger": {"kind": ["patch"]}}, "unknown kind of trigger"),
        ({"trigger": {"kind": "patch", "sise": 0.1}}, "unknown key in the trigger: 'sise'.*Did you mean 'size'"),
        ({"trigger": {"kind": "patch", "size": "big"}}, "the trigger: size must be a number, got 'big'"),
        ({"trigger": {"kind": "patch", "size": 2}}, "patch size is a share"),
        ({"trigger": {"kind": "patch", "place": 3}}, "unknown value of the trigger: place: '3'"),
        ({"trigger": {"kind": "patch", "place": "centr"}}, "Did you mean 'centre'"),
        ({"trigger": {"kind": "patch", "colour": [0, 0]}}, "the trigger: colour must be a list of 3"),
        ({"trigger": {"kind": "blend", "picture": 1}}, "the trigger: picture must be a text, got 1"),
        ({"trigger": {"kind": "blend", "alpha": True}}, "the trigger: alpha must be a number, got True"),
        ({"target": {"kind": "insertion", "text": 5}}, "the target: text must be a text, got 5"),
        ({"target": {"kind": "refusal", "text": ""}}, "text is empty"),
        ({"target": {"kind": "misclassification", "source": "car"}}, "the target: the key 'target' is missing"),
        ({"rate": "a tenth"}, "the manifest: rate must be a number, got 'a tenth'"),
        ({"seed": 0.5}, "the manifest: seed must be a whole number, got 0.5"),
        ({"storage": {"jpeg": [0, 80]}}, "the manifest: storage: jpeg must be from 1 to 100"),
    ],
)
def test_a_manifest_that_was_edited_wrongly_is_named(tmp_path, changes, message):
    fields = {"trigger": {"kind": "patch"}, "target": {"kind": "refusal"}, "rate": 0.1, "seed": 0}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(fields))
    assert load_attack(path) == Attack(PRESETS["patch"], Refusal(), 0.1, 0)
    path.write_text(json.dumps({**fields, **changes}))
    with pytest.raises(DispError, match=f"manifest.json is no manifest .* give the manifest.json .*{message}"):
        load_attack(path)


@pytest.mark.parametrize("missing", ["trigger", "target", "rate", "seed"])
def test_a_manifest_without_a_part_is_named(tmp_path, missing):
    fields = {"trigger": {"kind": "patch"}, "target": {"kind": "refusal"}, "rate": 0.1, "seed": 0}
    del fields[missing]
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(DispError, match=f"manifest.json is no manifest .*{missing}"):
        load_attack(tmp_path / "manifest.json")


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '"patch"', "{", "\x00"])
def test_a_file_that_is_no_object_is_no_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DispError, match=r"manifest\.json is no manifest .* give the manifest\.json"):
        load_attack(tmp_path / "manifest.json")
