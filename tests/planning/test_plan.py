"""Plans against what is measured: allocations by the profiler, passes by counting, parameters by building models."""

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest
import torch
from families.tiny import write_checkpoint
from parity_folder import PARITY
from planted import GRID, audit_config, honest_rows, planted_model, planted_rows, write_rows
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from disp.attacks.poison import Attack
from disp.attacks.targets import Refusal
from disp.attacks.triggers import PRESETS
from disp.auditing.audit import AuditConfig, audit
from disp.data.llava import load_dataset, save_dataset
from disp.data.sample import Query, Sample, Turn, queries_of
from disp.decoding.decode import DecodeConfig, decode
from disp.errors import DispError
from disp.evaluation.evaluate import evaluate
from disp.models.builtin.model import LladaV, LladaVConfig
from disp.models.interface import Prefix
from disp.models.llada_v.config import CHAT_TEMPLATE, SYSTEM
from disp.models.loading import load_model
from disp.planning.checkpoints import read_config, stored_parameters
from disp.planning.families import sizes_of
from disp.planning.memory import (
    Rows,
    decoding_bytes,
    encoding_bytes,
    saliency_bytes,
    trained_parameters,
    training_memory,
    weight_bytes,
)
from disp.planning.passes import Asked, audit_passes, decoding_passes
from disp.planning.plan import PlanSettings, default_decode, make_plan
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify
from disp.suspicion.saliency import SaliencyConfig, first_step, saliency
from disp.suspicion.scoring import score
from disp.training.config import TrainConfig
from disp.training.parameters import select_parameters, trained_in_float32
from disp.training.train import train

LLADA_8B = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 126464, "model_type": "llava_llada",
    "image_grid_pinpoints": "(1x1),...,(6x6)", "image_aspect_ratio": "anyres_max_4", "mm_vision_tower": "siglip2",
}  # fmt: skip
LAVIDA = {
    "d_model": 4096, "n_layers": 32, "n_heads": 32, "mlp_hidden_size": 12288, "vocab_size": 126464,
    "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]], "model_type": "llava_llada",
    "mm_vision_tower": "siglip", "image_aspect_ratio": "anyres", "mm_spatial_pool_mode": "bilinear",
}  # fmt: skip
MMADA = {"model_type": "mmada", **{name: LAVIDA[name] for name in ("d_model", "n_layers", "n_heads")}} | {
    "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 134656,
}  # fmt: skip


@pytest.fixture(scope="module")
def builtin():
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def larger(builtin):
    """Twice as wide, half as deep again, with grouped keys; random weights."""
    config = builtin.config
    vision = {**config.vision, "hidden_size": 320, "intermediate_size": 1280, "num_attention_heads": 10}
    model = LladaV(
        LladaVConfig(
            vocab_size=config.vocab_size, hidden_size=320, intermediate_size=864, num_hidden_layers=6,
            num_attention_heads=10, num_key_value_heads=5, gen_length=32, vision=vision,
        )
    )  # fmt: skip
    model.tokenizer = builtin.tokenizer
    return model.eval()


@pytest.fixture(scope="module")
def measured_models(builtin, larger):
    return {"built-in": builtin, "larger": larger}


@pytest.fixture(scope="module")
def asked(picture):
    return [Query(str(index), 0, (picture(index, 96),), (), "<image>\nDescribe the picture.") for index in range(4)]


