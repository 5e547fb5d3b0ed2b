"""Checkpoints whose weights, chat templates or settings are not those of a whole model, whatever the family."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models.tiny import ALL, FAMILIES, extended, write_checkpoint
from safetensors.torch import load_file, save_file

from disp.cli import app
from disp.data.scene_dataset import write_scenes
from disp.errors import DispError
from disp.models.builtin.family import FAMILY
from disp.models.loading import load_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abab\nsize 17\n"
Weights = dict[str, torch.Tensor]


def builtin(folder: Path) -> Path:
    assert FAMILY.folder is not None
    ignored = shutil.ignore_patterns("*.py", "__pycache__")
    return shutil.copytree(FAMILY.folder, folder, ignore=ignored, dirs_exist_ok=True)


@pytest.fixture(scope="module", params=("builtin", *ALL))
def whole(request, tmp_path_factory) -> Path:
    """A checkpoint of each family; the built-in model and the toy are in the library's own format."""
    folder = tmp_path_factory.mktemp("whole") / request.param
    if request.param == "builtin":
        return builtin(folder)
    return write_checkpoint(request.param, folder, ["Is there a cat?", "Yes."])


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / whole.name)


def refused(folder: Path, message: str) -> None:
    with extended(), pytest.raises(DispError, match=message) as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)


def change_json(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def floating(weights: Weights) -> str:
    """A weight that every family needs."""
    return max(name for name in weights if name.endswith("weight") and "post_layernorm" not in name)


def drop(weights: Weights) -> None:
    del weights[floating(weights)]


def add(weights: Weights) -> None:
    weights["model.layers.99.more"] = torch.zeros(2)


def to_integers(weights: Weights) -> None:
    for name in weights:
        weights[name] = (weights[name] * 100).to(torch.int8)


def one_to_integers(weights: Weights) -> None:
    weights[floating(weights)] = weights[floating(weights)].to(torch.int8)


def reshape(weights: Weights) -> None:
    weights[floating(weights)] = weights[floating(weights)][:-1].clone()


def spoil(value: float) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        weights[floating(weights)].view(-1)[3] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"the weights do not fit the config: 1 missing keys \("),
        (add, r"the weights do not fit the config: 1 surplus keys \(model\.layers\.99\.more\)"),
        (to_integers, r"[0-9]+ weights that are no floating-point numbers, as in quantized checkpoints \(.*8"),
        (one_to_integers, "1 weights that are no floating-point numbers"),
        (reshape, "1 wrong shapes"),
        (spoil(float("nan")), "holds numbers that are not finite; give a checkpoint from before"),
        (spoil(float("-inf")), "holds numbers that are not finite"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_refused(folder, change, message):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(folder, message)


@pytest.mark.parametrize("spoiled", [to_integers, spoil(float("nan"))])
def test_an_image_tokenizer_has_to_have_finite_weights_too(tmp_path, spoiled):
    folder = write_checkpoint("mmada", tmp_path / "model", ["Is there a cat?", "Yes."])
    weights = load_file(folder / "vq.safetensors")
    spoiled(weights)
    save_file(weights, folder / "vq.safetensors")
    refused(
        folder, r"vq\.safetensors: encoder\.\S+ holds (int8, not floating-point numbers|numbers that are not finite)"
    )


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf{}", POINTER.encode(), b"{", b"[]"])
def test_a_config_that_cannot_be_read_names_the_remedy(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    remedies = {b"\xef": "save it as UTF-8 without a byte order mark", b"v": r"git-lfs has yet to fetch it \(git lfs"}
    remedy = next((said for start, said in remedies.items() if content.startswith(start)), "copy or download it again")
    refused(tmp_path, remedy)
    if content != b"[]":
        write_scenes(tmp_path / "data", 2, seed=1)
        with pytest.raises(DispError, match=remedy):
            run("plan", tmp_path, tmp_path / "data")


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], print_error=False, exit_on_error=False, result_action="return_value")


PARTS = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", r"chat_template\.jinja: the chat template cannot write a chat \(TemplateSyntaxError.*published"),
        ("{{ raise_exception('no such role') }}", r"chat_template\.jinja: .* cannot write a chat \(.*no such role"),
        ("{{ messages[0]['content'][0]['text'] }}", "cannot write a chat|leaves out what is asked"),
        ("{{ 1 + messages[0]['content'] }}", "cannot write a chat"),
        (PARTS, r"chat_template\.jinja: the chat template leaves out what is asked; use that of the published"),
        ("Say something.", "leaves out what is asked; use that of the published"),
        (POINTER, r"chat_template\.jinja is no chat template; git-lfs has yet to fetch it \(git lfs pull\)"),
    ],
)
def test_chat_templates_that_write_no_question_are_refused(folder, template, message):
    (folder / "chat_template.jinja").write_text(template)
    refused(folder, message)


