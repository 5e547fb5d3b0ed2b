"""Steps that compute less: the same answers where that is promised, and a slow truth where it is not.

The slow truth of a kept prompt runs whole passes and puts the prompt's hidden states of the earlier step back before
every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from models.tiny import FAMILIES, LENGTH, write_checkpoint
from torch import Tensor, nn

from disp.decoding.generate import answers_of, decode, decode_with_lengths
from disp.decoding.predictor import all_sure, at_end, first_open
from disp.decoding.samplers import changed_config, decode_config, own_settings
from disp.errors import DispError
from disp.models.builtin.model import BuiltinModel
from disp.models.interface import MDLM, Prefix
from disp.models.loading import load_model

MASKED = tuple(name for name in FAMILIES if name != "diffusion_gemma")  # the others have no mask token
SHIFTED = ("lavida_dream", "dimple")  # row i predicts token i + 1


@pytest.fixture(scope="module", params=("builtin", *MASKED))
def model(request, make_model, queries, tmp_path_factory) -> MDLM:
    """A tiny model of each family whose decoder fills masks, in float64, with a prompt cache of no other kind."""
    if request.param == "builtin":
        found = make_model()
    else:
        texts = [query.prompt for query in queries]
        found = load_model(write_checkpoint(request.param, tmp_path_factory.mktemp("tiny") / "model", texts))
    found.shifted = request.param in SHIFTED
    found.generation_defaults = {**found.generation_defaults, "prefix_cache": False}
    return found.double().eval()


@pytest.fixture(scope="module")
def prefix(model, queries) -> Prefix:
    """A padded batch: one picture, one picture, none."""
    with torch.no_grad():
        return model.encode(queries[:3])


@contextmanager
def before_each_layer(model: MDLM, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """What goes into layer i is ``change(i, x)``."""

    def hook(index: int) -> Callable[[nn.Module, tuple], tuple]:
        return lambda module, given: (change(index, given[0]), *given[1:])

    handles = [
        layer.register_forward_pre_hook(hook(index)) for index, layer in enumerate(model.get_submodule("model.layers"))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def whole_pass(model: MDLM, prefix: Prefix, response: Tensor, prompt: list[Tensor], *, fresh: bool) -> Tensor:
    """Logits ``[B, L, V]`` of a whole pass; ``prompt`` is what the last fresh one put into each layer of the prompt."""
    kept = prefix.embeds.shape[1] - int(model.shifted)
    if fresh:
        prompt.clear()

    def change(index: int, x: Tensor) -> Tensor:
        if fresh:
            prompt.append(x[:, :kept].clone())
            return x
        return torch.cat((prompt[index], x[:, kept:]), dim=1)

    with before_each_layer(model, change):
        return model.denoise(prefix, response)


def some_response(model: MDLM, rows: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 100, (rows, LENGTH), generator=source)
    return torch.where(torch.rand(rows, LENGTH, generator=source) < 0.5, model.mask_token_id, ids)


@torch.no_grad()
def test_some_slots_are_predicted_as_all_are(model, prefix):
    response = some_response(model, len(prefix), 0)
    slots = torch.stack([torch.randperm(LENGTH, generator=torch.Generator().manual_seed(row))[:9] for row in range(3)])
    expected = model.denoise(prefix, response)
    logits, past = model.denoise_slots(prefix, response, slots)
    torch.testing.assert_close(logits, expected.gather(1, slots[..., None].expand_as(logits)))
    assert past is None
    kept, past = model.denoise_slots(prefix, response, slots, keep=True)
    torch.testing.assert_close(kept, logits)
    again, _ = model.denoise_slots(prefix, response, slots, past)  # nothing has changed since
    torch.testing.assert_close(again, logits)


@torch.no_grad()
def test_a_kept_prompt_is_that_of_the_earlier_step(model, prefix):
    prompt: list[Tensor] = []
    first, second, third = (some_response(model, len(prefix), seed) for seed in range(3))
    everything = torch.arange(LENGTH).expand(3, -1)
    whole_pass(model, prefix, first, prompt, fresh=True)
    _, past = model.denoise_slots(prefix, first, everything[:, :8], keep=True)
    for response in (second, third):
        expected = whole_pass(model, prefix, response, prompt, fresh=False)
        assert not torch.allclose(expected, model.denoise(prefix, response))
        logits, past = model.denoise_slots(prefix, response, everything, past)
        torch.testing.assert_close(logits, expected)
    rows = torch.tensor([0, 2])
    logits, _ = model.denoise_slots(prefix.select(rows), third[rows], everything[rows], past.select(rows))
    torch.testing.assert_close(logits, expected[rows])


@torch.no_grad()
def slow_decode(model: MDLM, prefix: Prefix, slots: int, a_step: int, refresh: int) -> list[int]:
    """One row, one block: the surest ``a_step`` tokens a step, the prompt computed in every ``refresh`` steps."""
    prompt: list[Tensor] = []
    answer = [model.mask_token_id] * slots
    waiting = set(range(slots))
    for step in range(slots // a_step):
        logits = whole_pass(model, prefix, torch.tensor([answer]), prompt, fresh=step % refresh == 0)[0]
        logits[:, sorted({model.mask_token_id, *model.banned_token_ids})] = -torch.inf
        best = logits.softmax(-1).max(-1)
        for slot in sorted(waiting, key=lambda slot: (-float(best.values[slot]), slot))[:a_step]:
            answer[slot] = int(best.indices[slot])
            waiting.remove(slot)
    return answer


@pytest.mark.parametrize(("a_step", "refresh"), [(2, 1), (1, 3), (2, 4), (4, 100)])
def test_answers_with_a_kept_prompt(model, prefix, queries, a_step, refresh):
    config = decode_config(LENGTH, LENGTH // a_step, open_slots=True, refresh=refresh)
    together = decode(model, prefix, config)
    for row, query in enumerate(queries[:3]):
        alone = model.encode([query])
        expected = slow_decode(model, alone, LENGTH, a_step, refresh)
        assert decode(model, alone, config)[0].tolist() == together[row].tolist() == expected


LLADA = {
    "plain": {},
    "blocks": {"steps": 12, "block_length": 8},
    "threshold": {"threshold": 0.2},
    "threshold in blocks": {"threshold": 0.2, "block_length": 6},
    "random": {"remasking": "random", "temperature": 0.8, "block_length": 12},
    "random slots": {"remasking": "random", "steps": 6},
    "margin": {"remasking": "margin", "steps": 8},
    "guidance": {"cfg_scale": 1.0, "steps": 6, "threshold": 0.3},
    "suffix": {"suffix": (20, 21), "steps": 12},
    "gap": {"gap": 0.5, "block_length": 8},
}
GRID = {
    "dream": {"sampler": "dream", "algorithm": "maskgit_plus", "steps": 9},
    "dim": {"sampler": "dim", "algorithm": "entropy", "confidence_threshold": 0.3},
    "dim, random": {"sampler": "dim", "temperature": 0.7, "top_p": 0.9, "steps": 7},
    "dream, gap": {"sampler": "dream", "algorithm": "topk_margin", "gap": 0.3},
}


@pytest.mark.parametrize("name", [*LLADA, *GRID])
@pytest.mark.parametrize("less", [{"open_slots": True}, {"open_slots": True, "refresh": 1}], ids=str)
def test_less_work_for_the_same_answers(model, prefix, name, less):
    options = {"gen_length": LENGTH, "steps": LENGTH, **{**LLADA, **GRID}[name]}
    keys = ["a", "b", "c"]
    expected = decode_with_lengths(model, prefix, decode_config(**options), keys=keys, seed=2)
    found = decode_with_lengths(model, prefix, decode_config(**options, **less), keys=keys, seed=2)
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.lengths, expected.lengths)


def test_the_models_own_answers(model, prefix):
    """With the family's own settings, in the precision that it runs in, with an end and the published cache or none."""
    small = model.float()
    near = replace(prefix, embeds=prefix.embeds.float())
    try:
        for cached in (False, True):
            own = own_settings(small, prefix_cache=cached)
            expected = answers_of(small, near, own, keys=["a", "b", "c"])
            less = own_settings(small, prefix_cache=cached, open_slots=True, end_early=True)
            assert answers_of(small, near, less, keys=["a", "b", "c"]) == expected
    finally:
        model.double()


