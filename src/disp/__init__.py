"""Find and remove backdoors in multimodal diffusion language models.

The public functions are loaded on first use, so that importing the package is quick and silent.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "load_model": "disp.models.loading",
    "save_model": "disp.models.saving",
    "load_dataset": "disp.data.loading",
    "save_dataset": "disp.data.saving",
    "convert": "disp.data.convert",
    "check": "disp.data.check",
    "write_scenes": "disp.data.scene_dataset",
    "poison": "disp.attacks.poison",
    "train": "disp.training.train",
    "saliency": "disp.suspicion.saliency",
    "purify": "disp.purification.purify",
    "audit": "disp.auditing.audit",
    "defend": "disp.defence.defend",
    "run_baseline": "disp.baselines.run",
    "guard": "disp.purification.guard",
    "generate": "disp.decoding.generate",
    "evaluate": "disp.evaluation.evaluate",
    "make_plan": "disp.planning.plan",
    "demo": "disp.experiments.demo",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'disp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