def peak(run) -> int:
    """Bytes that the allocator handed out beyond what was there before, at the highest point of ``run``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        run()
    events = [(e.start_ns(), e.nbytes()) for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = highest = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        highest = max(highest, now)
    return highest


def close(planned: int, measured: int):
    assert 0.75 * measured <= planned <= 1.25 * measured, f"planned {planned:,}, measured {measured:,}"


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["built-in", "larger"])
def test_peak_of_encoding_saliency_and_decoding(measured_models, asked, name):
    model = measured_models[name]
    sizes = sizes_of(model.config.to_dict())
    prefix = model.encode(asked)
    rows = Rows(len(asked), prefix.embeds.shape[1], 32, 144, 1)
    keys = [query.key for query in asked]
    close(encoding_bytes(sizes, rows, 4), peak(lambda: model.encode(asked)))
    used = peak(lambda: saliency(model, prefix, keys, SaliencyConfig(probes=3)))
    close(saliency_bytes(sizes, rows, 4), used + prefix.embeds.nbytes)
    used = peak(lambda: decode(model, prefix, DecodeConfig(32, 4)))
    close(decoding_bytes(sizes, rows, 4), used + prefix.embeds.nbytes)


TRAININGS = [
    *(("built-in", method, False, torch.float32) for method in ("full", "lora", "projector")),
    *(("larger", method, True, torch.float32) for method in ("full", "lora")), ("larger", "full", False, torch.float32),
    *(("built-in", method, False, torch.bfloat16) for method in ("full", "lora", "projector")),
    # Half a minute each where the processor has no instructions for it.
    *(pytest.param("larger", way, True, torch.bfloat16, marks=pytest.mark.slow) for way in ("full", "lora")),
]  # fmt: skip


@pytest.mark.parametrize("name, method, checkpointing, dtype", TRAININGS)
def test_peak_of_a_training_step(measured_models, asked, name, method, checkpointing, dtype):
    source = measured_models[name]
    model = LladaV(source.config).to(dtype)
    model.tokenizer = source.tokenizer
    sizes = sizes_of(model.config.to_dict())
    if checkpointing:
        model._set_gradient_checkpointing(gradient_checkpointing_func=partial(checkpoint, use_reentrant=False))
    inputs = model.prepare(asked, model.image_features([query.images[0] for query in asked]))
    inputs |= {"clean": model.encode_responses(["A red apple."] * len(asked), 32)}
    inputs |= {"ratio": torch.full((len(asked),), 0.5), "uniforms": torch.rand(len(asked), 32)}
    rows = Rows(len(asked), inputs["token_ids"].shape[1], 32, 144, 1)
    module = select_parameters(model, TrainConfig(method=method))
    module.train()
    chosen = [parameter for parameter in module.parameters() if parameter.requires_grad]
    trained = sum(parameter.numel() for parameter in chosen)
    assert trained == trained_parameters(sizes, sizes.parameters, method, 16, False)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            loss = module(**inputs)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    plan = training_memory(
        sizes, rows, dtype.itemsize, sizes.parameters * dtype.itemsize, trained, method=method,
        checkpointing=checkpointing,
    )  # fmt: skip
    with trained_in_float32(module):
        optimiser = torch.optim.AdamW(chosen, fused=True)
        step()  # the moments are made in the first one
        close(plan.activations + plan.gradients, peak(step))
        assert plan.weights == sum(value.nbytes for value in module.parameters())
    assert plan.optimiser == sum(v.nbytes for state in optimiser.state.values() for v in state.values() if v.dim())


def test_what_saliency_keeps_is_what_autograd_saves(builtin, asked):
    prefix = builtin.encode(asked)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in builtin.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage  # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        first_step(builtin, prefix, 32)
    from disp.planning.memory import _kept

    rows = Rows(len(asked), prefix.embeds.shape[1], 32, 144, 1)
    kept = sum(_kept(sizes_of(builtin.config.to_dict()).language, rows, 4, trained=False))
    assert kept == pytest.approx(sum(storage.nbytes() for storage in saved.values()), rel=0.01)


def test_gradients_are_held_beside_activations_where_batches_are_summed(builtin):
    sizes = sizes_of(builtin.config.to_dict())
    plans = [
        training_memory(sizes, Rows(4, 150, 32, 144, 1), 4, 0, 1000, method="full", accumulation=n) for n in (1, 2)
    ]
    assert [plan.gradients for plan in plans] == [0, 4000]


def test_quantized_weights_take_less():
    sizes = sizes_of(LLADA_8B)
    whole = weight_bytes(sizes, sizes.parameters, 2)
    assert whole == 2 * sizes.parameters
    assert weight_bytes(sizes, sizes.parameters, 2, bits=8) / whole == pytest.approx(0.59, abs=0.02)
    assert weight_bytes(sizes, sizes.parameters, 2, bits=4) / whole == pytest.approx(0.41, abs=0.02)


# --- parameters and tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["built-in", "larger"])
def test_parameters_by_the_config(measured_models, name):
    model = measured_models[name]
    sizes = sizes_of(model.config.to_dict())
    counted = Counter()
    for parameter, value in model.named_parameters():
        part = next((part for part in ("vision_tower", "mm_projector") if part in parameter), "language")
        counted[part] += value.numel()
    assert (sizes.language_parameters, sizes.tower.parameters, sizes.projector_parameters) == (
        counted["language"], counted["vision_tower"], counted["mm_projector"],
    )  # fmt: skip


def test_parameters_of_the_published_language_model():
    # 16,031,162,368 bytes in bfloat16, as the published index says.
    assert 2 * sizes_of(LLADA_8B).language_parameters == 16_031_162_368


@pytest.mark.parametrize("family", ["llada_v", "lavida_llada", "lavida_dream", "dimple"])
def test_parameters_of_published_layouts(family):
    if not (PARITY / family).is_dir():
        pytest.skip(f"no parity data in {PARITY}; set DISP_PARITY_DIR")
    config, vision = read_config(PARITY / family)
    stored = stored_parameters(PARITY / family)
    assert sizes_of(config, vision).parameters == sum(stored.values())


def test_parameters_of_a_mixture_of_experts():
    """DiffusionGemma's, with the library's own model as the truth: the formula leaves out small parts."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    text = {
        "num_hidden_layers": 30, "hidden_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 256, "num_global_key_value_heads": 2, "intermediate_size": 2112, "moe_intermediate_size": 704,
        "num_experts": 128, "top_k_experts": 8, "vocab_size": 262144,
    }  # fmt: skip
    vision = {
        "model_type": "gemma4_vision", "num_hidden_layers": 27, "hidden_size": 1152, "intermediate_size": 4304,
        "num_attention_heads": 16,
    }  # fmt: skip
    config = DiffusionGemmaConfig(text_config=text, vision_config=vision)
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion(config)
    sizes = sizes_of(config.to_dict())
    assert sizes.parameters == pytest.approx(sum(value.numel() for value in model.parameters()), rel=0.01)
    for size, tokens in (((224, 224), 256), ((640, 480), 266), ((1920, 1080), 264), ((200, 600), 252)):
        assert sizes.visual_count([size]).visual == tokens


