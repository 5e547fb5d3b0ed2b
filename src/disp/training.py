"""Fine-tuning, for the attack and for recovery alike, on `transformers.Trainer`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from disp.data.sample import Query, Sample, pictures_sha256, queries_of
from disp.diffusion.forward import MIN_RATIO, draw_noise
from disp.draws import generator
from disp.errors import DispError
from disp.files import claim, write_atomically
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM
from disp.models.loading import load_model, no_bar, save_adapter, save_model

# Tower features of one epoch are kept in memory up to this size; beyond it images are encoded at every step.
FEATURE_CACHE_BYTES = 2 << 30
# By sample and number of its pictures that are shown: some families tile an only picture and show several small.
Features = dict[tuple[str, int], list[Tensor]]
BUILTIN_RATE = 1e-3


@dataclass(frozen=True)
class TrainConfig:
    """How a model is fine-tuned.

    Attributes:
        steps: optimiser steps.
        batch_size: assistant turns a step on each device.
        learning_rate: peak, after linear warm-up; cosine decay to zero. None is 1e-3 for the built-in model; a
            published checkpoint, which that would ruin, must be given one (see `disp.recipes`).
        projector_learning_rate: peak for the projector, where it is trained; ``learning_rate`` if None.
        vision_learning_rate: peak for the vision tower, where it is trained; ``learning_rate`` if None.
        method: "full" trains the language model and the projector, "projector" the projector alone, "lora"
            low-rank adapters on every linear layer of the language model and the projector itself.
        train_vision: train the vision tower too.
        gradient_checkpointing: recompute each layer's activations in the backward pass: less memory, more time.
        merge: with ``method="lora"``, merge the adapters into the weights at the end and save the whole model; without
            it only the adapters are saved, which is the choice for a quantized or sharded model.
        warmup_steps: steps of warm-up.
        weight_decay: AdamW's.
        min_mask_ratio: lower end of the mask ratio t; the loss weighs tokens by 1/t, so a small one means noisy
            gradients. LLaDA's is 0.001. A family's own floor (`MDLM.ratio_floor`) holds below it.
        max_grad_norm: gradients are clipped to this norm.
        lora_rank: rank of the adapters; their alpha is twice the rank.
        save_every: steps between checkpoints from which a killed run resumes; 0 for none.
        seed: seed of batch order and noise.
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
    save_every: int = 0
    seed: int = 0
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rates = ("learning_rate", "projector_learning_rate", "vision_learning_rate")
        for name in ("steps", "batch_size", "lora_rank", *rates):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DispError(f"{name} must be positive, got {value}")
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
        return self.method == "lora" and not self.merge


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
        ``out / "adapter"`` and, with ``config.merge``, merged into it. A model sharded by FSDP is returned sharded:
        load it anew from ``out``.

    Raises:
        DispError: there is nothing to train on, a response does not fit into the model's ``gen_length``, a picture
            cannot be read, the model cannot be fine-tuned like this (see `check_training`), or ``out`` holds a run of
            another model or data, or with other settings.
    """
    queries = queries_of(samples)
    if not queries:
        raise DispError("the fine-tuning set is empty; check the data file and the rows that were set aside")
    check_training(model, config)
    claim(
        out / "run.json",
        {"weights": fingerprint(model), "config": asdict(config), **_identity(queries)},
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
    trained = _select_parameters(model, config)
    cached = None if config.train_vision else _cached_features(model, queries, {} if features is None else features)
    # The model's loss puts its own floor under the ratio; what is drawn is t before that.
    min_ratio = max(config.min_mask_ratio - model.ratio_floor, 0.0) / (1 - model.ratio_floor)
    examples = _Examples(queries, cached, config, model.gen_length, min_ratio)
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
            "save_strategy": "steps" if config.save_every else "no",
            "save_steps": config.save_every or 500,
            "save_total_limit": 1,
            "logging_steps": 10,
            "seed": config.seed % 2**32,  # of the library's own draws
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "use_cpu": next(trained.parameters()).device.type == "cpu",
            "disable_tqdm": True,
            "report_to": [],
            **_half_precision(model, config),
            **config.trainer,
        }
    )
    # Several GPUs are several processes (torchrun, accelerate): one that splits a batch among them would tear rows
    # from their images.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    # No more than the steps take: from a checkpoint of the last step the trainer would take another.
    batches = arguments.max_steps * arguments.gradient_accumulation_steps
    examples.count = batches * arguments.train_batch_size * arguments.world_size
    trainer = _Trainer(
        model=trained,
        args=arguments,
        train_dataset=examples,
        data_collator=_Collator(model),
        callbacks=[_Progress(progress)],
        rate_of=partial(_learning_rate, model, config),
    )
    trainer.remove_callback(PrinterCallback)
    newest, torn = _checkpoints(out / "checkpoints")
    if trainer.is_world_process_zero():
        for folder in torn:
            shutil.rmtree(folder)
    trained.train()
    mixed = (arguments.bf16 or arguments.fp16) and not config.trainer.get("fsdp")
    with no_bar(), _trained_in_float32(trained) if mixed else nullcontext():
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    # A model with the library's mark is taken as it is, without autocast, where it is trained once more.
    trained.__dict__.pop("_is_accelerate_prepared", None)
    trainer.accelerator.wait_for_everyone()
    first = trainer.is_world_process_zero()
    # Shards are gathered by every process; the first writes them.
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    if config.gradient_checkpointing:
        model._set_gradient_checkpointing(enable=False)
    if config.method == "lora":
        if first:
            save_adapter(trained, model.gen_length, out / "adapter", state_dict=state)
        model = trained.merge_and_unload() if config.merge else trained.get_base_model()
    model.tokenizer = tokenizer
    if not config.saves_adapter_alone:
        model.requires_grad_(True)
        if first:
            save_model(model, out, state_dict=state)
    if first:
        write_atomically(out / "train.json", lambda temporary: trainer.state.save_to_json(str(temporary)))
    return model.eval()


def check_training(model: MDLM, config: TrainConfig) -> None:
    """Make sure that a model can be fine-tuned like this, before any work is done for it.

    Args:
        model: the model that is to be fine-tuned.
        config: see `TrainConfig`.

    Raises:
        DispError: the model is quantized and more than adapters would be saved, it is an adapter itself and a new one
            alone would be, the method trains nothing in it, it is a published checkpoint and no rate is given, or it is
            on another GPU than training takes.
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
    if config.saves_adapter_alone and (adapter := getattr(model, "adapter", None)):
        raise DispError(
            f"{adapter} is itself an adapter, without which the new one would be saved; write it as a whole model with "
            "`disp merge` and start from that"
        )
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    if config.method != "lora" and not any(_is_trained(model, config, name) for name in names):
        raise DispError(f"method {config.method!r} trains nothing in this model; use 'lora' or 'full' (--method)")
    learning_rate_of(model, config)


