"""The samplers of Dream and Dimple against a slow reference: one row, one slot, one probability at a time."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from disp.decoding.config import DecodeConfig
from disp.decoding.dim import dim_share
from disp.decoding.dream import dream_share
from disp.decoding.generate import decode
from disp.decoding.grid import cut_logits, predict_tokens, time_grid
from disp.decoding.samplers import SAMPLERS, decode_config
from disp.draws import generator
from disp.errors import DispError
from disp.models.interface import Prefix

V, MASK, BANNED = 11, 10, 4


class Toy:
    """Logits that depend on the row's prefix and on every token of the response; aligned, nothing learned."""

    mask_token_id, banned_token_ids, end_token_ids = MASK, (BANNED,), (0, 1)

    def __init__(self, length: int, seed: int = 0):
        random = torch.Generator().manual_seed(seed)
        self.effects = 1.3 * torch.randn(V, length, length, V, generator=random)  # of token v at slot k on slot j
        self.calls: list[int] = []

    def denoise(self, prefix: Prefix, response: Tensor, cache=None) -> Tensor:
        self.calls.append(len(response))
        slots = torch.arange(response.shape[1])
        return self.effects[response, slots].sum(1) / math.sqrt(len(slots)) + prefix.embeds[:, :1]

    def cache_prefix(self, prefix: Prefix):
        return None


def prefix_of(rows: int, seed: int = 0) -> Prefix:
    embeds = torch.randn(rows, 2, V, generator=torch.Generator().manual_seed(100 + seed))
    nothing = torch.zeros(rows, 2, dtype=torch.bool)
    return Prefix(embeds, ~nothing, nothing, torch.full((rows, 2, 4), -1))


def softmax(values: list[float]) -> list[float]:
    most = max(values)
    powers = [math.exp(value - most) for value in values]
    return [power / sum(powers) for power in powers]


def reference(
    model,
    prefix: Prefix,
    config: DecodeConfig,
    key: str,
    seed: int,
    first: int | None = None,
    original: bool | None = None,
) -> list[int]:
    """Decode the single row of ``prefix`` with loops, straight from the published rules."""
    length, rank_algorithms = config.gen_length, ("maskgit_plus", "topk_margin", "entropy")
    answer = [MASK] * length
    if first is not None:
        answer[0] = first
    waiting = [slot for slot in range(length) if first is None or slot > 0]
    times = torch.linspace(1, 1e-3, config.steps + 1)
    ratio = getattr(config, "step_ratio", None)  # of "dream" alone, as the threshold is of "dim"
    steps = config.steps if ratio is None else int(length * ratio)
    total = len(waiting)
    for step in range(steps):
        if not waiting:
            break
        logits = model.denoise(prefix, torch.tensor([answer]))[0].double().tolist()
        numbers = generator(seed, "decode", key, step).random((2, length)).tolist()
        token, sureness = {}, {}
        for slot in waiting:
            allowed = [v for v in range(V) if v != BANNED and not (config.ban_mask and v == MASK)]
            raw = dict(zip(allowed, softmax([logits[slot][v] for v in allowed]), strict=True))
            heat = config.temperature or 1.0
            drawn = dict(zip(allowed, softmax([logits[slot][v] / heat for v in allowed]), strict=True))
            ranking = sorted(allowed, key=lambda v: -drawn[v])
            if config.top_p is not None:
                kept, mass = [], 0.0
                for v in ranking:
                    if mass > config.top_p:
                        break
                    kept.append(v)
                    mass += drawn[v]
                ranking = kept
            ranking = ranking[: config.top_k]
            drawn = {v: drawn[v] / sum(drawn[w] for w in ranking) for v in sorted(ranking)}
            token[slot] = ranking[0]
            if config.temperature:
                mass = 0.0
                for v, probability in drawn.items():
                    mass += probability
                    if numbers[0][slot] < mass:
                        token[slot] = v
                        break
            judged = raw if (config.sampler == "dim" if original is None else original) else drawn
            ordered = sorted(judged.values(), reverse=True)
            sureness[slot] = {
                "topk_margin": ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0),
                "entropy": sum(p * math.log(p + 1e-10) for p in ordered),
            }.get(config.algorithm, judged[token[slot]])
        last = step == steps - 1
        chosen: list[int] | None = None
        if config.sampler == "dim" and config.confidence_threshold is not None:
            chosen = [slot for slot in waiting if last or sureness[slot] > config.confidence_threshold] or None
        if chosen is None:
            share = torch.tensor(1.0)
            if not last and config.sampler == "dream":
                share = 1 - times[step + 1] / times[step]
            elif not last:
                masked = torch.tensor(len(waiting)) / torch.tensor(total)
                for place in range(step + 1, config.steps):
                    if times[place] < masked and int(torch.tensor(len(waiting)) * (1 - times[place] / masked)) >= 1:
                        share = 1 - times[place] / masked
                        break
            quota = int(torch.tensor(len(waiting)) * share)
            if config.algorithm == "autoregressive":
                chosen = waiting[: math.ceil(len(waiting) / (steps - step)) if config.ban_mask else 1]
            elif config.algorithm in rank_algorithms:
                chosen = sorted(waiting, key=lambda slot: -sureness[slot])[:quota]
            elif config.algorithm == "origin" and config.sampler == "dim":
                chosen = sorted(waiting, key=lambda slot: numbers[1][slot])[:quota]
            else:
                chosen = [slot for slot in waiting if numbers[1][slot] < share]
        for slot in chosen:
            answer[slot] = token[slot]
        waiting = [slot for slot in waiting if answer[slot] == MASK]
    return answer


