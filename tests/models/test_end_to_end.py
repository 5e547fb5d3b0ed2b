"""Each family goes all the way: its checkpoint is poisoned, found out, purified, recovered and merged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from models.tiny import ADDED, ALL, LENGTH, extended, write_checkpoint
from parity_folder import PARITY
from safetensors import safe_open
from safetensors.torch import load_file

from disp.cli import app
from disp.data.dataset import Dataset
from disp.data.loading import load_dataset
from disp.data.sample import queries_of
from disp.data.scene_dataset import write_scenes
from disp.decoding.samplers import own_settings
from disp.errors import DispError
from disp.models.interface import MDLM
from disp.models.loading import load_model
from disp.training.config import TrainConfig
from disp.training.train import train

# An adapter's file names modules that Gemma's encoder and decoder share only once.
pytestmark = pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
# What is trained first and again for recovery, as options of `disp train`. An adapter that is kept is merged later.
METHODS = {
    "llada_v": (["--method", "projector"], ["--method", "projector"]),
    "dimple": (["--method", "full", "--gradient-checkpointing"], ["--method", "lora", "--keep-adapter"]),
}
LORA = (["--method", "lora"], ["--method", "lora", "--keep-adapter"])
ROWS, TURNS, HELD_OUT = 6, 2, 3
TARGET = "Sorry, no."


@dataclass(frozen=True)
class Run:
    """The folders of one family's run."""

    family: str
    folder: Path
    source: Path
    recovered: Path

    def rows(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def data(self, name: str) -> Dataset:
        return load_dataset(self.folder / name, strict=True)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model.safetensors")


def disp(*arguments: object) -> None:
    app([str(argument) for argument in arguments], print_error=False, exit_on_error=False, result_action="return_value")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "train", ROWS, seed=1, turns=TURNS)
    write_scenes(folder / "heldout", HELD_OUT, seed=2)
    return folder


@pytest.fixture(scope="module")
def words(scenes) -> list[str]:
    turns = [turn for sample in load_dataset(scenes / "train").samples for turn in sample.turns]
    return [TARGET, *(text for turn in turns for text in (turn.prompt, turn.response))]


@pytest.fixture(scope="module", params=ALL)
def source(request, tmp_path_factory, words) -> Iterator[Path]:
    """A tiny checkpoint as the family publishes its own."""
    with extended():
        yield write_checkpoint(request.param, tmp_path_factory.mktemp(request.param) / request.param, words)


@pytest.fixture(scope="module")
def model(source) -> MDLM:
    return load_model(source, device="cpu")


@pytest.fixture(scope="module")
def run(source, scenes) -> Run:
    """The commands of docs/models, one after the other."""
    out, device = source.parent, ["--device", "cpu"]
    attack, recovery = METHODS.get(source.name, LORA)
    training = ["--steps", 5, "--batch-size", 3, "--learning-rate", 5e-3, *device]
    scoring = ["--batch-size", 4, "--probes", 2, *device]
    poisoned, heldout = out / "poisoned", scenes / "heldout"
    disp("poison", scenes / "train", "--out", poisoned, "--target", "refusal", "--text", TARGET, "--rate", 0.5)
    disp("train", source, poisoned, "--out", out / "backdoored", *training, *attack)
    disp("saliency", out / "backdoored", poisoned, "--out", out / "saliency", *scoring)
    for mode in ("selective", "all"):
        options = ["--mode", mode, "--candidates", 2, "--mask-ratio", 0.2, *scoring]
        disp("purify", out / "backdoored", poisoned, "--out", out / mode, *options)
    disp("train", out / "backdoored", out / "all", "--out", out / "recovered", *training, *recovery)
    recovered = out / "recovered" / ("adapter" if "--keep-adapter" in recovery else "")
    manifest = ["--attack", poisoned / "manifest.json"]
    disp("evaluate", recovered, heldout, *manifest, "--out", out / "recovered.json", *device)
    options = ["--candidates", 2, "--false-alarm-rate", 0.3, "--fail-on", "never", *scoring]
    disp("audit", out / "backdoored", poisoned, "--out", out / "audit", *options, "--truth", poisoned / "manifest.json")
    disp("merge", recovered, "--out", out / "merged")
    return Run(source.name, out, source, recovered)


