"""Adapters and projectors: what is read, and how each one that cannot be read whole is refused."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from disp.cli import app
from disp.data.scene_dataset import write_scenes
from disp.errors import DispError
from disp.models.adapters import save_adapter, save_projector_adapter
from disp.models.loading import load_model
from disp.models.merging import merge
from disp.models.projector import projector_parameters


@pytest.fixture(scope="module")
def builtin():
    return load_model("builtin", device="cpu")


@pytest.fixture(scope="module")
def changed(builtin):
    """By the published names, another projector than the model's own."""
    draw = torch.Generator().manual_seed(3)
    own = projector_parameters(builtin)
    assert sorted(own) == [f"model.mm_projector.{n}.{kind}" for n in (0, 2) for kind in ("bias", "weight")]
    return {name: torch.randn(value.shape, generator=draw) for name, value in own.items()}


def has(model, weights, *, stored=torch.float32) -> bool:
    """Whether these are the weights of the model's projector, as they are in the type that they were stored in."""
    own = projector_parameters(model)
    return all(torch.equal(own[name], weights[name].to(stored).float()) for name in weights)


@pytest.mark.parametrize("name", ["mm_projector.safetensors", "mm_projector.bin", "non_lora_trainables.bin"])
def test_a_projector_takes_the_place_of_the_model_s_own(changed, builtin, tmp_path, name):
    file = tmp_path / name
    prefix = "base_model.model." if name.startswith("non_lora") else ""
    weights = {prefix + key: value for key, value in changed.items()}
    save_file(weights, file) if file.suffix == ".safetensors" else torch.save(weights, file)
    model = load_model("builtin", device="cpu", projector=file)
    assert has(model, changed) and not has(builtin, changed)
    assert torch.equal(model.mask_embedding, builtin.mask_embedding)
    app(["merge", "builtin", "--projector", str(file), "--out", str(tmp_path / "whole")], result_action="return_value")
    assert has(load_model(tmp_path / "whole", device="cpu"), changed, stored=torch.float16)


def test_an_adapter_of_a_projector_finds_its_base(changed, builtin, tmp_path):
    model = load_model("builtin", device="cpu")
    for name, parameter in projector_parameters(model).items():
        parameter.data.copy_(changed[name])
    model.use_gen_length(12)
    save_projector_adapter(model, tmp_path / "adapter")
    assert sorted(load_file(tmp_path / "adapter" / "mm_projector.safetensors")) == sorted(changed)
    again = load_model(tmp_path / "adapter", device="cpu")
    assert has(again, changed) and again.gen_length == 12
    assert torch.equal(again.mask_embedding, builtin.mask_embedding)
    merge(tmp_path / "adapter", tmp_path / "whole")
    assert has(load_model(tmp_path / "whole", device="cpu"), changed, stored=torch.float16)


class Command:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_is_more_than_weights_is_refused_and_not_run(tmp_path, capsys):
    file = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.0.weight": Command()}, file)
    with pytest.raises(DispError, match=r"mm_projector\.bin holds more than weights"):
        load_model("builtin", device="cpu", projector=file)
    file.write_bytes(pickle.dumps(Command()))
    with pytest.raises(DispError, match=r"mm_projector\.bin"):
        load_model("builtin", device="cpu", projector=file)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.mm_projector.0.bias"), r"lacks model\.mm_projector\.0\.bias"),
        (
            lambda weights: weights.update({"lm_head.weight": torch.ones(2)}),
            "lm_head.weight is no weight of the model's",
        ),
        (lambda weights: weights.update({"model.mm_projector.0.bias": torch.ones(2)}), "belongs to another model"),
        (lambda weights: weights.update({"model.mm_projector.0.bias": 3}), "is no tensor"),
        (lambda weights: change_all(weights, lambda value: value.to_sparse()), "is sparse"),
        (lambda weights: change_all(weights, lambda value: value.to("meta")), "has a shape and no values"),
        (lambda weights: change_all(weights, lambda value: value.to(torch.int8)), "holds int8, not floating-point"),
        (lambda weights: change_all(weights, lambda value: value / 0), "holds numbers that are not finite"),
        (
            lambda weights: weights.update({f"x.{name}": value for name, value in weights.items()}),
            r"model\.mm_projector\.0\.(bias|weight) is there twice, once as x\.model",
        ),
    ],
)
def test_a_projector_that_does_not_fit_is_named(changed, tmp_path, change, message):
    weights = dict(changed)
    change(weights)
    torch.save(weights, tmp_path / "mm_projector.bin")
    with pytest.raises(DispError, match=message):
        load_model("builtin", device="cpu", projector=tmp_path / "mm_projector.bin")


def change_all(weights, change) -> None:
    for name in weights:
        weights[name] = change(weights[name])


@pytest.mark.parametrize("change", [lambda value: value.to(torch.int8), lambda value: value * float("nan")])
def test_safetensors_and_adapters_have_to_be_finite_too(changed, adapter, tmp_path, change):
    for file in (tmp_path / "mm_projector.safetensors", adapter / "adapter_model.safetensors"):
        weights = dict(changed) if file.parent == tmp_path else load_file(file)
        change_all(weights, change)
        save_file(weights, file)
        given = {"name": adapter} if file.parent == adapter else {"projector": file}
        with pytest.raises(
            DispError, match=rf"{file.name}: \S+ holds (int8, not floating|numbers that are not finite)"
        ):
            load_model(device="cpu", **given)