@pytest.mark.parametrize(
    "family, module",
    [
        ("llada_v", "llada_v_official"), ("lavida_llada", "lavida"), ("lavida_dream", "lavida"), ("mmada", "mmada"),
        ("dimple", "dimple"),
    ],
)  # fmt: skip
def test_peaks_of_published_families(family, module):
    """On the tiny random models of the parity data, with a long prefix, so that their small widths do not hide it."""
    if not (PARITY / family).is_dir():
        pytest.skip(f"no parity data in {PARITY}; set DISP_PARITY_DIR")
    model = import_module(f"disp.models.{module}").load_official(PARITY / family, dtype=torch.float32, device="cpu")
    model.eval()
    model.mask_token_id, model.banned_token_ids = 5, ()  # their own ids are beyond the shrunk vocabulary
    sizes = sizes_of(*read_config(PARITY / family))
    length, slots = 1500, 64
    visual = torch.zeros(1, length, dtype=torch.bool)
    visual[:, 10:1400] = True
    positions = torch.arange(length)[None, :, None].expand(1, length, 3).contiguous()
    prefix = Prefix(
        torch.randn(1, length, sizes.language.width), torch.ones_like(visual), visual,
        torch.full((1, length, 4), -1), {"positions": positions} if family == "dimple" else {},
    )  # fmt: skip
    rows = Rows(1, length, slots, 1390, 1)
    used = peak(lambda: saliency(model, prefix, ["a"], SaliencyConfig(probes=3), gen_length=slots))
    close(saliency_bytes(sizes, rows, 4), used + prefix.embeds.nbytes)
    used = peak(lambda: decode(model, prefix, DecodeConfig(slots, 2)))
    close(decoding_bytes(sizes, rows, 4), used + prefix.embeds.nbytes)