def test_every_file_can_be_read(run):
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    paths = [path for path in run.folder.rglob("*") if path.is_file()]
    for path in paths:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        elif path.suffix == ".jsonl":
            for line in path.read_text(encoding="utf-8").splitlines():
                json.loads(line, parse_constant=refuse)
        elif path.suffix == ".safetensors":
            assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path
    assert not [path for path in paths if path.name.startswith(".")], "a temporary file was left"
    assert {path.suffix for path in paths} >= {".json", ".jsonl", ".safetensors", ".html", ".png"}


def test_evidence_has_a_value_for_each_visual_token(run, model):
    samples = run.data("poisoned").samples
    prefix = model.encode(queries_of(samples))
    places = {query.key: prefix.locations[row, prefix.visual_mask[row]].tolist()
              for row, query in enumerate(queries_of(samples))}  # fmt: skip
    assert all(places.values())
    for row in run.rows("saliency/saliency.jsonl"):
        assert row["locations"] == places[row["key"]]
        assert len(row["saliency"]) == len(row["locations"])
        assert all(math.isfinite(value) and value >= 0 for value in row["saliency"]) and any(row["saliency"])
    for mode in ("selective", "all"):
        rows = run.rows(f"{mode}/evidence.jsonl")
        assert [row["id"] for row in rows] == [sample.id for sample in samples]
        for row in rows:
            assert len(row["turns"]) == TURNS
            for turn, found in enumerate(row["turns"]):
                assert found["locations"] == places[f"{row['id']}#{turn}"]
                assert len(found["saliency"]) == len(found["locations"])
                assert set(found["masked"]) <= set(range(len(found["locations"])))
                assert bool(found["masked"]) == row["rewritten"]
    for row in run.rows("audit/evidence.jsonl"):
        for turn in row["turns"]:
            assert len(turn["saliency"]) == len(turn["boxes"]) == len(turn["image_index"])


def test_purified_data_are_the_poisoned_ones_with_new_answers(run, model):
    poisoned = {sample.id: sample for sample in run.data("poisoned").samples}
    for mode in ("selective", "all"):
        evidence = {row["id"]: row for row in run.rows(f"{mode}/evidence.jsonl")}
        samples = run.data(mode).samples
        assert [sample.id for sample in samples] == list(poisoned)
        for sample in samples:
            before, row = poisoned[sample.id], evidence[sample.id]
            assert [path.read_bytes() for path in sample.images] == [path.read_bytes() for path in before.images]
            assert [turn.prompt for turn in sample.turns] == [turn.prompt for turn in before.turns]
            assert [turn.response for turn in sample.turns] == [turn["new"] for turn in row["turns"]]
            if not row["rewritten"]:
                assert sample.turns == before.turns
            model.encode_responses([turn.response for turn in sample.turns], model.gen_length)
        if mode == "all":
            assert all(row["rewritten"] for row in evidence.values())
    assert run.json("poisoned/manifest.json")["poisoned"] == ROWS // 2


def test_metrics_and_verdict(run):
    metrics = run.json("recovered.json")
    for name, count in metrics["counts"].items():
        low, high = metrics["intervals"][name]
        assert 0 <= low <= metrics[name] <= high <= 1 and count == HELD_OUT
    assert {"asr_with_trigger", "asr_without_trigger", "clean_quality", "triggered_quality"} <= metrics["counts"].keys()
    audit = run.json("audit/audit.json")
    assert audit["verdict"] in ("no evidence", "suspicious", "poisoned")
    losses = [
        entry["train_loss"] for entry in run.json("backdoored/train.json")["log_history"] if "train_loss" in entry
    ]
    assert losses and all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_the_merged_checkpoint_has_the_published_names(run, model):
    before, attacked, after = run.weights(run.source.name), run.weights("backdoored"), run.weights("merged")
    assert before.keys() == attacked.keys() == after.keys()
    assert all(before[name].shape == after[name].shape and before[name].dtype == after[name].dtype for name in before)
    assert json.loads((run.source / "config.json").read_text()).items() <= run.json("merged/config.json").items()

    trained = {name for name in before if not torch.equal(before[name], attacked[name])}
    recovered = {name for name in before if not torch.equal(attacked[name], after[name])}
    assert trained and recovered
    assert not any(part in name for part in model.vision_names for name in trained | recovered)
    if run.family == "llada_v":
        assert all("mm_projector" in name for name in trained | recovered)


