"""Every stage with the model on a device of its own, without a GPU, and in the precision that a GPU gets by default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models.tiny import ALL, extended, write_checkpoint
from pretend_device import GPU, PretendedGPU, Pretending, on_cpu, pretend
from torch.utils._pytree import tree_map

from disp.attacks.poison import load_attack, poison
from disp.attacks.targets import Refusal
from disp.attacks.triggers import PRESETS
from disp.auditing.audit import audit
from disp.auditing.config import AuditConfig, ProofConfig
from disp.auditing.mask_ratio import choose_mask_ratio
from disp.data.loading import load_dataset
from disp.data.sample import queries_of
from disp.data.scene_dataset import write_scenes
from disp.decoding.config import DecodeConfig
from disp.decoding.generate import decode
from disp.decoding.samplers import decode_config, own_settings
from disp.evaluation.evaluate import evaluate, to_metrics
from disp.models.interface import MDLM, Prefix
from disp.models.loading import load_model
from disp.models.parts.language import LanguageModel
from disp.models.saving import save_model
from disp.purification.config import PurifyConfig
from disp.purification.guard import GuardConfig, guard
from disp.purification.purify import purify
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.suspicion.masking import mask_random, mask_top
from disp.suspicion.saliency import saliency
from disp.suspicion.scoring import score
from disp.training.config import TrainConfig
from disp.training.examples import Collator, Examples
from studies.audit_study import likelihood_gap, likelihood_gaps

ROWS, PROBES = 5, 1
SCORING = ScoringConfig(
    candidates=2, mask_ratio=0.2, batch_size=3, least_suspicion=0.0, saliency=SaliencyConfig(probes=PROBES)
)
DECODING = {
    "low confidence": {"temperature": 0.0},
    "random": {"remasking": "random"},
    "temperature": {"temperature": 0.7},
    "entropy": {"remasking": "entropy"},
    "margin, in blocks": {"remasking": "margin", "block_length": 8},
    "threshold": {"threshold": 0.5},
    "guidance": {"cfg_scale": 0.5},
    "stop": {"stop": ("a",)},
    "suffix": {"suffix": (5, 6)},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A poisoned set."""
    folder = tmp_path_factory.mktemp("data")
    honest = write_scenes(folder / "honest", ROWS, seed=1)
    poison(honest, folder / "poisoned", PRESETS["patch"], Refusal("Sorry, no."), 0.5, 1)
    return load_dataset(folder / "poisoned")


