"""Which decoding settings a benchmark task is answered with.

An answer has its length beforehand, and published results use two slots for a multiple-choice question and 96 for a
calculation. Families have presets (`MDLM.generation_presets`); a task without one goes by its own ``max_new_tokens``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from disp.decoding.config import DecodeConfig
from disp.decoding.samplers import DEFAULT, SAMPLERS, changed_config, lasting_settings, options
from disp.errors import DispError
from disp.models.interface import MDLM
from disp.models.settings import MOST_SLOTS, check_whole

logger = logging.getLogger(__name__)

# Kinds of task, for families whose presets are by kind; the first kind that has a preset is used.
_CHOICE, _YES_NO = ("multiple_choice",), ("yes_no", "multiple_choice")
_SHORT, _CAPTION = ("short_answer",), ("caption",)
TASK_KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mmmu", "scienceqa", "ai2d", "mmstar", "seedbench", "mmbench", "mmbench_en"), _CHOICE),
    **dict.fromkeys(("pope", "mme"), _YES_NO),
    **dict.fromkeys(("textvqa", "vqav2", "gqa", "realworldqa", "ocrbench", "vizwiz_vqa"), _SHORT),
    **dict.fromkeys(("coco2017_cap", "coco2014_cap", "flickr30k", "nocaps"), _CAPTION),
}
# What lmms-eval's tasks name a split or a variant by.
_SUFFIXES = frozenset(
    ("val", "test", "dev", "lite", "testmini", "img", "full", "static", "validation", "adv", "pop", "random")
)
# Settings of autoregressive models that tasks come with, and which mean nothing here.
_IGNORED = frozenset(("until", "do_sample", "num_beams", "max_new_tokens", "max_gen_toks", "image_aspect_ratio"))
_OURS = frozenset(("sampler", *options()))


def task_names(task: str) -> list[str]:
    """The names to look a task's preset up by, most special first: itself, without its suffixes, its kinds."""
    names, parts = [task], task.split("_")
    while len(parts) > 1 and parts[-1] in _SUFFIXES:
        parts = parts[:-1]
        names.append("_".join(parts))
    kinds = next((TASK_KINDS[name] for name in names if name in TASK_KINDS), ())
    return [*names, *kinds]


def preset_of(task: str, presets: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The family's preset for a task of lmms-eval; None if it has none."""
    return next((presets[name] for name in task_names(task) if name in presets), None)


def decode_settings(model: MDLM, task: str, given: Mapping[str, Any], *, longest: int) -> DecodeConfig:
    """The decoding settings of one request.

    They are those of the family's preset for the task, with how the model's answers end where the preset does not say
    it; without a preset the model's defaults, for the task's ``max_new_tokens`` as length. What the task or
    ``--gen_kwargs`` says under the name of an option of the sampler wins.

    Args:
        model: what answers.
        task: the task's name.
        given: the request's generation settings: the task's own, with ``--gen_kwargs`` over them.
        longest: most response slots that are taken from ``max_new_tokens``.

    Raises:
        DispError: the settings do not fit together.
    """
    preset = preset_of(task, model.generation_presets)
    if preset is None:
        settings = {"gen_length": model.gen_length, "steps": model.gen_length, **model.generation_defaults}
    else:
        settings = _whole(preset, model)
    ours = {name: value for name, value in given.items() if name in _OURS and value is not None}
    ours = _without_idle_cuts(task, ours, str(ours.get("sampler", settings.get("sampler", DEFAULT))))
    if "temperature" not in ours and given.get("do_sample") is False:
        ours["temperature"] = 0.0
    if preset is None and "gen_length" not in ours and given.get("max_new_tokens"):
        wanted = int(given["max_new_tokens"])
        if wanted > longest:
            logger.warning("%s asks for %d tokens; answered with max_gen_length=%d", task, wanted, longest)
        ours["gen_length"] = min(wanted, longest)
    for name in given.keys() - _OURS - _IGNORED:
        logger.warning("%s: the generation setting %s=%r is not one of ours and is ignored", task, name, given[name])
    try:
        length = check_whole(ours.get("gen_length", settings["gen_length"]), "gen_length", most=MOST_SLOTS)
        if length != settings["gen_length"]:
            # Blocks only if asked for: those of another length may not fit.
            settings = model.settings_for(length, {**settings, "block_length": None})
        return changed_config(settings, ours)
    except DispError as error:
        raise DispError(f"task {task}: {error}; set it with --gen_kwargs") from None


def _whole(preset: Mapping[str, Any], model: MDLM) -> dict[str, Any]:
    """A preset, and what has to be said besides.

    Nothing else of the model's defaults, which are for answers of another kind: a preset is published as a whole.
    """
    usual = model.settings_for(preset.get("gen_length", model.gen_length))
    ends = lasting_settings(model.generation_defaults, preset.get("sampler"))
    return {"gen_length": usual["gen_length"], "steps": usual.get("steps", usual["gen_length"]), **ends, **preset}


def _without_idle_cuts(task: str, ours: Mapping[str, Any], sampler: str) -> dict[str, Any]:
    """The settings without cuts of the distribution that cut nothing, or that the sampler does not make.

    Tasks come with them for autoregressive models: 0 or 1 is how they say "no matter".
    """
    kept = dict(ours)
    known = SAMPLERS[sampler].options if sampler in SAMPLERS else ()
    for name in ("top_p", "top_k"):
        value = ours.get(name)
        if value is None or (value and name in known):
            continue
        if value and (name, value) != ("top_p", 1):
            logger.warning("%s: the sampler %r has no %s; %s=%r is ignored", task, sampler, name, name, value)
        del kept[name]
    return kept
