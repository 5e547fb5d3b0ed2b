"""What lmms-eval is told of the plug-in, through the entry-point group ``lmms_eval.models``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> ModelManifest:
    """The plug-in's manifest. lmms-eval is imported only here, so that `disp` does without it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="disp_mdlm", chat_class_path="disp.benchmarks.lmms_model.DispMDLM", aliases=("disp",))