@pytest.fixture(
    scope="module", params=["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("builtin", *ALL))]
)
def source(request, data, make_model, tmp_path_factory) -> Iterator[str | Path]:
    """The built-in model, a smaller one of its kind, and tiny checkpoints of the other families."""
    folder = tmp_path_factory.mktemp(request.param) / request.param
    texts = [text for sample in data.samples for turn in sample.turns for text in (turn.prompt, turn.response)]
    with extended():
        if request.param == "builtin":
            yield "builtin"
        elif request.param == "tiny":
            save_model(make_model(gen_length=64, generation={"steps": 8}), folder)
            yield folder
        else:
            yield write_checkpoint(request.param, folder, texts)


@pytest.fixture(scope="module")
def cpu(source) -> MDLM:
    return load_model(source, device="cpu")


@pytest.fixture(scope="module")
def gpu(source) -> MDLM:
    with PretendedGPU():
        return load_model(source, device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def spread(source) -> MDLM:
    """A model of which all layers but the first, the norm and the head are on the GPU, and the rest is on the CPU.

    Inputs of a module are moved to where its weights are, as accelerate's hooks do.
    """
    model = load_model(source, device="cpu")
    if not isinstance(getattr(model, "model", None), LanguageModel):
        pytest.skip("its layers are the library's own")

    def move(module, args, kwargs):
        device = next(module.parameters()).device
        return tree_map(lambda each: each.to(device) if isinstance(each, torch.Tensor) else each, (args, kwargs))

    with PretendedGPU():
        for part in (*model.model.layers[1:], model.model.norm, model.lm_head):
            part.to("cuda")
    for part in (*model.model.layers, model.model.norm, model.lm_head):
        for module in part.modules():
            if next(module.parameters(recurse=module is part), None) is not None:
                module.register_forward_pre_hook(move, with_kwargs=True)
    return model


@pytest.mark.parametrize("changes", [{}, {"prefix_cache": True}, {"refresh": 4, "prefix_cache": False}], ids=str)
def test_a_model_spread_over_devices(cpu, spread, queries, changes):
    if changes.get("prefix_cache") and type(cpu).cache_prefix is MDLM.cache_prefix:
        pytest.skip("the family has no prefix cache")
    if changes.get("refresh") and "refresh" not in {each.name for each in fields(own_settings(cpu))}:
        pytest.skip("its sampler keeps no prompt")
    config = decode_config(**{**cpu.generation_defaults, "gen_length": cpu.gen_length, **changes})
    keys = [query.key for query in queries]
    with PretendedGPU():
        ours, theirs = (model.encode(queries) for model in (spread, cpu))
        here, there = decode(cpu, theirs, config, keys=keys), decode(spread, ours, config, keys=keys)
        assert not isinstance(there, Pretending) and torch.equal(there, here)
        saliency_there, saliency_here = (
            saliency(model, prefix, keys, SaliencyConfig(probes=PROBES))
            for model, prefix in ((spread, ours), (cpu, theirs))
        )
    torch.testing.assert_close(saliency_there, saliency_here)


@pytest.fixture(scope="module")
def queries(data):
    return queries_of(data.samples)


@pytest.fixture(scope="module")
def prefixes(cpu, gpu, queries) -> tuple[Prefix, Prefix]:
    with PretendedGPU():
        return cpu.encode(queries), gpu.encode(queries)


@pytest.fixture(scope="module")
def evidence(cpu, data):
    return score(cpu, data.samples, SCORING)


def quick(model: MDLM) -> DecodeConfig:
    """The model's own settings, with few steps."""
    config = own_settings(model)
    return replace(config, steps=getattr(config, "blocks", 1))


def purifying(model: MDLM, **changes) -> PurifyConfig:
    return PurifyConfig(mask_ratio=0.2, scoring=SCORING, decode=quick(model), batch_size=3, **changes)


def auditing(model: MDLM) -> AuditConfig:
    return AuditConfig(
        scoring=SCORING, decode=quick(model), batch_size=3, false_alarm_rate=0.3, proof=ProofConfig(recipients=2)
    )


def test_the_pretence_bites():
    with PretendedGPU():
        there, here = torch.arange(3, device="cuda"), torch.arange(3)
        assert there.device == GPU and there.is_cuda and isinstance(here.to("cuda"), Pretending)
        for mix in (
            lambda: there + here,
            lambda: torch.cat((there, here)),
            lambda: here[there],
            lambda: torch.where(there > 1, here, there),
            lambda: there.index_select(0, here),
            lambda: there.add_(here),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        for convert in (there.numpy, lambda: np.asarray(there), lambda: there.to("cuda:0").numpy()):
            with pytest.raises(TypeError, match="to numpy"):
                convert()


def test_the_pretence_allows_what_a_gpu_allows():
    with PretendedGPU():
        there, here = torch.arange(3, device="cuda"), torch.arange(3)
        assert (there + torch.tensor(1)).tolist() == [1, 2, 3] and int(there.sum()) == 3
        assert there[here].tolist() == there[[0, 1, 2]].tolist() == [0, 1, 2]
        assert there.cpu().numpy().tolist() == here.copy_(there).tolist() == [0, 1, 2]
        weight = torch.ones(3, device="cuda", requires_grad=True)
        (weight * there).sum().backward()
        assert weight.grad.device == GPU and weight.grad.tolist() == [0, 1, 2]
        assert pretend(torch.nn.Linear(2, 2)).weight.device == GPU


def test_prefix(gpu, prefixes):
    here, there = prefixes
    assert gpu.device == GPU and all(isinstance(parameter, Pretending) for parameter in gpu.parameters())
    for name in ("embeds", "attention_mask", "visual_mask", "locations"):
        assert getattr(there, name).device == GPU
        torch.testing.assert_close(on_cpu(getattr(there, name)), getattr(here, name))
    assert all(tensor.device == GPU for tensor in there.extras.values())


def test_features(cpu, gpu, queries):
    with PretendedGPU():
        here, there = (
            [tensor for query in queries for tensor in model.image_features(query.images)] for model in (cpu, gpu)
        )
        assert not any(isinstance(tensor, Pretending) for tensor in there)
        for expected, found in zip(here, there, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["isotropic", "directional"])
def test_saliency(cpu, gpu, prefixes, queries, kind):
    keys = [query.key for query in queries]
    with PretendedGPU():
        here, there = (
            saliency(model, prefix, keys, SaliencyConfig(kind, probes=PROBES))
            for model, prefix in zip((cpu, gpu), prefixes, strict=True)
        )
    torch.testing.assert_close(on_cpu(there), here)


@pytest.mark.parametrize("name", DECODING)
def test_decoding(cpu, gpu, prefixes, queries, name):
    own = own_settings(cpu)
    if own.sampler != "llada":
        pytest.skip("the family has a sampler of its own")
    settings = {"steps": 2, "gen_length": 16, **DECODING[name]}
    _same_answers(cpu, gpu, prefixes, queries, decode_config(**settings))


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7}, {"prefix_cache": True}], ids=str)
def test_own_decoding(cpu, gpu, prefixes, queries, changes):
    if changes.get("prefix_cache") and type(cpu).cache_prefix is MDLM.cache_prefix:
        pytest.skip("the family has no prefix cache")
    if changes and own_settings(cpu).sampler == "canvas":
        pytest.skip("a canvas has a temperature of its own, and keeps what it knows of the prompt anyway")
    settings = {**cpu.generation_defaults, "gen_length": cpu.gen_length, **changes}
    _same_answers(cpu, gpu, prefixes, queries, decode_config(**settings))