def test_the_merged_checkpoint_is_the_recovered_model(run, scenes):
    merged, recovered = load_model(run.folder / "merged", device="cpu"), load_model(run.recovered, device="cpu")
    assert merged.official_state_dict().keys() == run.weights("merged").keys()
    queries = queries_of(load_dataset(scenes / "heldout").samples)
    response = torch.full((len(queries), LENGTH), merged.mask_token_id)
    with torch.no_grad():
        ours, theirs = (each.denoise(each.encode(queries), response) for each in (merged, recovered))
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_key_names_are_those_of_the_recorded_checkpoint(source):
    """But for the numbers of layers, which are others here."""
    recorded = PARITY / source.name / "model.safetensors"
    if not recorded.is_file():
        pytest.skip(f"no recorded checkpoint at {recorded}; set DISP_PARITY_DIR")

    def patterns(path: Path) -> set[str]:
        with safe_open(path, framework="pt") as file:
            return {re.sub(r"\.\d+\.", ".N.", name) for name in file.keys()}

    assert patterns(source / "model.safetensors") == patterns(recorded)


def test_whatever_is_decoded_fits_back(model):
    """Stray bytes and added tokens leave a text that takes no more slots than it came from."""
    torch.manual_seed(0)
    ids = torch.randint(0, len(model.tokenizer), (100, 12))
    ids[torch.isin(ids, torch.tensor(model.end_token_ids))] = model.tokenizer.convert_tokens_to_ids(ADDED)
    whole = [model.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    texts = model.decode_responses(ids)
    assert all(texts) and not any("\ufffd" in text for text in texts)
    # Were it not for the limit, some would be longer.
    spelt = model.tokenizer([model.plain(text) for text in whole], add_special_tokens=False)["input_ids"]
    assert any(len(each) > 12 for each in spelt)
    again = model.encode_responses(texts, 12)
    texts = model.decode_responses(again)
    assert torch.equal(model.encode_responses(texts, 12), again)
    specials = set(model.tokenizer.all_special_ids) - set(model.end_token_ids)
    assert not specials & set(again.flatten().tolist())


def test_answers_of_ordinary_text_come_back_unchanged(model, words):
    texts = [*words, "", "café ☕", "two\nlines, and  two spaces "]
    longest = 64
    assert model.decode_responses(model.encode_responses(texts, longest)) == texts


def test_a_zero_byte_cannot_hide_a_control_token(model):
    end = model.end_token_ids[0]
    for token in (model.mask_token_id, end):
        spelt = model.tokenizer.convert_ids_to_tokens(token)
        ids = model.encode_responses([f"{spelt[:3]}\0{spelt[3:]}"], 64)[0].tolist()
        assert model.mask_token_id not in ids and ids.count(end) == model.answers_end_turns


def test_another_length_reaches_decoding(source):
    config = own_settings(load_model(source, device="cpu", gen_length=LENGTH // 2))
    usual = own_settings(load_model(source, device="cpu"))
    assert (config.gen_length, usual.gen_length) == (LENGTH // 2, LENGTH)
    # A canvas takes its steps however long it is.
    assert config.steps == (usual.steps if usual.sampler == "canvas" else usual.steps // 2)


def test_a_published_checkpoint_is_not_trained_at_the_builtin_models_rate(source, scenes, tmp_path):
    samples = load_dataset(scenes / "train").samples
    with pytest.raises(DispError, match=r"--recipe .* or --learning-rate"):
        train(load_model(source, device="cpu"), samples, TrainConfig(steps=1), tmp_path)