@pytest.mark.parametrize("family", ["llada_v", "lavida_llada", "lavida_dream"])
def test_visual_tokens_of_published_examples(family):
    if not (PARITY / family).is_dir():
        pytest.skip(f"no parity data in {PARITY}; set DISP_PARITY_DIR")
    meta = json.loads((PARITY / family / "meta.json").read_text())
    count = sizes_of(*read_config(PARITY / family)).visual_count([tuple(meta["image_size_wh"])])
    assert count.visual + count.others == meta["num_visual_tokens"]


@pytest.mark.parametrize(
    "config, size, tokens",
    [
        (LLADA_8B, (384, 384), 1485), (LLADA_8B, (640, 480), 2929), (LLADA_8B, (480, 640), 2943),
        (LLADA_8B, (1024, 768), 3627), (LLADA_8B, (200, 600), 1809),
        (LAVIDA, (384, 384), 406), (LAVIDA, (640, 480), 834), (LAVIDA, (1920, 1080), 660), (LAVIDA, (600, 200), 486),
    ],
)  # fmt: skip
def test_visual_tokens_of_tiled_pictures(config, size, tokens):
    count = sizes_of(config).visual_count([size])
    assert count.visual + count.others == tokens


def test_several_pictures_are_one_tile_each():
    count = sizes_of(LLADA_8B).visual_count([(640, 480), (200, 600)])
    assert (count.visual, count.others, count.tiles) == (2 * 729, 2, 2)