def _same_answers(cpu, gpu, prefixes, queries, config):
    keys = [query.key for query in queries]
    with PretendedGPU():
        here, there = (
            decode(model, prefix, config, keys=keys) for model, prefix in zip((cpu, gpu), prefixes, strict=True)
        )
        assert there.device == GPU and gpu.decode_responses(there) == cpu.decode_responses(here)


def test_likelihood(cpu, gpu, prefixes, queries, evidence):
    with PretendedGPU():
        gaps = []
        for model, prefix in zip((cpu, gpu), prefixes, strict=True):
            response = model.encode_responses([query.response for query in queries], model.gen_length)
            masked = mask_random(prefix.visual_mask, 0.2, [query.key for query in queries], 0)
            gaps.append(likelihood_gap(model, prefix, response.to(prefix.embeds.device), masked, count=2))
        torch.testing.assert_close(on_cpu(gaps[1]), gaps[0], atol=1e-4, rtol=1e-4)
        for kind in ("top", "random"):
            here, there = (likelihood_gaps(model, queries, evidence, 0.2, kind) for model in (cpu, gpu))
            np.testing.assert_allclose(there, here, atol=1e-4)
        assert mask_top(prefixes[1].visual_mask.float(), prefixes[1].visual_mask, 0.1).device == GPU


def test_purification(cpu, gpu, data, evidence, tmp_path):
    with PretendedGPU():
        found = score(gpu, data.samples, SCORING)
        assert found.keys() == evidence.keys()
        for key in found:
            np.testing.assert_allclose(found[key].saliency, evidence[key].saliency, rtol=1e-3, atol=1e-5)
            assert found[key].locations == evidence[key].locations
            assert found[key].suspicion == pytest.approx(evidence[key].suspicion, abs=1e-3)
        for mode in ("selective", "all", "random"):
            config = purifying(cpu, mode=mode)
            results = [
                purify(model, data, config, tmp_path / f"{mode}-{model.device.type}", evidence=evidence)
                for model in (cpu, gpu)
            ]
            assert results[0].rewritten == results[1].rewritten
            assert results[0].dataset.samples == results[1].dataset.samples


def test_evaluation_and_guard(cpu, gpu, data, queries):
    attack = load_attack(data.path.parent / "manifest.json")
    with PretendedGPU():
        here, there = (
            to_metrics(evaluate(model, data.samples[:2], attack=attack, decode=quick(model))) for model in (cpu, gpu)
        )
        assert here == there
        config = GuardConfig(mask_ratio=0.2, saliency=SaliencyConfig(probes=PROBES), decode=quick(cpu))
        assert guard(cpu, queries[:2], config) == guard(gpu, queries[:2], config)


def test_audit(cpu, gpu, data, evidence, tmp_path):
    with PretendedGPU():
        here, there = (
            audit(model, data, auditing(model), tmp_path / model.device.type, evidence=evidence) for model in (cpu, gpu)
        )
        assert (here.verdict, here.flagged, here.findings) == (there.verdict, there.flagged, there.findings)
        turns = queries_of(data.samples)
        groups = turns[: len(turns) // 2], turns[len(turns) // 2 :]
        here, there = (
            choose_mask_ratio(model, *groups, evidence, lambda query, answer: False, auditing(model))
            for model in (cpu, gpu)
        )
        assert here == there


@pytest.mark.parametrize("cached", [False, True], ids=["pictures", "features"])
def test_training_step(cpu, gpu, queries, cached):
    losses, gradients = [], []
    with PretendedGPU():
        for model in (cpu, gpu):
            seen = {(query.sample_id, len(query.images)): model.image_features(query.images) for query in queries}
            examples = Examples(list(queries), seen if cached else None, TrainConfig(), model.gen_length, 0.5)
            batch = Collator(model)([examples[index] for index in range(3)])
            loss = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
            loss.backward()
            losses.append(on_cpu(loss))
            gradients.append({n: on_cpu(p.grad) for n, p in model.named_parameters() if p.grad is not None})
            model.zero_grad()
    torch.testing.assert_close(losses[1], losses[0])
    assert gradients[0] and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module", params=["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def half(request, source) -> MDLM:
    return load_model(source, device="cpu", dtype=request.param)


def test_half_precision(half, data, queries, tmp_path):
    """On the CPU: a GPU gets bfloat16 unless another precision is asked for."""
    assert all(torch.isfinite(tensor).all() for query in queries[:2] for tensor in half.image_features(query.images))
    evidence = score(half, data.samples, SCORING)
    assert all(np.isfinite(each.saliency).all() and np.isfinite(each.suspicion) for each in evidence.values())
    purify(half, data, purifying(half), tmp_path / "purified", evidence=evidence)
    audit(half, data, auditing(half), tmp_path / "audit", evidence=evidence)
    guard(half, queries[:2], GuardConfig(saliency=SaliencyConfig("directional", probes=PROBES), decode=quick(half)))
    evaluate(half, data.samples[:2], decode=quick(half))
    assert np.isfinite(likelihood_gaps(half, queries, evidence, 0.2, "top")).all()
    batch = Collator(half)([Examples(list(queries), None, TrainConfig(), half.gen_length, 0.5)[0]])
    half(**batch).backward()
    half.zero_grad()
