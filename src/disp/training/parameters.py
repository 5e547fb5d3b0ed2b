"""Which parameters are trained, at which rate and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from disp.draws import key_of
from disp.errors import DispError
from disp.models.adapters import false_alarms_off
from disp.models.interface import MDLM
from disp.training.config import TrainConfig

if TYPE_CHECKING:
    from peft import PeftModel


def select_parameters(model: MDLM, config: TrainConfig) -> MDLM | PeftModel:
    """Mark what is trained; returns the module to train.

    For LoRA that is a PEFT wrapper, whose first weights follow from the seed alone.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():  # quantized weights take no gradient
            parameter.requires_grad = is_trained(model, config, name)
    if config.method != "lora":
        return model
    from peft import LoraConfig, get_peft_model

    # Not adapted but trained and saved as a whole.
    whole = (*model.projector_names, *(model.vision_names if config.train_vision else ()))
    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules=model.lora_modules(),
        modules_to_save=[name.rstrip(".") for name in whole],
    )
    # The first weights are drawn by torch's generator of the device, whose state is nobody's seed.
    gpus = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(gpus), false_alarms_off():
        torch.manual_seed(key_of(config.seed, "lora"))
        return get_peft_model(model, adapters)


def is_trained(model: MDLM, config: TrainConfig, name: str) -> bool:
    """Whether the parameter of this name itself is trained; with LoRA, adapters of others are."""
    if any(part in name for part in model.vision_names):
        return config.train_vision
    return config.method == "full" or any(part in name for part in model.projector_names)


def half_precision_arguments(model: MDLM, config: TrainConfig) -> dict[str, bool]:
    """The trainer's arguments for products in half precision: where the model is, and nothing else is said."""
    # The embeddings': a vision tower may be in a precision of its own, and adapters are.
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(model.mask_embedding.dtype)
    if name is None or config.trainer.keys() & {"bf16", "fp16"} or config.trainer.get("fsdp"):
        return {}
    # The library has no mixed precision with float16 on a CPU; the model is trained as it is there.
    return {name: name == "bf16" or model.device.type != "cpu"}


@contextmanager
def trained_in_float32(module: nn.Module) -> Iterator[None]:
    """Keep the parameters that are trained in float32, and give them their own precision back in the end.

    A weight in bfloat16 has eight binary digits: a step of 1e-5 is lost in the rounding of all but the smallest ones.
    """
    halves = (torch.bfloat16, torch.float16)
    chosen = [(each, each.dtype) for each in module.parameters() if each.requires_grad and each.dtype in halves]
    forward = module.__dict__.get("forward")
    for parameter, _ in chosen:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in chosen:
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)
        # The library leaves autocast around the module's forward.
        module.__dict__.pop("_original_forward", None)
        module.__dict__.pop("forward", None)
        if forward is not None:
            module.__dict__["forward"] = forward


def learning_rate_of(model: MDLM, config: TrainConfig) -> float:
    """The peak rate: the one that is given, or the family's own where it has one, as the built-in model's has.

    Raises:
        DispError: none is given for a published checkpoint.
    """
    if config.learning_rate is not None:
        return config.learning_rate
    if model.learning_rate is None:
        raise DispError(
            "a published checkpoint is fine-tuned at a rate of its own: give --recipe (such as disp, for the "
            "projector, or the family's name) or --learning-rate"
        )
    return model.learning_rate


def peak_rate(model: MDLM, config: TrainConfig, name: str) -> float:
    """The peak rate of the parameter of this name."""
    for parts, rate in (
        (model.vision_names, config.vision_learning_rate),
        (model.projector_names, config.projector_learning_rate),
    ):
        if rate is not None and any(part in name for part in parts):
            return rate
    return learning_rate_of(model, config)
