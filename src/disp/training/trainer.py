"""The library's trainer, as `disp.training.train.train` uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class MDLMTrainer(Trainer):
    """The library's trainer with the model's own loss, the run's own order and several learning rates."""

    def __init__(self, *args: Any, rate_of: Callable[[str], float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rate_of = rate_of

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        loss = model(**inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The library's optimiser, with the parameters grouped by learning rate too."""
        optimizer = super().create_optimizer(model)
        parameters = (self.model if model is None else model).named_parameters()  # type: ignore[union-attr]
        names = {id(parameter): name for name, parameter in parameters}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            by_rate: dict[float, list[Any]] = {}
            for parameter in group["params"]:
                by_rate.setdefault(self.rate_of(names[id(parameter)]), []).append(parameter)
            groups += [{**group, "params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
        optimizer.param_groups[:] = groups
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            # PEFT would save the embeddings, too, wherever it takes the vocabulary for another one than the base's:
            # it reads the published config, which says its size otherwise.
            folder = output_dir or str(self.args.output_dir)
            self.model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # `Examples` has a length


class Progress(TrainerCallback):
    """Tells how many steps are finished."""

    def __init__(self, progress: Callable[[int], None]):
        self.progress = progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:  # done before the run was killed
            self.progress(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.progress(1)