def made(**options) -> DecodeConfig:
    return decode_config(**{"gen_length": 6, "steps": 6, "sampler": "dim", **options})


ALGORITHMS = {name: SAMPLERS[name].config.algorithms for name in ("dream", "dim")}
CONFIGS = {
    **{
        f"{sampler} {algorithm} {steps}": made(sampler=sampler, algorithm=algorithm, steps=steps)
        for sampler, algorithms in ALGORITHMS.items()
        for algorithm in algorithms
        for steps in (1, 4, 6, 15)
    },
    "cuts": made(sampler="dream", algorithm="maskgit_plus", top_k=3, top_p=0.6),
    "cut to one token": made(sampler="dream", algorithm="maskgit_plus", top_k=1),
    "cuts that dim's confidence ignores": made(algorithm="entropy", top_k=2),
    "temperature": made(algorithm="maskgit_plus", temperature=0.8),
    "temperature and cuts": made(sampler="dream", algorithm="entropy", temperature=1.4, top_p=0.8, top_k=5),
    "temperature, random slots": made(sampler="dream", temperature=0.5, steps=3),
    "threshold": made(algorithm="maskgit_plus", confidence_threshold=0.3),
    "threshold never reached": made(algorithm="maskgit_plus", confidence_threshold=1.0, steps=3),
    "threshold on negative entropy": made(algorithm="entropy", confidence_threshold=0.1, steps=4),
    "threshold, random slots": made(algorithm="origin", confidence_threshold=0.35),
    "part of the grid": made(sampler="dream", algorithm="entropy", step_ratio=0.5),
    "mask not banned": made(algorithm="maskgit_plus", ban_mask=False),
    "mask not banned, from the left": made(algorithm="autoregressive", ban_mask=False, steps=4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_matches_the_published_rules_row_by_row(name):
    config, rows = CONFIGS[name], 3
    prefix = prefix_of(rows)
    keys = [f"sample{row}" for row in range(rows)]
    decoded = decode(Toy(6), prefix, config, keys=keys, seed=7).tolist()
    expected = [reference(Toy(6), prefix.select(torch.tensor([row])), config, keys[row], 7) for row in range(rows)]
    assert decoded == expected
    if config.ban_mask:
        assert all(token not in (MASK, BANNED) for answer in decoded for token in answer)
    alone = decode(Toy(6), prefix.select(torch.tensor([2])), config, keys=keys[2:], seed=7)
    assert alone.tolist() == decoded[2:], "an answer depends on the batch it is decoded in"


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("sampler", ["dream", "dim"])
@pytest.mark.parametrize("algorithm", ["maskgit_plus", "topk_margin", "entropy"])
def test_which_distribution_the_confidence_is_of_can_be_chosen(sampler, algorithm, original):
    config = made(sampler=sampler, algorithm=algorithm, top_k=3, temperature=0.6, original_confidence=original)
    decoded = decode(Toy(6), prefix_of(1), config, keys=["a"])
    assert decoded.tolist() == [reference(Toy(6), prefix_of(1), config, "a", 0, original=original)]


def test_decode_dispatches_to_it():
    config = made(algorithm="entropy")
    decoded = SAMPLERS["dim"].decode(Toy(6), prefix_of(2), config)
    assert decode(Toy(6), prefix_of(2), config).equal(decoded.ids) and decoded.lengths.tolist() == [6, 6]


def test_quotas_of_known_cases():
    """Slots committed by each step: the numbers that the published decoders were seen to commit."""

    def run(open_slots, grid_steps, steps):
        counts, grid, waiting = [], time_grid(grid_steps), open_slots
        for step in range(steps):
            counts.append(int(waiting * dream_share(grid, step, last=step == steps - 1)))
            waiting -= counts[-1]
        return counts

    assert run(7, 8, 4) == [0, 0, 1, 6]
    assert run(8, 4, 4) == [1, 2, 2, 3]
    # The last time of the grid is above zero, so an even share falls short of a whole slot until the next step.
    assert int(8 * dim_share(time_grid(8), 0, 8, 8)) == 1
    assert int(8 * dim_share(time_grid(8), 7, 8, 8)) == 8
    assert int(4 * dim_share(time_grid(4), 0, 4, 8)) == 1, "enters the grid where the response is, not where it began"
    assert dim_share(time_grid(4), 1, 1, 4096) == 1, "less is masked than the grid's last time"


@pytest.mark.parametrize("open_slots", [1, 5, 17, 64])
@pytest.mark.parametrize("steps", [1, 3, 16, 64, 100])
def test_dim_commits_a_slot_at_every_step_and_all_in_the_end(open_slots, steps):
    waiting, taken = open_slots, []
    for step in range(steps):
        if not waiting:
            break
        taken.append(int(waiting * dim_share(time_grid(steps), step, waiting, open_slots)))
        waiting -= taken[-1]
    assert waiting == 0 and min(taken) >= 1


def test_a_schedule_replaces_the_shares():
    toy = Toy(8)
    config = decode_config(8, 8, sampler="dream", algorithm="entropy", step_ratio=0.5, schedule="shift")
    counts = []
    seen = toy.denoise

    def spy(prefix, response, cache=None):
        counts.append(int((response == MASK).sum()))
        return seen(prefix, response, cache)

    toy.denoise = spy
    decode(toy, prefix_of(1), replace(config, schedule_shift=0.33))
    assert counts == [8, 3, 2, 1]  # commits 5, 1, 1, 1
    counts.clear()
    decode(toy, prefix_of(1), config)
    assert counts == [8, 7, 6, 4]  # commits 1, 1, 2, 4


class CachingToy(Toy):
    """Predicts slot 0 from the prefix alone, like LaViDa's ``prefix_lm``; its cache must follow the rows."""

    def cache_prefix(self, prefix: Prefix):
        return {"first_logits": 5 * prefix.embeds[:, 1], "layers": [(prefix.embeds[:, 0].clone(),)]}

    def denoise(self, prefix, response, cache=None):
        assert cache is not None and cache["layers"][0][0].equal(prefix.embeds[:, 0])
        return super().denoise(prefix, response)


@pytest.mark.parametrize("algorithm", ["maskgit_plus", "entropy", "origin"])
def test_the_first_slot_may_come_from_the_prefix(algorithm):
    config = made(sampler="dream", algorithm=algorithm, prefix_cache=True, steps=3)
    prefix, keys = prefix_of(4), list("abcd")
    decoded = decode(CachingToy(6), prefix, config, keys=keys, seed=3).tolist()
    for row in range(4):
        first = max(
            (v for v in range(V) if v not in (MASK, BANNED)), key=lambda v, r=row: float(prefix.embeds[r, 1, v])
        )
        expected = reference(Toy(6), prefix.select(torch.tensor([row])), config, keys[row], 3, first=first)
        assert decoded[row] == expected


class PlainCache(Toy):
    """Its cache is one tensor, which has a method ``select`` too, that picks something else."""

    def cache_prefix(self, prefix: Prefix):
        return prefix.embeds[:, 0].clone()

    def denoise(self, prefix, response, cache=None):
        assert cache is not None and cache.equal(prefix.embeds[:, 0])
        return super().denoise(prefix, response)


@pytest.mark.parametrize(
    "options", [{"sampler": "llada", "threshold": 0.4}, {"algorithm": "maskgit_plus", "confidence_threshold": 0.4}]
)
def test_a_cache_that_is_a_tensor_follows_the_rows(options):
    toy, config = PlainCache(6), made(**options)
    decoded = decode(toy, prefix_of(5), replace(config, prefix_cache=True))
    assert min(toy.calls) < 5, "no row was ever left out"
    assert decoded.equal(decode(Toy(6), prefix_of(5), config))


def test_finished_rows_cost_nothing():
    toy = Toy(6)
    decode(toy, prefix_of(3), made(algorithm="maskgit_plus", confidence_threshold=1e-9))
    assert toy.calls == [3]
    toy = Toy(6)
    decode(toy, prefix_of(5), made(algorithm="maskgit_plus", confidence_threshold=0.4))
    assert min(toy.calls) < 5


def test_tokens_are_drawn_from_the_cut_and_tempered_distribution():
    config = made(temperature=0.7, top_k=4)
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(5))
    draws = 20_000
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    tokens, _ = predict_tokens(logits.expand(draws, -1), config, uniforms)
    counts = torch.tensor([Counter(tokens.tolist())[v] / draws for v in range(V)])
    expected = logits[0] / 0.7
    expected[expected < expected.sort().values[-4]] = -torch.inf
    torch.testing.assert_close(counts, expected.softmax(-1), atol=2e-4, rtol=0)
    edges, _ = predict_tokens(logits.expand(2, -1), config, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert (counts[edges] > 0).all(), "a token that was cut away is drawn at the edge of the unit interval"


def test_noise_in_the_choice_of_slots_draws_without_replacement():
    """Sequential draws in proportion to softmax(confidence / T), as `torch.multinomial` makes them."""
    config = made(gen_length=3, steps=3, sampler="dim", algorithm="maskgit_plus", algorithm_temperature=0.2)
    toy = Toy(3)
    logits = toy.denoise(prefix_of(1), torch.full((1, 3), MASK))[0]
    logits[:, [MASK, BANNED]] = -torch.inf
    weights = (logits.softmax(-1).max(-1).values / 0.2).softmax(-1)
    firsts = Counter()
    seen = []

    def spy(prefix, response, cache=None):
        seen.append(response.clone())
        return Toy.denoise(toy, prefix, response)

    toy.denoise = spy
    draws = 1500
    batch = prefix_of(1).select(torch.zeros(draws, dtype=torch.int64))
    decode(toy, batch, config, keys=[str(i) for i in range(draws)])
    firsts.update((seen[1] != MASK).nonzero()[:, 1].tolist())
    frequencies = torch.tensor([firsts[slot] / draws for slot in range(3)])
    torch.testing.assert_close(frequencies, weights, atol=0.045, rtol=0)  # more than three standard deviations


def test_cuts_keep_ties_and_the_token_that_crosses_top_p():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    lowest = torch.finfo(torch.float32).min
    assert cut_logits(logits, 2, None).tolist() == [[2.0, 1.0, 1.0, lowest]]
    halves = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert (cut_logits(halves, None, 0.6) > lowest).tolist() == [[True, True, False]]
    assert (cut_logits(halves, None, 0.4) > lowest).tolist() == [[True, False, False]]
    assert cut_logits(logits, None, None).equal(logits) and cut_logits(logits, 9, 1.0).equal(logits)


def test_steps_run_of_a_part_of_the_grid():
    assert decode_config(8, 8, sampler="dream", step_ratio=0.5).most_steps == 4
    assert decode_config(8, 8, sampler="dream", step_ratio=0.01).most_steps == 1
    assert decode_config(8, 3, sampler="dream", step_ratio=1.0).most_steps == 3


def test_settings_that_it_does_not_have_are_named():
    with pytest.raises(DispError, match="origin-ratio"):
        decode(Toy(6), prefix_of(1), made(sampler="dream", algorithm="origin-ratio"), keys=["a"])
    with pytest.raises(DispError, match="cfg_scale"):
        decode(Toy(6), prefix_of(1), made(algorithm="entropy", cfg_scale=1.0))
    with pytest.raises(ValueError, match="keys"):
        decode(Toy(6), prefix_of(1), made())
