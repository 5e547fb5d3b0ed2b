"""Fine-tuning on `transformers.Trainer`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

from torch.utils.checkpoint import checkpoint
from transformers import PrinterCallback, TrainingArguments

from disp.data.sample import Query, Sample, digests_of, pictures_sha256, queries_of
from disp.errors import DispError
from disp.files import claim, named_if_unwritable, write_atomically
from disp.locks import alone
from disp.models.adapters import false_alarms_off, put_on, save_adapter, save_projector_adapter
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM
from disp.models.library import no_bar
from disp.models.loading import load_model
from disp.models.saving import save_model
from disp.processes import devices_of_run
from disp.training.checkpoints import check_checkpoint, checkpoints_in
from disp.training.config import TrainConfig
from disp.training.examples import Collator, Examples, Features, cached_features
from disp.training.parameters import (
    half_precision_arguments,
    is_trained,
    learning_rate_of,
    peak_rate,
    select_parameters,
    trained_in_float32,
)
from disp.training.trainer import MDLMTrainer, Progress

# What accelerate tells the processes that it launches with FSDP or DeepSpeed.
FSDP = "ACCELERATE_USE_FSDP"
SHARDING = (FSDP, "ACCELERATE_USE_DEEPSPEED")


@alone
def train(
    model: MDLM,
    samples: Sequence[Sample],
    config: TrainConfig,
    out: Path,
    *,
    features: Features | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> MDLM:
    """Fine-tune a model in place on every assistant turn of the samples, and save it.

    Order and noise are keyed by seed, epoch and query, so they do not depend on batch size or interruption. A run
    that was killed goes on from the newest checkpoint in ``out``; one that is finished is not trained again, and the
    model gets the weights that it ended with.

    Args:
        model: the MDLM; its weights change.
        samples: the fine-tuning set.
        config: see `TrainConfig`.
        out: folder for the model, its checkpoints and ``train.json`` (the loss curve).
        features: what a frozen tower makes of the pictures, by id of the sample and number of pictures shown; filled,
            and taken as it is where an earlier run with the same tower and pictures has filled it.
        progress: called with the number of steps finished.

    Returns:
        The fine-tuned model, in evaluation mode; with ``method="lora"`` the adapters are saved in PEFT format in
        ``out / "adapter"`` and, with ``config.merge``, merged into it; without it a projector is saved there alone. A
        model sharded by FSDP is returned sharded: load it anew from ``out``.

    Raises:
        DispError: there is nothing to train on, a response does not fit into the model's ``gen_length``, a picture
            cannot be read, the model cannot be fine-tuned like this (see `check_training`), or ``out`` holds a run of
            another model or data, or with other settings.
    """
    queries = queries_of(samples)
    if not queries:
        raise DispError("the fine-tuning set is empty; check the data file and the rows that were set aside")
    check_training(model, config)
    devices = devices_of_run()
    config = config.for_turns(len(queries), devices)
    save_every = _save_every(config)
    claim(
        out / "run.json",
        # With as many steps on more devices, each step is about more rows.
        {"weights": fingerprint(model), "config": asdict(config), "devices": devices, **_identity(queries)},
        "a fine-tuning run",
        ignore=("save_every",),
    )
    if (out / "train.json").exists():  # it is written last
        progress(config.steps)
        return _with_saved_weights(model, config, out)
    tokenizer = model.tokenizer
    if config.gradient_checkpointing:
        # The trainer's own switch warns of its future name, whichever of the two is used.
        model._set_gradient_checkpointing(gradient_checkpointing_func=partial(checkpoint, use_reentrant=False))
    trained = select_parameters(model, config)
    cached = None if config.train_vision else cached_features(model, queries, {} if features is None else features)
    if cached is None:
        _check_rows(model, config, queries)
    # The model's loss puts its own floor under the ratio; what is drawn is t before that.
    min_ratio = max(config.min_mask_ratio - model.ratio_floor, 0.0) / (1 - model.ratio_floor)
    examples = Examples(queries, cached, config, model.gen_length, min_ratio)
    arguments = TrainingArguments(
        **{
            "output_dir": str(out / "checkpoints"),
            "max_steps": config.steps,
            "per_device_train_batch_size": config.batch_size,
            "learning_rate": learning_rate_of(model, config),
            "lr_scheduler_type": "cosine",
            "warmup_steps": min(config.warmup_steps, config.steps // 2),
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.max_grad_norm,
            "save_strategy": "steps" if save_every else "no",
            "save_steps": save_every or 500,
            "save_total_limit": 1,
            "logging_steps": 10,
            "seed": config.seed % 2**32,  # of the library's own draws
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "use_cpu": next(trained.parameters()).device.type == "cpu",
            "disable_tqdm": True,
            "report_to": [],
            **half_precision_arguments(model, config),
            **config.trainer,
        }
    )
    # Several GPUs are several processes (torchrun, accelerate): one that splits a batch among them would tear rows
    # from their images.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    # No more than the steps take: from a checkpoint of the last step the trainer would take another.
    batches = arguments.max_steps * arguments.gradient_accumulation_steps
    examples.count = batches * arguments.train_batch_size * arguments.world_size
    trainer = MDLMTrainer(
        model=trained,
        args=arguments,
        train_dataset=examples,
        data_collator=Collator(model),
        callbacks=[Progress(progress)],
        rate_of=partial(peak_rate, model, config),
    )
    trainer.remove_callback(PrinterCallback)
    newest, torn = checkpoints_in(out / "checkpoints")
    if trainer.is_world_process_zero():
        for folder in torn:
            shutil.rmtree(folder)
    trained.train()
    mixed = (arguments.bf16 or arguments.fp16) and not config.trainer.get("fsdp")
    if newest is not None:
        check_checkpoint(newest)
    with no_bar(), named_if_unwritable(out / "checkpoints"), trained_in_float32(trained) if mixed else nullcontext():
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    # A model with the library's mark is taken as it is, without autocast, where it is trained once more.
    trained.__dict__.pop("_is_accelerate_prepared", None)
    trainer.accelerator.wait_for_everyone()
    first = trainer.is_world_process_zero()
    # Shards are gathered by every process; the first writes them.
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    if config.gradient_checkpointing:
        model._set_gradient_checkpointing(enable=False)
    if not isinstance(trained, MDLM):
        if first:
            save_adapter(trained, model.gen_length, out / "adapter", state_dict=state)
        model = cast(MDLM, trained.merge_and_unload() if config.merge else trained.get_base_model())
    elif config.saves_adapter_alone and first:
        save_projector_adapter(model, out / "adapter", state_dict=state)
    model.tokenizer = tokenizer
    if not config.saves_adapter_alone:
        model.requires_grad_(True)
        if first:
            save_model(model, out, state_dict=state)
    if first:
        write_atomically(out / "train.json", lambda temporary: trainer.state.save_to_json(str(temporary)))
        if config.save_every is None:
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return model.eval()


def _save_every(config: TrainConfig) -> int:
    """Steps between checkpoints, 0 for none."""
    if config.save_every is not None:
        return config.save_every
    # Pieces of a sharded model are a checkpoint of another kind, which nobody asked for.
    sharded = config.trainer.get("fsdp") or any(os.environ.get(name) == "true" for name in SHARDING)
    return 0 if sharded else config.steps // 10


def check_training(model: MDLM, config: TrainConfig) -> None:
    """Make sure that a model can be fine-tuned like this, before any work is done for it.

    Args:
        model: the model that is to be fine-tuned.
        config: see `TrainConfig`.

    Raises:
        DispError: the model is quantized and more than adapters would be saved, it is an adapter itself and a new one
            alone would be, the method trains nothing in it, its vision tower cannot be trained, its
            responses are longer than what one pass denoises, it is a published checkpoint and no rate is given, or it
            is on another GPU than training takes.
    """
    if model.device.type == "cuda" and model.device.index and "LOCAL_RANK" not in os.environ:
        raise DispError(
            f"fine-tuning takes the first GPU that it sees, and the model is on {model.device}; set "
            f"CUDA_VISIBLE_DEVICES={model.device.index} and load it on cuda"
        )
    quantized = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    if quantized and not config.saves_adapter_alone:
        raise DispError(
            "quantized weights can be neither trained nor saved; use method 'lora' with merge off (--method lora "
            "--keep-adapter), or load the model without quantization"
        )
    if config.saves_adapter_alone and (adapter := model.adapter):
        raise DispError(
            f"{adapter} is itself an adapter, without which the new one would be saved; write it as a whole model with "
            "`disp merge` and start from that"
        )
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    if config.method != "lora" and not any(is_trained(model, config, name) for name in names):
        raise DispError(f"method {config.method!r} trains nothing in this model; use 'lora' or 'full' (--method)")
    if model.slots_of_pass() < model.gen_length:
        raise DispError(
            f"{type(model).__name__} is trained on one canvas of at most {model.slots_of_pass()} response slots, and "
            f"gen_length is {model.gen_length}; lower it (--gen-length {model.slots_of_pass()}), which leaves rows "
            "with longer answers out"
        )
    if config.train_vision and not any(part in model.picture_names for part in model.vision_names):
        raise DispError(f"the vision tower of {type(model).__name__} cannot be trained; leave train_vision out")
    learning_rate_of(model, config)


def _check_rows(model: MDLM, config: TrainConfig, queries: Sequence[Query]) -> None:
    """Make sure that processes which hold shards of the tower's layers all run it, as they wait for each other there.

    Raises:
        DispError: they do not, as some rows have no picture.
    """
    if not (config.trainer.get("fsdp") or os.environ.get(FSDP) == "true") or all(query.images for query in queries):
        return
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for name, module in model.named_modules():
        if type(module).__name__ in layers and any(part in f"{name}." for part in model.vision_names):
            raise DispError(
                "a model sharded by fsdp is not trained on rows without a picture, for which its vision tower is not "
                "run; use docs/accelerate/zero2.yaml or ddp.yaml, or leave those rows out"
            )


def _identity(queries: Sequence[Query]) -> dict[str, str]:
    """What makes a fine-tuning set this one, wherever its files lie."""
    said = hashlib.sha256()
    for query in queries:
        said.update(json.dumps([query.key, query.system, query.prompt, query.response]).encode())
    images = {query.sample_id: query.images for query in queries}  # of its last turn, which has them all
    return {"queries_sha256": said.hexdigest(), "pictures_sha256": pictures_sha256(digests_of(images))}


def _with_saved_weights(model: MDLM, config: TrainConfig, out: Path) -> MDLM:
    """What `train` returned when it finished the run in ``out``."""
    if config.saves_adapter_alone and config.method == "projector":
        put_on(model, out / "adapter")
    elif config.saves_adapter_alone:
        from peft import PeftModel

        with false_alarms_off():
            PeftModel.from_pretrained(model, str(out / "adapter"))  # puts the adapters into the model itself
    else:
        saved = load_model(out, device="cpu", dtype=model.mask_embedding.dtype)
        model.load_state_dict(saved.state_dict())
        model.requires_grad_(True)
    return model.eval()
