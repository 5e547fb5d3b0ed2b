"""What tells one model from another: its weights, and how it reads texts and pictures."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models.tiny import ALL, extended, write_checkpoint

import disp
from disp.models.fingerprint import fingerprint
from disp.models.loading import load_model
from disp.models.saving import save_model

TEXTS = ["Is there a cat?", "Yes."]


@pytest.fixture(scope="module", params=ALL)
def family(request):
    with extended():
        yield request.param


def change_json(file: Path, **fields: object) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **fields}))


def loaded(folder: Path, **given: object):
    return load_model(folder, device="cpu", **given)


def test_a_model_is_the_same_wherever_it_lies_and_when_it_was_saved(family, tmp_path):
    first = write_checkpoint(family, tmp_path / "first", TEXTS)
    model = loaded(first)
    found = fingerprint(model)
    save_model(model, tmp_path / "saved")
    assert fingerprint(loaded(tmp_path / "saved")) == fingerprint(model) == found
    shutil.move(first, tmp_path / "second")
    assert fingerprint(loaded(tmp_path / "second")) == found


def test_another_chat_template_is_another_model(family, tmp_path):
    folder = write_checkpoint(family, tmp_path / "model", TEXTS)
    found = fingerprint(loaded(folder))
    model = loaded(folder)
    model.tokenizer.chat_template = "{{ messages[-1]['content'] }}" + (model.tokenizer.chat_template or "")
    save_model(model, tmp_path / "other")
    assert fingerprint(loaded(tmp_path / "other")) != found


@pytest.mark.parametrize(
    ("family", "file", "fields"),
    [
        ("llada_v", "config.json", {"image_grid_pinpoints": [[56, 112]]}),
        ("llada_v", "config.json", {"image_aspect_ratio": "anyres_max_2"}),
        ("llada_v", "config.json", {"rope_theta": 10_000.0}),
        ("lavida_llada", "config.json", {"mm_spatial_pool_mode": "average"}),
        ("mmada", "config.json", {"disp": {"gen_length": 24, "squash": True}}),
        ("dimple", "preprocessor_config.json", {"max_pixels": 28 * 28 * 4}),
        ("diffusion_gemma", "config.json", {"disp": {"gen_length": 24, "visual_substitute": "zero"}}),
        ("diffusion_gemma", "generation_config.json", {"t_max": 0.9}),
        ("dimple", "config.json", {"disp": {"gen_length": 12}}),
    ],
)
def test_another_way_to_read_pictures_or_to_answer_is_another_model(family, file, fields, tmp_path):
    folder = write_checkpoint(family, tmp_path / "model", TEXTS)
    found = fingerprint(loaded(folder))
    change_json(folder / file, **fields)
    assert fingerprint(loaded(folder)) != found


def test_how_far_attention_reaches_is_part_of_a_model_and_so_is_its_system_message(make_model):
    vision = make_model().config.vision
    near, far = make_model(vision={**vision, "attention_reach": 1}), make_model(vision=vision)
    weights = dict(far.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in near.named_parameters())
    spoken = copy.deepcopy(far)
    spoken.default_system = "Answer in verse."
    assert len({fingerprint(near), fingerprint(far), fingerprint(spoken)}) == 3


def test_other_words_of_the_tokenizer_are_another_model(tiny_model):
    other = copy.copy(tiny_model)
    other.tokenizer = copy.deepcopy(tiny_model.tokenizer)
    other.tokenizer.add_tokens(["zyx"])
    assert fingerprint(other) != fingerprint(tiny_model)


def test_what_a_checkpoint_holds_beside_its_parameters_is_part_of_it(tmp_path):
    folder = write_checkpoint("diffusion_gemma", tmp_path / "model", TEXTS)
    model = loaded(folder)
    found = fingerprint(model)
    name, scalar = next((name, each) for name, each in model.named_buffers() if name.endswith("layer_scalar"))
    scalar.mul_(1.5)
    assert fingerprint(model) != found, name


def test_another_process_finds_the_same(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path)
    code = (
        "from disp.models.loading import load_model; from disp.models.fingerprint import fingerprint; "
        f"print(fingerprint(load_model({str(tmp_path)!r}, device='cpu')))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(disp.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(tiny_model)
