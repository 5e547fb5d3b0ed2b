"""Saving models so that they are loaded again, by `disp` and by the published code."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from disp.files import write_json
from disp.models.checkpoint import read_json, write_official
from disp.models.interface import MDLM
from disp.models.library import no_bar


def save_model(model: MDLM, folder: Path, *, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write weights (safetensors), config and tokenizer, so that `load_model` reads them back.

    A published family is written under its published key names beside the config it came with, so that the published
    code can load it too.

    Args:
        model: the MDLM.
        folder: where to.
        state_dict: the model's weights, where they have been gathered from several processes.
    """
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


def readable(folder: Path) -> None:
    """Give the weights the permissions of the other files: the library makes them readable for one user only."""
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