@pytest.mark.parametrize("options", [LLADA["blocks"], LLADA["guidance"], GRID["dim"], GRID["dim, random"]], ids=str)
def test_rows_do_not_depend_on_their_batch(model, prefix, queries, options):
    config = decode_config(
        **{"gen_length": LENGTH, "steps": LENGTH, "refresh": 3, "open_slots": True, "end_early": True, **options}
    )
    together = decode(model, prefix, config, keys=["a", "b", "c"], seed=1)
    for row, key in enumerate("abc"):
        assert torch.equal(decode(model, model.encode([queries[row]]), config, keys=[key], seed=1)[0], together[row])


def favouring(model: BuiltinModel, slot: int, token: int) -> Callable[..., Tensor]:
    """The model's `denoise`, but for one slot in which ``token`` is sure."""
    denoise = model.denoise

    def changed(prefix: Prefix, response: Tensor) -> Tensor:
        logits = denoise(prefix, response)
        logits[:, slot, token] += 1000
        return logits

    return changed


@pytest.mark.parametrize("sampler", ["llada", "dream"])
def test_nothing_is_computed_behind_an_end(make_model, queries, sampler):
    """An end token in slot 3 of three blocks: two of them cost nothing, and the text stays."""
    model = make_model()
    model.denoise = favouring(model, 3, model.end_token_ids[0])
    calls, denoise = [], model.denoise
    model.denoise = lambda *given: calls.append(len(given[1])) or denoise(*given)
    options = {"sampler": "llada", "block_length": 4} if sampler == "llada" else {"sampler": "dream"}
    if sampler == "dream":
        options["algorithm"] = "autoregressive"
    config = decode_config(12, 12, **options)
    prefix = model.encode(queries[:3])
    expected = answers_of(model, prefix, config)
    assert len(calls) == 12
    calls.clear()
    early = replace(config, end_early=True)
    assert answers_of(model, prefix, early) == expected and calls == [3, 3, 3, 3]
    assert (decode(model, prefix, early)[:, 4:] == model.end_token_ids[-1]).all()