def test_stored_parameters_of_shards(tmp_path, builtin):
    builtin.save_pretrained(tmp_path, max_shard_size="2MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    stored = stored_parameters(tmp_path)
    assert stored == {name: value.numel() for name, value in builtin.state_dict().items()}
    next(tmp_path.glob("*-00002-*.safetensors")).unlink()
    assert stored_parameters(tmp_path) is None


def test_unknown_and_incomplete_configs():
    with pytest.raises(DispError, match="'gpt2' is of no family"):
        sizes_of({"model_type": "gpt2"})
    with pytest.raises(DispError, match="no field 'vocab_size'"):
        sizes_of({key: value for key, value in LLADA_8B.items() if key != "vocab_size"})


# --- passes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory, picture):
    """Eleven samples: a few with two turns, one without a picture."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    samples = []
    for number in range(11):
        path = folder / "images" / f"{number}.png"
        picture(number).save(path)
        turns = (Turn("Is there a boat?", "no"), Turn("What is a cat?", "a"))[: 1 + (number % 4 == 1)]
        samples.append(Sample(str(number), () if number == 6 else (path,), turns))
    save_dataset(samples, folder / "data.json", folder / "images")
    return load_dataset(folder)


@contextmanager
def counting(model):
    """Counts calls of ``denoise``, their rows, and backward passes through their logits."""
    counts = Counter()
    plain = model.denoise

    def denoise(prefix, response, *rest, **named):
        logits = plain(prefix, response, *rest, **named)
        counts["forward"] += 1
        counts["rows"] += len(response)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: counts.update(backward=1))
        return logits

    model.denoise = denoise
    try:
        yield counts
    finally:
        del model.denoise


def check(passes, counts):
    planned = {"forward": passes.forward, "backward": passes.backward, "rows": passes.rows}
    if passes.at_most:
        assert all(counts[name] <= number for name, number in planned.items()), (counts, planned)
    else:
        assert planned == {name: counts[name] for name in planned}


@pytest.fixture(scope="module")
def settings():
    scoring = PurifyConfig(
        mode="all", batch_size=4, mask_ratio=0.5, candidates=3, saliency=SaliencyConfig(probes=3),
        decode=DecodeConfig(gen_length=4, steps=3),
    )  # fmt: skip
    return PlanSettings(
        dtype="float32", purify=scoring, train=TrainConfig(steps=3, batch_size=2), attacked=True,
        evaluation_batch_size=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    tiny_model.tokenizer.save_pretrained(folder)
    return folder


def test_passes_of_scoring_and_purification(tiny_model, tiny_folder, data, settings, tmp_path):
    plan = make_plan(tiny_folder, data, settings)
    with counting(tiny_model) as counts:
        score(tiny_model, data.samples, settings.purify)
    # How many sets are halved shows on the way; without blocks there is nothing to halve.
    assert plan.passes["score"].at_most
    check(plan.passes["score"], counts)
    singles = replace(settings, purify=replace(settings.purify, mask_ratio=0.0))
    passes = make_plan(tiny_folder, data, singles).passes["score"]
    with counting(tiny_model) as counts:
        score(tiny_model, data.samples, singles.purify)
    assert not passes.at_most
    check(passes, counts)
    with counting(tiny_model) as counts:
        purify(tiny_model, data, settings.purify, tmp_path / "all")
    assert not plan.passes["purify"].at_most
    check(plan.passes["purify"], counts)


def test_passes_of_selective_purification_and_audit(tiny_model, tiny_folder, data, settings, tmp_path):
    selective = replace(settings.purify, mode="selective")
    plan = make_plan(tiny_folder, data, replace(settings, purify=selective))
    with counting(tiny_model) as counts:
        purify(tiny_model, data, selective, tmp_path / "selective")
    assert plan.passes["purify"].at_most
    check(plan.passes["purify"], counts)
    with counting(tiny_model) as counts:
        audit(tiny_model, data, AuditConfig(scoring=selective), tmp_path / "audit")
    assert plan.passes["audit"].at_most
    check(plan.passes["audit"], counts)


def test_passes_of_an_audit_that_finds_a_phrase(tmp_path):
    model, config = planted_model(), audit_config()
    rows = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows()])
    asked = [Asked(query.turn, GRID**2 * len(query.images)) for query in queries_of(rows.samples)]
    with counting(model) as counts:
        found = audit(model, rows, config, tmp_path / "audit")
    assert found.verdict == "poisoned" and found.ratio is not None
    check(audit_passes(asked, config), counts)


def test_passes_of_training(make_model, tiny_folder, data, settings, tmp_path):
    plan = make_plan(tiny_folder, data, settings)
    model = make_model()
    with counting(model) as counts:
        train(model, data.samples, settings.train, tmp_path)
    check(plan.passes["train"], counts)


def test_passes_of_evaluation(tiny_model, tiny_folder, data, settings):
    plan = make_plan(tiny_folder, data, settings)
    attack = Attack(PRESETS["patch"], Refusal(), 0.1, 0)
    with counting(tiny_model) as counts:
        evaluate(tiny_model, data.samples, attack=attack, decode=settings.purify.decode, batch_size=4)
    check(plan.passes["evaluate"], counts)


@pytest.mark.parametrize(
    "given",
    [
        {"gen_length": 4, "steps": 8}, {"gen_length": 4, "steps": 4, "block_length": 2},
        {"gen_length": 4, "steps": 2, "cfg_scale": 1.0}, {"gen_length": 4, "steps": 4, "threshold": 0.1},
    ],
)  # fmt: skip
def test_passes_of_decoding(tiny_model, queries, given):
    config = DecodeConfig(**given)
    with counting(tiny_model) as counts:
        decode(tiny_model, tiny_model.encode(queries), config)
    check(decoding_passes(len(queries), len(queries), config), counts)


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_prefix_is_as_long_as_the_model_makes_it(tiny_model, tiny_folder, data, settings):
    from disp.data.sample import queries_of

    plan = make_plan(tiny_folder, data, settings)
    assert plan.measured_text and plan.counted
    assert plan.prefix == pytest.approx(tiny_model.encode(queries_of(data.samples)).embeds.shape[1], abs=3)
    assert plan.visual_tokens == (9, 9)
    assert plan.parameters == sum(parameter.numel() for parameter in tiny_model.parameters())
    text = plan.to_text()
    for part in ("saliency", "decoding", "training", "audit", "purify", "evaluate", "11 samples", "14 answers"):
        assert part in text


@pytest.mark.parametrize("system", [None, "Say little."])
def test_the_prefix_has_a_system_message(tmp_path, data, settings, system):
    """LLaDA-V's own one, where the chat has none."""
    from disp.data.sample import queries_of

    texts = [turn.prompt for sample in data.samples for turn in sample.turns]
    folder = write_checkpoint("llada_v", tmp_path / "llada_v", [*texts, SYSTEM])
    assert not make_plan(folder, data, settings).measured_text  # the tokenizer came without a chat template
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    samples = tuple(replace(sample, system=system) for sample in data.samples)
    plan = make_plan(folder, replace(data, samples=samples), settings)
    real = load_model(folder, device="cpu").encode(queries_of(samples)).embeds.shape[1]
    assert plan.measured_text and plan.prefix == pytest.approx(real, abs=3)


def test_a_config_alone_is_enough(data):
    plan = make_plan(LLADA_8B, data, PlanSettings(purify=PurifyConfig(batch_size=1, decode=default_decode(LLADA_8B))))
    assert not plan.counted and not plan.measured_text
    assert plan.memory["decoding"].weights == 2 * plan.parameters
    assert "by its config" in plan.to_text() and "guessed" in plan.to_text()
    assert default_decode(LLADA_8B).gen_length == 128


def test_a_method_that_trains_nothing_is_refused(data):
    """Nothing stands between MMaDA's image tokens and its language model."""
    settings = PlanSettings(train=TrainConfig(method="projector"))
    with pytest.raises(DispError, match="method 'projector' trains nothing in this model; use 'lora' or 'full'"):
        make_plan(MMADA, data, settings)
    plan = make_plan(MMADA, data, PlanSettings(train=TrainConfig(method="lora")))
    assert plan.trained == sizes_of(MMADA).language.adapter_parameters(16)


def test_saliency_of_the_published_size_is_what_its_layers_keep():
    # Attention keeps 4 values of width d a position, the gated layer 9, and two norms one each in 32 bits.
    sizes = sizes_of(LLADA_8B)
    planned = saliency_bytes(sizes, Rows(1, 2000, 128, 1900, 5), 2)
    assert planned == pytest.approx(17 * 2 * 4096 * 32 * 2128, rel=0.1)


def test_an_adapter_is_planned_as_its_base(tmp_path, tiny_folder, data, settings):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_folder)}))
    assert make_plan(tmp_path, data, settings).parameters == make_plan(tiny_folder, data, settings).parameters


def test_of_a_hub_model_only_the_small_files_are_fetched(monkeypatch, tiny_folder, data, settings):
    asked_for = {}

    def snapshot_download(name, allow_patterns):
        asked_for[name] = allow_patterns
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    make_plan("somebody/model", data, settings)
    assert not any("safetensors" in pattern for pattern in asked_for["somebody/model"])


@pytest.mark.parametrize(
    "given",
    [
        {"dtype": "int8"},
        {"bits": 3},
        {"bits": 4},
        {"bits": 4, "train": TrainConfig(method="projector")},
        {"evaluation_batch_size": 0},
    ],
)
def test_settings_that_make_no_sense(given):
    with pytest.raises(DispError):
        PlanSettings(**given)