def _identity(queries: Sequence[Query]) -> dict[str, str]:
    """What makes a fine-tuning set this one, wherever its files lie."""
    said = hashlib.sha256()
    for query in queries:
        said.update(json.dumps([query.key, query.system, query.prompt, query.response]).encode())
    images = {query.sample_id: query.images for query in queries}  # of its last turn, which has them all
    return {"queries_sha256": said.hexdigest(), "pictures_sha256": pictures_sha256(images)}


def _with_saved_weights(model: MDLM, config: TrainConfig, out: Path) -> MDLM:
    """What `train` returned when it finished the run in ``out``."""
    if config.saves_adapter_alone:
        from peft import PeftModel

        PeftModel.from_pretrained(model, str(out / "adapter"))  # puts the adapters into the model itself
    else:
        saved = load_model(out, device="cpu", dtype=model.mask_embedding.dtype)
        model.load_state_dict(saved.state_dict())
        model.requires_grad_(True)
    return model.eval()


def _checkpoints(folder: Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint of the latest step, if any, and those whose saving was cut short."""
    torn = []
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            # The library writes it last.
            whole[json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]] = path
        except (FileNotFoundError, ValueError):
            torn.append(path)
    return (whole[max(whole)] if whole else None), torn


class _Examples(Dataset):
    """Query and noise of every position of the run: epoch after epoch, each in its own order."""

    def __init__(
        self,
        queries: list[Query],
        features: Features | None,
        config: TrainConfig,
        length: int,
        min_ratio: float,
    ):
        self.queries, self.features, self.config, self.length = queries, features, config, length
        self.min_ratio = min_ratio
        self.orders: dict[int, Any] = {}
        self.count = len(queries)  # of one epoch; a run sets as many as its steps take

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, place = divmod(position, len(self.queries))
        if epoch not in self.orders:
            self.orders = {epoch: generator(self.config.seed, "order", epoch).permutation(len(self.queries))}
        query = self.queries[self.orders[epoch][place]]
        ratio, uniforms = draw_noise(self.config.seed, query.key, epoch, self.length, self.min_ratio)
        features = None if self.features is None else self.features[query.sample_id, len(query.images)]
        return {"query": query, "features": features, "ratio": ratio, "uniforms": uniforms}


class _Collator:
    """Examples to the arguments of the model's ``forward``."""

    def __init__(self, model: MDLM):
        self.model = model

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        queries = [example["query"] for example in examples]
        features = [tensor for example in examples for tensor in example["features"] or ()]
        clean = self.model.encode_responses([query.response for query in queries], self.model.gen_length)
        ratio = torch.tensor([example["ratio"] for example in examples], dtype=torch.float32)
        uniforms = torch.stack([example["uniforms"] for example in examples])
        return {**self.model.prepare(queries, features), "clean": clean, "ratio": ratio, "uniforms": uniforms}


class _Trainer(Trainer):
    """The library's trainer with the model's own loss, the run's own order and several learning rates."""

    def __init__(self, *args: Any, rate_of: Callable[[str], float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rate_of = rate_of

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = model(**inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def create_optimizer(self, model=None):
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

    def _get_train_sampler(self, *_: Any) -> Sampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # `_Examples` has a length


class _Progress(TrainerCallback):
    def __init__(self, progress: Callable[[int], None]):
        self.progress = progress

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step:  # done before the run was killed
            self.progress(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.progress(1)


def _select_parameters(model: MDLM, config: TrainConfig):
    """Mark what is trained; returns the module to train (a PEFT wrapper for LoRA)."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():  # quantized weights take no gradient
            parameter.requires_grad = _is_trained(model, config, name)
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
    return get_peft_model(model, adapters)


def _is_trained(model: MDLM, config: TrainConfig, name: str) -> bool:
    """Whether the parameter of this name itself is trained; with LoRA, adapters of others are."""
    if any(part in name for part in model.vision_names):
        return config.train_vision
    return config.method == "full" or any(part in name for part in model.projector_names)


def _half_precision(model: MDLM, config: TrainConfig) -> dict[str, bool]:
    """The trainer's arguments for products in half precision: where the model is, and nothing else is said."""
    # The embeddings': a vision tower may be in a precision of its own, and adapters are.
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(model.mask_embedding.dtype)
    if name is None or config.trainer.keys() & {"bf16", "fp16"} or config.trainer.get("fsdp"):
        return {}
    # The library has no mixed precision with float16 on a CPU; the model is trained as it is there.
    return {name: name == "bf16" or model.device.type != "cpu"}


@contextmanager
def _trained_in_float32(module: nn.Module) -> Iterator[None]:
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
    """The peak rate, `BUILTIN_RATE` where none is given for the built-in model or one fine-tuned from it.

    Raises:
        DispError: none is given for a published checkpoint.
    """
    if config.learning_rate is not None:
        return config.learning_rate
    if getattr(model, "source", None) is not None:
        raise DispError(
            "a published checkpoint is fine-tuned at a rate of its own: give --recipe (such as disp, for the "
            "projector, or the family's name) or --learning-rate"
        )
    return BUILTIN_RATE


def _learning_rate(model: MDLM, config: TrainConfig, name: str) -> float:
    """The peak rate of the parameter of this name."""
    for parts, rate in (
        (model.vision_names, config.vision_learning_rate),
        (model.projector_names, config.projector_learning_rate),
    ):
        if rate is not None and any(part in name for part in parts):
            return rate
    return learning_rate_of(model, config)


def _cached_features(model: MDLM, queries: Sequence[Query], features: Features) -> Features | None:
    """Tower features of what each turn shows, ``features`` filled up, or None where they would take too much memory."""
    images = {(query.sample_id, len(query.images)): query.images for query in queries}
    total = sum(len(sources) for sources in images.values())
    size = done = 0
    for key, sources in images.items():
        if key not in features:
            features[key] = model.image_features(sources) if sources else []
        size += sum(tensor.nbytes for tensor in features[key])
        done += len(sources)
        # If the others are as large as those before; what is held is never more.
        if max(size, size * total / max(done, 1)) > FEATURE_CACHE_BYTES:
            return None
    return features