def test_projector_files_that_cannot_be_read(tmp_path):
    def refused(name: str, content: bytes | None, message: str) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DispError, match=message):
            load_model("builtin", device="cpu", projector=tmp_path / name)

    refused("gone.safetensors", None, "gone.safetensors does not exist")
    refused("a.safetensors", b"version https://git-lfs", "no readable safetensors file")
    refused("a.npz", b"", "give a .safetensors file")
    refused("a.bin", b"", "cannot be read|more than weights")
    refused("a.bin", b"abc", "cannot be read|more than weights")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"
    for name in ("a.bin", "a.safetensors"):
        refused(name, pointer, rf"{name} is .* \(git lfs pull\)")


@pytest.fixture
def adapter(builtin, tmp_path):
    """A low-rank adapter of the built-in model."""
    from peft import LoraConfig, get_peft_model

    model = load_model("builtin", device="cpu")
    adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["model.layers.0.self_attn.q_proj"]))
    save_adapter(adapted, 32, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_whole_adapter_is_read(adapter):
    assert load_model(adapter, device="cpu").adapter == str(adapter)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"])
def test_the_task_that_an_adapter_names_changes_nothing(adapter, builtin, task):
    """Most scripts name one, and PEFT then asks for methods of other models."""
    file = adapter / "adapter_model.safetensors"
    draw = torch.Generator().manual_seed(5)
    save_file({name: torch.randn(value.shape, generator=draw) for name, value in load_file(file).items()}, file)
    without = load_model(adapter, device="cpu").state_dict()
    change_config(adapter, task_type=task)
    again = load_model(adapter, device="cpu").state_dict()
    assert all(torch.equal(again[name], without[name]) for name in without)
    changed = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(again[changed], builtin.state_dict()[changed])


@pytest.mark.parametrize(
    "fields",
    [{"target_modules": "("}, {"target_modules": ["no_such"]}, {"r": "x"}, {"peft_type": "NONE"}, {"peft_type": None}],
    ids=str,
)
def test_an_adapter_config_that_peft_cannot_use_is_refused(adapter, fields):
    change_config(adapter, **fields)
    with pytest.raises(DispError, match="does not fit the base builtin") as caught:
        load_model(adapter, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["merge", "plan"])
@pytest.mark.parametrize("others", [0, 1, 2])
def test_adapters_that_name_each_other_have_no_base(adapter, tmp_path, command, others):
    circle = [adapter, *(tmp_path / f"adapter-{number}" for number in range(others))]
    for number, folder in enumerate(circle):
        if number:
            shutil.copytree(adapter, folder)
        change_config(folder, base_model_name_or_path=str(circle[(number + 1) % len(circle)]))
    write_scenes(tmp_path / "data", 2, seed=1)
    more = ["--out", str(tmp_path / "whole")] if command == "merge" else [str(tmp_path / "data")]
    with pytest.raises(DispError, match=f"{adapter}: its base leads back to the adapter {adapter}, so there is no"):
        app(
            [command, str(adapter), *more],
            print_error=False,
            exit_on_error=False,
            result_action="return_value",
        )


def change_config(folder, **fields) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_an_adapter_whose_projector_is_a_pickle_is_not_read_without_it(adapter, changed):
    beside = adapter / "non_lora_trainables.bin"
    torch.save({f"base_model.model.{name}": value for name, value in changed.items()}, beside)
    with pytest.raises(DispError, match=r"non_lora_trainables\.bin, a pickle; give that file with --projector"):
        load_model(adapter, device="cpu")
    assert has(load_model(adapter, device="cpu", projector=beside), changed)


def test_an_adapter_that_has_other_keys_is_not_read_in_part(adapter):
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    first = min(whole)
    for found, said in (
        ({key: whole[key] for key in whole if key != first}, "1 keys missing: "),
        ({**whole, "base_model.model.head.lora_A.weight": whole[first].clone()}, "1 keys surplus: "),
    ):
        save_file(found, file)
        with pytest.raises(DispError, match=rf"does not fit the base builtin \({said}base_model.*\); give the model"):
            load_model(adapter, device="cpu")


@pytest.mark.parametrize("of", ["adapter", "projector"])
def test_a_fault_of_the_machine_is_not_laid_on_the_file(adapter, tmp_path, monkeypatch, of):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    torch.save({}, tmp_path / "mm_projector.bin")
    if of == "adapter":
        monkeypatch.setattr("peft.PeftModel.from_pretrained", fail)
    else:
        monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RuntimeError, match=r"^CUDA error: an illegal memory access"):
        load_model(adapter, device="cpu", projector=tmp_path / "mm_projector.bin" if of == "projector" else None)


def test_adapters_that_cannot_be_read_whole(adapter):
    def refused(message: str) -> None:
        with pytest.raises(DispError, match=message) as caught:
            load_model(adapter, device="cpu")
        assert "\n" not in str(caught.value)

    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(r"adapter_model\.safetensors is no readable safetensors file .* \(git lfs pull\)")
    weights.unlink()
    refused(r"adapter_model\.safetensors is missing")
    (adapter / "adapter_model.bin").write_bytes(b"x")
    refused(r"adapter_model\.bin alone, a pickle, which disp does not read")
    other = {name: torch.zeros(3, 3) for name in _names(content, adapter)}
    save_file(other, weights)
    refused(r"does not fit the base builtin .* `disp merge --base`")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    refused("does not name its base model")
    (adapter / "adapter_config.json").write_text("{")
    refused("adapter_config.json cannot be read")


def _names(content: bytes, folder) -> list[str]:
    (folder / "kept.safetensors").write_bytes(content)
    return list(load_file(folder / "kept.safetensors"))