def test_a_tokenizer_without_a_template_is_refused(tmp_path):
    """Published families have a template of their own."""
    folder = builtin(tmp_path)
    (folder / "chat_template.jinja").unlink()
    refused(folder, r"has no chat template; put the published chat_template\.jinja there")


def test_a_plan_names_a_broken_template(tmp_path):
    folder = write_checkpoint("llada_v", tmp_path / "model", ["Is there a cat?", "Yes."])
    (folder / "chat_template.jinja").write_text("{% for %}")
    write_scenes(tmp_path / "data", 2, seed=1)
    with pytest.raises(DispError, match=r"chat_template\.jinja: the chat template cannot write a chat"):
        run("plan", folder, tmp_path / "data")


WRONG = ["abc", "64", None, 2.5, [], True, 0, -1, 10**12]


@pytest.mark.parametrize("length", WRONG, ids=repr)
def test_response_slots_have_to_be_a_number_that_makes_sense(folder, length):
    config = json.loads((folder / "config.json").read_text())
    if "disp" in config:
        change_json(folder / "config.json", disp={**config["disp"], "gen_length": length})
    else:
        change_json(folder / "config.json", gen_length=length)
    if folder.name == "diffusion_gemma" and length is None:
        return  # None is the whole canvas
    refused(folder, "gen_length|config.json or another of its files is damaged")


@pytest.mark.parametrize("length", WRONG, ids=repr)
def test_response_slots_of_an_adapter_and_of_an_option(tmp_path, length):
    from disp.models.adapters import save_projector_adapter

    save_projector_adapter(load_model("builtin", device="cpu"), tmp_path / "adapter")
    change_json(tmp_path / "adapter" / "disp.json", gen_length=length)
    refused(tmp_path / "adapter", r"disp\.json: gen_length must be (a whole number|at least 1|at most 262144), got ")
    if length is not None:
        with pytest.raises(DispError, match="gen_length must be "):
            load_model("builtin", device="cpu", gen_length=length)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generation": {"steps": "x"}}, "steps of its generation settings must be a whole number, got 'x'"),
        ({"generation": {"steps": 0}}, "steps of its generation settings must be at least 1, got 0"),
        ({"generation": {"steps": 8, "block_length": 2.5}}, "block_length of its generation settings must be a whole"),
        ({"mask_token_id": 10**9}, r"mask_token_id must be at most \d+, got 1000000000"),
        ({"mask_token_id": -1}, "mask_token_id must be at least 0, got -1"),
        ({"mask_token_id": "x"}, "mask_token_id must be a whole number, got 'x'"),
        ({"end_token_ids": [1, 10**9]}, r"end_token_ids must be at most \d+, got 1000000000"),
    ],
)
def test_other_settings_of_the_config(tmp_path, fields, message):
    folder = builtin(tmp_path)
    change_json(folder / "config.json", **fields)
    refused(folder, message)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer_is_loaded(tmp_path, family):
    """It is told of only where texts are to be read."""
    folder = write_checkpoint(family, tmp_path / "model", ["Is there a cat?", "Yes."])
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    load_model(folder, device="cpu")


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 16777216 bytes. Error code 12 (Cannot allocate memory)",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_fault_of_the_machine_is_not_laid_on_the_checkpoint(monkeypatch, said):
    def load(*_, **__):
        raise RuntimeError(said)

    monkeypatch.setattr("disp.models.library.load_pretrained", load)
    with pytest.raises(RuntimeError) as caught:
        load_model("builtin", device="cpu")
    assert str(caught.value) == said
