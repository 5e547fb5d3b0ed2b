"""How a model is fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from disp.diffusion.forward import MIN_RATIO
from disp.errors import DispError, check_counts, check_not_negative


@dataclass(frozen=True)
class TrainConfig:
    """How a model is fine-tuned.

    Attributes:
        steps: optimiser steps; with ``epochs`` they follow from the data.
        batch_size: assistant turns a step on each device.
        learning_rate: peak, after linear warm-up; cosine decay to zero. None is 1e-3 for the built-in model; a
            published checkpoint, which that would ruin, must be given one (see `disp.training.recipes`).
        projector_learning_rate: peak for the projector, where it is trained; ``learning_rate`` if None.
        vision_learning_rate: peak for the vision tower, where it is trained; ``learning_rate`` if None.
        method: "full" trains the language model and the projector, "projector" the projector alone, "lora"
            low-rank adapters on every linear layer of the language model and the projector itself.
        train_vision: train the vision tower too.
        gradient_checkpointing: recompute each layer's activations in the backward pass: less memory, more time.
        merge: save the whole model at the end, with the adapters of ``method="lora"`` merged into the weights; without
            it only the adapters or, with ``method="projector"``, the projector are saved, which is the choice for a
            quantized or sharded model.
        warmup_steps: steps of warm-up; with ``warmup_share`` they follow from the steps.
        weight_decay: AdamW's.
        min_mask_ratio: lower end of the mask ratio t; the loss weighs tokens by 1/t, so a small one means noisy
            gradients. LLaDA's is 0.001. A family's own floor (`MDLM.ratio_floor`) holds below it.
        max_grad_norm: gradients are clipped to this norm.
        lora_rank: rank of the adapters; their alpha is twice the rank.
        save_every: steps between checkpoints from which a killed run resumes; 0 for none; None for a tenth of the
            steps, and then the last one is deleted when the run is finished; of a model sharded by FSDP or DeepSpeed
            there are none then.
        seed: seed of batch order and noise.
        epochs: passes over the data, instead of ``steps``; see `for_turns`.
        warmup_share: share of the steps that is warm-up, instead of ``warmup_steps``.
        trainer: further arguments of `transformers.TrainingArguments`, such as ``fsdp`` or
            ``gradient_accumulation_steps``; with ``bf16`` false a model in half precision is trained as it is, without
            weights in float32.
    """

    steps: int = 100
    batch_size: int = 32
    learning_rate: float | None = None
    projector_learning_rate: float | None = None
    vision_learning_rate: float | None = None
    method: Literal["full", "lora", "projector"] = "full"
    train_vision: bool = False
    gradient_checkpointing: bool = False
    merge: bool = True
    warmup_steps: int = 10
    weight_decay: float = 0.0
    min_mask_ratio: float = MIN_RATIO
    max_grad_norm: float = 1.0
    lora_rank: int = 16
    save_every: int | None = 0
    seed: int = 0
    epochs: float | None = None
    warmup_share: float | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rates = ("learning_rate", "projector_learning_rate", "vision_learning_rate")
        for name in ("steps", "batch_size", "lora_rank", "epochs", *rates):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DispError(f"{name} must be positive, got {value}")
        check_counts(self, "warmup_steps", least=0)
        if self.save_every is not None:
            check_counts(self, "save_every", least=0)
        check_not_negative(self, "weight_decay", "max_grad_norm")
        if self.warmup_share is not None and not 0 <= self.warmup_share < 1:
            raise DispError(f"warmup_share must be in [0, 1), got {self.warmup_share}")
        if not 0 < self.min_mask_ratio <= 1:
            raise DispError(f"min_mask_ratio must be in (0, 1], got {self.min_mask_ratio}")
        if self.method not in ("full", "lora", "projector"):
            raise DispError(f"method must be 'full', 'lora' or 'projector', got {self.method!r}")
        if self.method == "lora" and self.merge and self.trainer.get("fsdp"):
            raise DispError(
                "adapters of a model sharded by fsdp cannot be merged within the run; set merge to false and merge the "
                "saved adapter afterwards with `disp merge`"
            )

    @property
    def saves_adapter_alone(self) -> bool:
        """Whether what is saved is an adapter, in the folder ``adapter``, and no whole model."""
        return self.method != "full" and not self.merge

    def for_turns(self, turns: int, devices: int = 1) -> TrainConfig:
        """The same settings in steps alone, for a set of so many assistant turns on so many devices.

        An epoch's last step may be filled with turns of the next one, so the steps are rounded up over all epochs.
        """
        steps = self.steps
        if self.epochs is not None:
            step = self.batch_size * int(self.trainer.get("gradient_accumulation_steps", 1)) * devices
            steps = max(1, math.ceil(self.epochs * turns / step))
        warmup = self.warmup_steps if self.warmup_share is None else round(self.warmup_share * steps)
        return replace(self, steps=steps, warmup_steps=warmup, epochs=None, warmup_share=None)
