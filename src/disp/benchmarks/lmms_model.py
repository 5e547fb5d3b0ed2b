"""The model class that lmms-eval runs: any MDLM that `disp.load_model` loads.

lmms-eval hands a chat model requests whose arguments are six: context, a function from a document to messages,
generation settings, the document's id, task and split (version 0.7).
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any, NoReturn

import torch
from lmms_eval.api.model import lmms

from disp.benchmarks.messages import to_query
from disp.benchmarks.settings import decode_settings
from disp.data.sample import Query
from disp.decoding.config import DecodeConfig
from disp.decoding.generate import generate
from disp.errors import DispError, unknown_name
from disp.models.interface import MDLM
from disp.models.loading import load_model
from disp.processes import place
from disp.purification.config import PUBLISHED_RATIO
from disp.purification.guard import GuardConfig, masked_answers
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.masking import Rounding

logger = logging.getLogger(__name__)

# The truth values that a command line may hold.
_SAID = {"true": True, "1": True, "false": False, "0": False}


class DispMDLM(lmms):  # type: ignore[misc]  # lmms-eval comes without types
    """An MDLM for lmms-eval's ``generate_until`` tasks.

    Attributes:
        model: the MDLM.
        settings: the decoding settings that each task was answered with, by its name.
        masking: how visual tokens are masked before an answer; None where nothing is.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | MDLM = "builtin",
        *,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        dtype: str | None = None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        quantization: str | None = None,
        seed: int = 0,
        prompt_suffix: str = "",
        system_prompt: str | None = None,
        max_gen_length: int = 512,
        mask_infer: bool | str | None = None,
        mask_ratio: float | None = None,
        mask_saliency: str = "published",
    ):
        """Load the model.

        Args:
            pretrained: what `disp.load_model` takes, or a model that is loaded already.
            device: where to put it; with several processes each takes the GPU of its local rank.
            batch_size: queries a pass; "auto" is not available.
            max_batch_size: not used; lmms-eval passes it.
            dtype: see `disp.load_model`, as are the next three.
            device_map: see there.
            attn_implementation: see there.
            quantization: see there.
            seed: seed of random remasking and sampling.
            prompt_suffix: appended to every question, such as LLaDA-V's `` /no_think``.
            system_prompt: the system message, if not the model's own.
            max_gen_length: most response slots that a task's ``max_new_tokens`` may ask for.
            mask_infer: answer with the most salient visual tokens masked, as the switch of this name does in the
                published code of DiSP; a truth value, or "true" or "false". Not given, it is whether ``mask_ratio`` is.
            mask_ratio: their share, 0.3 if not given.
            mask_saliency: "published" (see `disp.suspicion.config.SaliencyConfig.published`) or "disp", the estimator
                that `disp` uses by default.

        Raises:
            DispError: the model cannot be loaded, the batch size is no number, or the masking is of no known kind.
        """
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise DispError(f"batch_size must be a number from 1, got {batch_size!r}")
        self.batch_size, self.seed = int(batch_size), seed
        self.masking = _masking(mask_infer, mask_ratio, mask_saliency, seed)
        self.prompt_suffix, self.system_prompt, self.max_gen_length = prompt_suffix, system_prompt, max_gen_length
        self.settings: dict[str, DecodeConfig] = {}
        if isinstance(pretrained, MDLM):
            self.model = pretrained
        else:
            options = {
                "dtype": dtype,
                "device_map": device_map,
                "attn_implementation": attn_implementation,
                "quantization": quantization,
            }
            given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
            self.model = load_model(pretrained, device=_device(device), **given)

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers results there."""
        return self.model.device

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer each request; requests with the same decoding settings share passes.

        Raises:
            DispError: a document holds something but text and images, or the settings do not fit together.
        """
        groups: dict[DecodeConfig, list[tuple[int, Query]]] = {}
        for index, request in enumerate(requests):
            _, doc_to_messages, given, doc_id, task, split = request.args
            messages = doc_to_messages(self.task_dict[task][split][doc_id])
            query = to_query(messages, f"{task}/{split}/{doc_id}", suffix=self.prompt_suffix, system=self.system_prompt)
            groups.setdefault(self._settings(task, given), []).append((index, query))
        answers = [""] * len(requests)
        for config, members in groups.items():
            queries = [query for _, query in members]
            if self.masking is None:
                texts = generate(self.model, queries, config, seed=self.seed, batch_size=self.batch_size)
            else:
                masking = replace(self.masking, decode=config, batch_size=self.batch_size)
                texts = masked_answers(self.model, queries, masking)
            for (index, _), text in zip(members, texts, strict=True):
                answers[index] = text
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), answer)
        return answers

    def loglikelihood(self, requests: list[Any]) -> NoReturn:
        """Not available: lmms-eval asks chat models for none."""
        raise NotImplementedError(
            "lmms-eval asks chat models for answers only; choose a task with output_type generate_until, or score "
            "answers yourself with disp.suspicion.support.negative_log_likelihood"
        )

    def generate_until_multi_round(self, requests: list[Any]) -> NoReturn:
        """Not available: an MDLM answers one message."""
        raise NotImplementedError(
            "an MDLM answers one question at a time; choose a task with output_type generate_until, not "
            "generate_until_multi_round"
        )

    def _settings(self, task: str, given: dict[str, Any]) -> DecodeConfig:
        config = decode_settings(self.model, task, given, longest=self.max_gen_length)
        if self.settings.get(task) != config:
            self.settings[task] = config
            usual = {name: getattr(type(config), name) for name in asdict(config) if name != "sampler"}
            changed = {name: value for name, value in asdict(config).items() if value != usual.get(name)}
            logger.warning("%s is answered with %s", task, changed)  # so that it stands in the log of every run
        return config


def _masking(wanted: bool | str | None, ratio: float | None, estimator: str, seed: int) -> GuardConfig | None:
    """How visual tokens are masked, from the model's arguments; None where they are not."""
    said = str(wanted).lower()
    if said not in (*_SAID, "none"):
        raise DispError(f"mask_infer must be true or false, got {wanted!r}")
    if estimator not in ("published", "disp"):
        raise unknown_name("mask_saliency", estimator, ("published", "disp"))
    if not _SAID.get(said, ratio is not None):
        return None
    published = estimator == "published"
    saliency = SaliencyConfig.published(seed=seed) if published else SaliencyConfig(seed=seed)
    rounding: Rounding = "down" if published else "up"
    return GuardConfig(
        mask_ratio=PUBLISHED_RATIO if ratio is None else ratio, saliency=saliency, seed=seed, rounding=rounding
    )


def _device(device: str | None) -> str | None:
    """Each of several processes takes the GPU of its local rank."""
    here = place()
    if here.world > 1 and torch.cuda.is_available() and device in (None, "cuda", "cuda:0"):
        return f"cuda:{here.local % torch.cuda.device_count()}"
    return device
