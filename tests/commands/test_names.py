"""The command line offers what the library takes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import disp
from disp.commands import answering, defend, scoring, training, treating
from disp.decoding.llada import LladaConfig
from disp.decoding.profiles import PROFILES
from disp.defence.config import DefenceConfig
from disp.purification.config import PurifyConfig
from disp.purification.remedies import Treatment
from disp.suspicion.config import PROBES, SaliencyConfig
from disp.training.config import TrainConfig

SAME = [
    (answering.Sampling, LladaConfig, "remasking"),
    (answering.Sampling, DefenceConfig, "profile"),
    (scoring.Estimating, SaliencyConfig, "score"),
    (scoring.Rewriting, SaliencyConfig, "score"),
    (scoring.Rewriting, PurifyConfig, "mode"),
    (scoring.Rewriting, DefenceConfig, "preset"),
    (scoring.Rewriting, DefenceConfig, "profile"),
    (scoring.PlannedRewriting, PurifyConfig, "mode"),
    (treating.Treating, Treatment, "remedy"),
    (training.Training, TrainConfig, "method"),
    (training.Recovery, TrainConfig, "method"),
    (training.PlannedTraining, TrainConfig, "method"),
    (defend.defend, DefenceConfig, "rewrite"),
    (defend.defend, DefenceConfig, "preset"),
    (defend.defend, DefenceConfig, "profile"),
]


def names(where, name):
    """The texts that a field or an argument takes."""
    found = set()
    for each in (hint := get_type_hints(where)[name], *get_args(hint)):
        found |= {text for text in get_args(each) if isinstance(text, str)}
    return found


@pytest.mark.parametrize(("options", "config", "name"), SAME, ids=lambda each: getattr(each, "__name__", each))
def test_an_option_takes_every_name(options, config, name):
    assert names(options, name) == names(config, name) != set()


def test_tables_have_every_name():
    assert names(DefenceConfig, "profile") == set(PROFILES)
    assert names(SaliencyConfig, "score") == set(PROBES)


def test_extras_are_named_in_one_way():
    """The distribution is not called disp, so that no name would lead to it: see `disp.errors.install`."""
    source = Path(disp.__file__).parent
    extras = tomllib.loads((source.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set()
    for file in source.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        named |= set(re.findall(r"\binstall\([\"'](\w+)[\"']\)", text))
        if file.name != "errors.py":
            assert not re.search(r"pip install|\bdisp(-mdlm)?\[", text), file
    assert named and named <= set(extras)


def test_names_need_no_torch():
    code = "import sys, disp.decoding.names, disp.purification.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
