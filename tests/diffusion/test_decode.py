"""Decoding against a slow reference that knows one row, one slot and one probability at a time."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disp.diffusion.decode import DecodeConfig, commit_quotas, decode, generate
from disp.draws import generator
from disp.errors import DispError
from disp.models.interface import Prefix


def reference_decode(model, prefix: Prefix, config: DecodeConfig, key: str, seed: int) -> list[int]:
    """Decode the single row of ``prefix`` with loops."""
    length = config.gen_length
    block_length = length if config.block_length is None else config.block_length
    steps_a_block = config.steps * block_length // length
    answer: list[int | None] = [None] * length
    for start in range(0, length, block_length):
        slots = range(start, start + block_length)
        owed = 0
        for step in range(steps_a_block):
            owed += block_length // steps_a_block
            if step < block_length % steps_a_block:
                owed += 1
            waiting = [slot for slot in slots if answer[slot] is None]
            if not waiting:
                continue
            ids = torch.tensor([[model.mask_token_id if token is None else token for token in answer]])
            with torch.no_grad():
                logits = model.denoise(prefix, ids).float().double()[0].tolist()
            random = generator(seed, "decode", key, start + step)
            noise = random.random((length, len(logits[0]))).tolist() if config.temperature > 0 else None
            order = random.random(length).tolist() if config.remasking == "random" else None
            token, confidence = {}, {}
            for slot in waiting:
                words = [word for word in range(len(logits[slot])) if word != model.mask_token_id]
                total = sum(math.exp(logits[slot][word]) for word in words)

                def preference(word: int, slot: int = slot, noise=noise, logits=logits) -> float:
                    if noise is None:
                        return logits[slot][word]
                    return logits[slot][word] - config.temperature * math.log(-math.log(noise[slot][word]))

                token[slot] = max(words, key=preference)
                confidence[slot] = math.exp(logits[slot][token[slot]]) / total if order is None else order[slot]
            filled = block_length - len(waiting)
            quota = owed - filled
            if config.threshold is not None:
                quota = max(quota, 1)
            ranking = sorted(waiting, key=lambda slot: (-confidence[slot], slot))
            for rank, slot in enumerate(ranking):
                sure = config.threshold is not None and confidence[slot] >= config.threshold
                if rank < quota or sure:
                    answer[slot] = token[slot]
    return answer


CONFIGS = {
    "one token a step": DecodeConfig(8, 8),
    "one step": DecodeConfig(8, 1),
    "uneven steps": DecodeConfig(8, 3),
    "more steps than slots": DecodeConfig(4, 6),
    "blocks": DecodeConfig(8, 4, block_length=4),
    "uneven steps in blocks": DecodeConfig(9, 6, block_length=3),
    "single-token blocks": DecodeConfig(4, 4, block_length=1),
    "random remasking": DecodeConfig(8, 4, remasking="random"),
    "random remasking in blocks": DecodeConfig(8, 6, block_length=4, remasking="random"),
    "temperature": DecodeConfig(8, 4, temperature=0.7),
    "temperature, random, blocks": DecodeConfig(8, 4, block_length=4, remasking="random", temperature=1.5),
    "threshold": DecodeConfig(8, 8, threshold=0.3),
    "threshold ahead of schedule, then behind": DecodeConfig(8, 4, threshold=0.5),
    "threshold in blocks": DecodeConfig(8, 4, block_length=4, threshold=0.25),
    "threshold and temperature": DecodeConfig(8, 8, threshold=0.3, temperature=0.5),
    "threshold never reached": DecodeConfig(8, 4, threshold=1.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_against_the_reference_alone_and_in_a_padded_batch(tiny_model64, queries, name):
    config, model = CONFIGS[name], tiny_model64
    keys = [query.key for query in queries]
    together = decode(model, model.encode(queries), config, keys=keys, seed=3)
    assert together.dtype == torch.int64 and together.shape == (len(queries), config.gen_length)
    assert not (together == model.mask_token_id).any()
    for row, query in enumerate(queries):
        prefix = model.encode([query])
        expected = reference_decode(model, prefix, config, query.key, 3)
        assert decode(model, prefix, config, keys=[query.key], seed=3)[0].tolist() == expected
        assert together[row].tolist() == expected


def test_configs_differ(tiny_model64, queries):
    # The comparison above would mean little if every configuration gave the same tokens.
    prefix, keys = tiny_model64.encode(queries[:1]), [queries[0].key]
    names = ("one token a step", "one step", "blocks", "random remasking", "temperature", "threshold")
    answers = {tuple(decode(tiny_model64, prefix, CONFIGS[name], keys=keys, seed=3)[0].tolist()) for name in names}
    assert len(answers) >= 5


@pytest.mark.parametrize("name", ["one token a step", "uneven steps in blocks", "threshold", "temperature"])
def test_masked_visual_tokens_are_never_filled(make_model, queries, name):
    model, config = make_model().double(), CONFIGS[name]
    query = queries[3]
    prefix = model.encode([query])
    prefix = prefix.with_masked(prefix.visual_mask, model.mask_embedding.detach())  # every one of them
    before = prefix.embeds.clone()
    seen, denoise = [], model.denoise

    def spy(given: Prefix, response):
        seen.append((given.embeds.clone(), int((response == model.mask_token_id).sum())))
        return denoise(given, response)

    model.denoise = spy
    got = decode(model, prefix, config, keys=[query.key], seed=3)
    model.denoise = denoise
    assert all(torch.equal(embeds, before) for embeds, _ in seen) and torch.equal(prefix.embeds, before)
    # Every pass fills response slots, and in the end all are filled.
    still_open = [count for _, count in seen]
    assert still_open[0] == config.gen_length and all(a > b for a, b in pairwise(still_open))
    assert not (got == model.mask_token_id).any()
    assert got[0].tolist() == reference_decode(model, prefix, config, query.key, 3)


def test_threshold_saves_passes(make_model, queries):
    model = make_model()
    calls, denoise = [], model.denoise
    model.denoise = lambda prefix, response: calls.append(len(response)) or denoise(prefix, response)
    decode(model, model.encode(queries), DecodeConfig(8, 8, threshold=0.01))
    assert len(calls) < 8
    calls.clear()
    decode(model, model.encode(queries), DecodeConfig(8, 8))
    assert len(calls) == 8


def test_every_pass_commits_even_ahead_of_schedule(make_model, queries):
    model = make_model()
    still_open, denoise = [], model.denoise

    def spy(prefix, response):
        # Half the slots are certain from the start, the others never.
        still_open.append(int((response == model.mask_token_id).sum()))
        logits = denoise(prefix, response)
        logits[:, 4:, 9] += 1000
        return logits

    model.denoise = spy
    decode(model, model.encode(queries[:1]), DecodeConfig(8, 8, threshold=0.9999))
    assert still_open == [8, 4, 3, 2, 1]


def test_the_mask_token_is_never_an_answer(make_model, queries):
    model = make_model()
    denoise = model.denoise

    def favour_mask(prefix, response):
        logits = denoise(prefix, response)
        logits[..., model.mask_token_id] += 1000
        return logits

    model.denoise = favour_mask
    got = decode(model, model.encode(queries), DecodeConfig(4, 2, temperature=1.0), keys=[q.key for q in queries])
    assert not (got == model.mask_token_id).any()


def test_generate_does_not_depend_on_batch_size(tiny_model64, queries):
    config, finished = DecodeConfig(8, 4, temperature=1.0), []
    one = generate(tiny_model64, queries, config, seed=2, batch_size=1)
    many = generate(tiny_model64, queries, config, seed=2, batch_size=3, progress=finished.append)
    assert one == many and finished == [3, 1]
    assert one != generate(tiny_model64, queries, config, seed=4)
    assert generate(tiny_model64, [replace(queries[0], response="other")], config, seed=2) == one[:1]


@given(st.integers(0, 200), st.integers(1, 60))
def test_quotas(slots, steps):
    quotas = commit_quotas(slots, steps)
    assert len(quotas) == steps and sum(quotas) == slots
    assert max(quotas) - min(quotas) <= 1 and quotas == sorted(quotas, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gen_length": 0}, "gen_length"),
        ({"gen_length": 10, "block_length": 4}, "multiple of block_length"),
        ({"gen_length": 8, "block_length": 4, "steps": 3}, "multiple of the number of blocks"),
        ({"gen_length": 8, "block_length": 2, "steps": 2}, "number of blocks"),
        ({"steps": 0}, "steps"),
        ({"remasking": "entropy"}, "'low_confidence' or 'random', got 'entropy'"),
        ({"temperature": -0.1}, "at least 0"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
    ],
)
def test_invalid_configurations(options, message):
    with pytest.raises(DispError, match=message):
        DecodeConfig(**options)


@pytest.mark.parametrize("block_length", [0, -4])
def test_block_length_must_be_positive(block_length):
    with pytest.raises(DispError, match="block_length"):
        DecodeConfig(gen_length=8, steps=8, block_length=block_length)


def test_random_decoding_needs_keys(tiny_model, queries):
    with pytest.raises(ValueError, match="keys"):
        decode(tiny_model, tiny_model.encode(queries), DecodeConfig(4, 4, temperature=1.0))
