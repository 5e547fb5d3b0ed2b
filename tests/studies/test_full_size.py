"""The measurements of a model of full size, made with a tiny one."""

import json
import sys

import pytest
import torch

from disp.models.llada_v.published import SPECIAL_TOKENS
from disp.models.parts.llava import SIGLIP
from studies import full_size
from studies.random_checkpoint import CONFIG, make_tokenizer, shapes_of

NAMES = [
    "writing the checkpoint", "plan", "loading", "encoding", "saliency, 2 probes", "saliency, 8 probes", "decoding",
    "training step, LoRA",
]  # fmt: skip


def measure(monkeypatch, folder) -> tuple[int, dict]:
    monkeypatch.setattr(sys, "argv", ["full_size", "--small", "--device", "cpu", "--out", str(folder)])
    code = 0
    try:
        full_size.main()
    except SystemExit as end:
        code = end.code
    return code, json.loads((folder / "full_size.json").read_text())


def test_every_measurement_has_a_row(monkeypatch, tmp_path, capsys):
    code, found = measure(monkeypatch, tmp_path)
    rows = found["measurements"]
    assert code == 0 and [row["name"] for row in rows] == NAMES
    table = capsys.readouterr().out
    for row in rows:
        assert row["error"] is None and row["seconds"] > 0 and row["peak_bytes"] is None
        assert f"| {row['name']} |" in table
        if row["planned_passes"]:
            planned = row["planned_passes"]
            assert (row["forward"], row["backward"]) == (planned["forward"], planned["backward"])
    assert all(row["planned"]["total"] > found["weight_bytes"] for row in rows[3:])
    assert rows[2]["planned"]["weights"] == found["planned_weight_bytes"] == found["weight_bytes"] > 0
    assert len(list((tmp_path / "checkpoint").glob("model-*.safetensors"))) > 1


def test_a_failed_measurement_leaves_the_others(monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("first line\nno memory")

    monkeypatch.setattr(full_size, "saliency", fail)
    monkeypatch.setattr(full_size, "train", fail)
    code, found = measure(monkeypatch, tmp_path)
    errors = {row["name"]: row["error"] for row in found["measurements"]}
    assert code == 1 and list(errors) == NAMES
    failed = ["saliency, 2 probes", "saliency, 8 probes", "training step, LoRA"]
    assert {name for name, error in errors.items() if error} == set(failed)
    assert all(errors[name] == "OutOfMemoryError: no memory" for name in failed)


def test_the_full_size_is_the_published_one():
    shapes = shapes_of({**CONFIG, "image_grid_pinpoints": "(1x1),...,(6x6)"}, SIGLIP)
    language = {name: shape for name, shape in shapes.items() if "vision_tower" not in name and "mm_" not in name}
    del language["model.image_newline"]
    assert sum(shape.numel() for shape in language.values()) * 2 == 16_031_162_368
    assert shapes["lm_head.weight"] == (126_464, 4096)
    assert shapes["model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight"] == (729, 1152)


@pytest.mark.parametrize("size", [1024, 126_464])
def test_special_tokens_are_where_they_are_published(size):
    vocab = make_tokenizer(size, ["A red apple."]).get_vocab()
    for token, number in SPECIAL_TOKENS.values():
        assert vocab[token] == number - 126_464 + size
    assert sorted(vocab.values()) == list(range(len(vocab)))
