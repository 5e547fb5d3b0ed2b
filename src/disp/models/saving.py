"""Saving models so that they are loaded again, by `disp` and by the published code."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from disp.errors import DispError
from disp.files import mode_of_new_files, named_if_unwritable, write_atomically, write_json
from disp.models.checkpoint import INDEX, read_json
from disp.models.interface import MDLM
from disp.models.library import no_bar
from disp.models.quantization import is_quantized

# Files of a checkpoint that are not copied beside rewritten weights: the old weights, in any format.
_WEIGHT_FILES = re.compile(r"(model.*\.safetensors|.*\.index\.json|.*\.(bin|pt|pth|ckpt|gguf|onnx))$")


def save_model(model: MDLM, folder: Path, *, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write weights (safetensors), config and tokenizer, so that `load_model` reads them back.

    A published family is written under its published key names beside the config it came with, so that the published
    code can load it too.

    Args:
        model: the MDLM.
        folder: where to.
        state_dict: the model's weights, where they have been gathered from several processes.
    """
    with named_if_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if model.source is None:
            model.config.gen_length, model.config.generation = model.gen_length, dict(model.generation_defaults)
            with no_bar():
                model.save_pretrained(folder, state_dict=state_dict)
            readable(folder)
        else:
            official = None
            if state_dict is not None:
                official = model.official_state_dict(state_dict)
            write_official(model, folder, model.source, state_dict=official)
            config = read_json(folder / "config.json")
            if model.gen_length != config.get("disp", {}).get("gen_length", model.config.gen_length):
                config["disp"] = {**config.get("disp", {}), "gen_length": model.gen_length}
                write_json(folder / "config.json", config)
        if getattr(model, "tokenizer", None) is not None:
            model.tokenizer.save_pretrained(folder)


def write_official(
    model: MDLM,
    folder: Path,
    source: Path | None,
    *,
    state_dict: dict[str, Tensor] | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a checkpoint under the published key names, so that the published code can load it.

    Args:
        model: an MDLM.
        folder: where to; weight files that lie there are replaced.
        source: the folder that the model came from: its config, tokenizer and other small files are copied.
        state_dict: the weights under the published names, if not the model's own.
        max_shard_size: the weights are split into files of at most this size.

    Raises:
        DispError: the model is quantized, or ``source`` is gone.
    """
    if any(is_quantized(parameter) for parameter in model.parameters()):
        raise DispError(
            "a model with quantized weights cannot be written as a checkpoint; train adapters with merge off, and "
            "merge them into the unquantized model"
        )
    if source is not None and not source.is_dir():
        raise DispError(f"{source}, where the model came from, is gone; its config and tokenizer cannot be copied")
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None and source.resolve() != folder.resolve():
        for path in sorted(source.iterdir()):
            if path.is_file() and not _WEIGHT_FILES.fullmatch(path.name):
                shutil.copyfile(path, folder / path.name)
    weights = {name: tensor.detach() for name, tensor in (state_dict or model.official_state_dict()).items()}
    split = split_torch_state_dict_into_shards(weights, max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        shard = {name: weights[name].cpu().contiguous() for name in names}
        write_atomically(folder / file, partial(_save, shard))
    written = set(split.filename_to_tensors)
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
        written.add(INDEX)
    for path in [*folder.glob("model*.safetensors"), folder / INDEX]:
        if path.name not in written:
            path.unlink(missing_ok=True)


def _save(weights: dict[str, Tensor], path: Path) -> None:
    save_file(weights, path, {"format": "pt"})


def readable(folder: Path) -> None:
    """Give the weights the permissions of the other files: the library makes them readable for one user only."""
    mode = mode_of_new_files(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)
