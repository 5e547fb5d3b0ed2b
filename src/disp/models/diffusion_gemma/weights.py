"""Reading DiffusionGemma's weights through `transformers`, which ties what encoder and decoder share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from disp.errors import DispError
from disp.models.checkpoint import check_fit, integers_among, stored_types
from disp.models.diffusion_gemma.config import DiffusionGemmaMDLMConfig
from disp.models.interface import MDLM

SomeMDLM = TypeVar("SomeMDLM", bound=MDLM)


def load_weights(model_class: type[SomeMDLM], folder: Path, config: DiffusionGemmaMDLMConfig, **how: Any) -> SomeMDLM:
    """A model with the weights of a folder.

    Args:
        model_class: the model's class.
        folder: with safetensors weights.
        config: the folder's config.
        how: further arguments of ``from_pretrained``.

    Raises:
        DispError: a file is missing or damaged, or weights do not fit the architecture by name or shape.
    """
    stored = stored_types(folder)
    try:
        loaded: Any = model_class.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below
            **how,
        )
    except (OSError, SafetensorError) as error:
        raise DispError(f"{folder}: the weights cannot be read ({error}); download the checkpoint again") from None
    model: SomeMDLM
    model, report = loaded
    # The library's own lists leave out weights that share a module, so names are compared here.
    expected = model.official_state_dict()
    check_fit(
        str(folder),
        missing=expected.keys() - stored.keys(),
        surplus=stored.keys() - expected.keys() - model.all_tied_weights_keys.keys(),
        shapes={str(each) for each in report["mismatched_keys"]},
        integers=integers_among(stored, expected),
    )
    return model