def test_an_end_behind_an_open_slot_is_none():
    response = torch.tensor([[5, 1, 5], [5, 1, 5], [0, 0, 1], [5, 5, 5]])
    is_open = torch.tensor([[0, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    assert at_end(response, is_open, (1, 2))[:, 0].tolist() == [True, False, False, False]


def test_a_wide_gap_ends_a_block(make_model, queries):
    model = make_model()
    seen, denoise = [], model.denoise

    def spy(prefix: Prefix, response: Tensor) -> Tensor:
        """Sure of everything once two slots are filled."""
        seen.append(int((response == model.mask_token_id).sum()))
        logits = denoise(prefix, response)
        if seen[-1] <= 6:
            logits[..., 9] += 1000
        return logits

    model.denoise = spy
    got = decode(model, model.encode(queries[:1]), decode_config(8, 8, gap=100.0))
    assert seen == [8, 7, 6] and (got == 9).sum() == 6


def test_the_gap_of_the_least_sure_slot_counts():
    logits = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, 0.5]], [[3.0, 0.0, 0.0], [0.0, 1.0, 0.5]]])
    waiting = torch.tensor([[True, True], [True, False]])
    assert all_sure(logits, waiting, 1.5)[:, 0].tolist() == [True, True]
    assert all_sure(logits, waiting, 1.6)[:, 0].tolist() == [False, True]


def test_open_slots_come_first():
    waiting = torch.zeros(2, 12, dtype=torch.bool)
    waiting[0, [3, 7]] = waiting[1, [0, 1, 11]] = True
    slots = first_open(waiting, True)
    assert slots.shape == (2, 8) and slots[0, :2].tolist() == [3, 7] and slots[1, :3].tolist() == [0, 1, 11]
    assert all(len(set(row)) == 8 for row in slots.tolist())
    assert first_open(waiting, False).tolist() == [list(range(12))] * 2


def test_a_class_with_another_denoise_is_asked_for_it(make_model, queries):
    class Other(BuiltinModel):
        def denoise(self, prefix, response, cache=None):
            return -super().denoise(prefix, response, cache)

    model = make_model()
    model.__class__ = Other
    prefix, response = model.encode(queries[:1]), torch.zeros(1, 8, dtype=torch.int64)
    logits, past = model.denoise_slots(prefix, response, torch.tensor([[5, 2]]), keep=True)
    assert past is None and torch.equal(logits, model.denoise(prefix, response)[:, [5, 2]])


def test_settings_that_do_not_go_together():
    for options, word in (({"refresh": 0}, "refresh"), ({"gap": 0.0}, "gap"), ({"gap": float("nan")}, "gap")):
        with pytest.raises(DispError, match=word):
            decode_config(8, 8, **options)
        with pytest.raises(DispError, match=word):
            decode_config(8, 8, sampler="dream", **options)
    with pytest.raises(DispError, match="prefix_cache"):
        changed_config({"prefix_cache": True}, {"refresh": 4})
    assert decode_config(8, 8, refresh=2).keeps_prefix and not decode_config(8, 8, refresh=1).keeps_prefix
    assert decode_config(8, 8, end_early=True).may_end_early and not decode_config(8, 8).may_end_early
