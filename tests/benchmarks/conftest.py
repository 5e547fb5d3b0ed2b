"""The class for lmms-eval, with the real library where it is installed and with a stand-in for it elsewhere."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from abc import ABC, abstractmethod

import pytest


class _Hook:
    def add_partial(self, name, request, result):
        pass


class _Lmms(ABC):
    """What version 0.7.3 of ``lmms_eval.api.model.lmms`` promises and demands."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.cache_hook, self.task_dict = 0, 1, _Hook(), {}

    @abstractmethod
    def generate_until(self, requests): ...

    @abstractmethod
    def loglikelihood(self, requests): ...

    @abstractmethod
    def generate_until_multi_round(self, requests): ...


@pytest.fixture
def lmms_model(monkeypatch):
    """The module `disp.benchmarks.lmms_model`."""
    if importlib.util.find_spec("lmms_eval") is None:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["lmms_eval.api.model"].lmms = _Lmms
        monkeypatch.delitem(sys.modules, "disp.benchmarks.lmms_model", raising=False)
        module = importlib.import_module("disp.benchmarks.lmms_model")
        yield module
        sys.modules.pop("disp.benchmarks.lmms_model", None)
    else:
        yield importlib.import_module("disp.benchmarks.lmms_model")
