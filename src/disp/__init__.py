"""Find and remove backdoors in multimodal diffusion language models.

The public functions are loaded on first use, so that importing the package is quick and silent.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors know; a test compares it with the table
    from disp.attacks.poison import poison as poison
    from disp.auditing.audit import audit as audit
    from disp.baselines.run import run_baseline as run_baseline
    from disp.benchmarks.export import write_tasks as write_tasks
    from disp.data.check import check as check
    from disp.data.convert import convert as convert
    from disp.data.loading import load_dataset as load_dataset
    from disp.data.saving import save_dataset as save_dataset
    from disp.data.scene_dataset import write_scenes as write_scenes
    from disp.decoding.generate import generate as generate
    from disp.defence.defend import defend as defend
    from disp.evaluation.evaluate import evaluate as evaluate
    from disp.experiments.demo import demo as demo
    from disp.models.loading import load_model as load_model
    from disp.models.merging import merge as merge
    from disp.models.saving import save_model as save_model
    from disp.planning.plan import make_plan as make_plan
    from disp.purification.guard import guard as guard
    from disp.purification.purify import purify as purify
    from disp.suspicion.run import write_saliency as write_saliency
    from disp.suspicion.saliency import saliency as saliency
    from disp.training.train import train as train

_HOMES = {
    "load_model": "disp.models.loading",
    "save_model": "disp.models.saving",
    "merge": "disp.models.merging",
    "load_dataset": "disp.data.loading",
    "save_dataset": "disp.data.saving",
    "convert": "disp.data.convert",
    "check": "disp.data.check",
    "write_scenes": "disp.data.scene_dataset",
    "poison": "disp.attacks.poison",
    "train": "disp.training.train",
    "saliency": "disp.suspicion.saliency",
    "write_saliency": "disp.suspicion.run",
    "purify": "disp.purification.purify",
    "audit": "disp.auditing.audit",
    "defend": "disp.defence.defend",
    "run_baseline": "disp.baselines.run",
    "guard": "disp.purification.guard",
    "generate": "disp.decoding.generate",
    "evaluate": "disp.evaluation.evaluate",
    "write_tasks": "disp.benchmarks.export",
    "make_plan": "disp.planning.plan",
    "demo": "disp.experiments.demo",
}

__all__ = sorted(_HOMES)

if not TYPE_CHECKING:  # where a type checker sees it, every name is one of the package

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'disp' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
