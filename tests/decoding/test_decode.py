"""Decoding against a slow reference that knows one row, one slot and one probability at a time."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disp.decoding.config import DecodeConfig
from disp.decoding.generate import decode, decode_with_lengths, generate
from disp.decoding.samplers import decode_config
from disp.decoding.schedule import commit_quotas, commit_schedule
from disp.draws import generator
from disp.models.interface import Prefix


def commits_a_step(config: DecodeConfig, slots: int, steps: int) -> list[int]:
    """Tokens that each step of a block commits."""
    if config.schedule is None:
        return [slots // steps + (1 if step < slots % steps else 0) for step in range(steps)]
    return SCHEDULES[config.schedule, config.schedule_shift, slots, steps]


# What the published code of LaViDa computed.
SCHEDULES = {
    ("shift", 0.33, 8, 4): [5, 1, 1, 1],
    ("shift", 3.0, 8, 4): [1, 1, 2, 4],
    ("cosine", 3.0, 8, 4): [2, 2, 3, 1],
    ("shift", 0.33, 32, 16): [6, 4, 4, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ("cosine", 3.0, 32, 16): [1, 1, 1, 2, 3, 2, 3, 3, 4, 3, 2, 3, 1, 1, 1, 1],
}


def reference_decode(model, prefix: Prefix, config: DecodeConfig, key: str, seed: int) -> list[int]:
    """Decode the single row of ``prefix`` with loops; what it returns ends where a stop sequence begins."""
    length = config.gen_length
    banned = {model.mask_token_id, *model.banned_token_ids}
    stop_at = length
    block_length = length if config.block_length is None else config.block_length
    steps_a_block = config.steps * block_length // length
    answer: list[int | None] = [None] * length
    for start in range(0, length, block_length):
        slots = range(start, start + block_length)
        owed, counts = 0, commits_a_step(config, block_length, steps_a_block)
        for step in range(steps_a_block):
            owed += counts[step]
            waiting = [slot for slot in slots if answer[slot] is None and slot < stop_at]
            if not waiting:
                continue
            ids = [model.mask_token_id if token is None else token for token in answer]
            with torch.no_grad():
                full = model.denoise(prefix, torch.tensor([[*ids, *config.suffix]]))[0].float()
                if config.cfg_scale:
                    nothing = replace(prefix, embeds=model.mask_embedding.expand_as(prefix.embeds))
                    empty = model.denoise(nothing, torch.tensor([[*ids, *config.suffix]]))[0].float()
                    full = empty + (config.cfg_scale + 1) * (full - empty)
                logits = full.double().tolist()
            random = generator(seed, "decode", key, start + step)
            noise = random.random((length, len(logits[0]))).tolist() if config.temperature > 0 else None
            order = random.random(length).tolist() if config.remasking == "random" else None
            token, confidence, probability = {}, {}, {}
            for slot in waiting:
                words = [word for word in range(len(logits[slot])) if word not in banned]
                total = sum(math.exp(logits[slot][word]) for word in words)

                def preference(word: int, slot: int = slot, noise=noise, logits=logits) -> float:
                    if noise is None:
                        return logits[slot][word]
                    return logits[slot][word] - config.temperature * math.log(-math.log(noise[slot][word]))

                token[slot] = max(words, key=preference)
                p = [math.exp(logits[slot][word]) / total for word in words]
                probability[slot] = math.exp(logits[slot][token[slot]]) / total
                confidence[slot] = {
                    "low_confidence": probability[slot],
                    "random": order[slot] if order else 0.0,
                    "entropy": sum(each * math.log(each + 1e-10) for each in p),
                    "margin": sorted(p)[-1] - sorted(p)[-2],
                }[config.remasking]
            quota = counts[step]
            if config.threshold is not None:
                quota = max(owed - (block_length - len(waiting)), 1)
            ranking = sorted(waiting, key=lambda slot: (-confidence[slot], slot))
            for rank, slot in enumerate(ranking):
                sure = config.threshold is not None and probability[slot] >= config.threshold
                if rank < quota or sure:
                    answer[slot] = token[slot]
            for sequence in config.stop:
                for place in range(length):
                    if tuple(answer[place : place + len(sequence)]) == sequence:
                        stop_at = min(stop_at, place)
    return [*answer[:stop_at], *config.suffix]


CONFIGS = {
    "one token a step": decode_config(8, 8),
    "one step": decode_config(8, 1),
    "uneven steps": decode_config(8, 3),
    "more steps than slots": decode_config(4, 6),
    "blocks": decode_config(8, 4, block_length=4),
    "uneven steps in blocks": decode_config(9, 6, block_length=3),
    "single-token blocks": decode_config(4, 4, block_length=1),
    "random remasking": decode_config(8, 4, remasking="random"),
    "random remasking in blocks": decode_config(8, 6, block_length=4, remasking="random"),
    "temperature": decode_config(8, 4, temperature=0.7),
    "temperature, random, blocks": decode_config(8, 4, block_length=4, remasking="random", temperature=1.5),
    "threshold": decode_config(8, 8, threshold=0.3),
    "threshold ahead of schedule, then behind": decode_config(8, 4, threshold=0.5),
    "threshold in blocks": decode_config(8, 4, block_length=4, threshold=0.25),
    "threshold and temperature": decode_config(8, 8, threshold=0.3, temperature=0.5),
    "threshold and entropy": decode_config(8, 8, threshold=0.2, remasking="entropy"),
    "threshold and random remasking": decode_config(8, 8, threshold=0.2, remasking="random"),
    "threshold and margin": decode_config(8, 8, threshold=0.2, remasking="margin"),
    "threshold never reached": decode_config(8, 4, threshold=1.0),
    "guidance": decode_config(8, 4, cfg_scale=1.5),
    "guidance in blocks": decode_config(8, 8, block_length=2, cfg_scale=0.5),
    "entropy": decode_config(8, 4, remasking="entropy"),
    "margin": decode_config(8, 4, remasking="margin", block_length=4),
    "entropy and temperature": decode_config(8, 4, remasking="entropy", temperature=0.8),
    "schedule, first steps": decode_config(8, 4, schedule="shift", schedule_shift=0.33),
    "schedule, last steps": decode_config(8, 4, schedule="shift"),
    "schedule in blocks": decode_config(16, 8, block_length=8, schedule="cosine"),
    "suffix": decode_config(8, 4, suffix=(20, 21, 22)),
    "suffix, guidance, random": decode_config(6, 6, suffix=(30,), cfg_scale=1.0, remasking="random"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_against_the_reference_alone_and_in_a_padded_batch(tiny_model64, queries, name):
    config, model = CONFIGS[name], tiny_model64
    keys = [query.key for query in queries]
    together = decode(model, model.encode(queries), config, keys=keys, seed=3)
    assert together.dtype == torch.int64
    assert together.shape == (len(queries), config.gen_length + len(config.suffix))
    assert not (together == model.mask_token_id).any()
    for row, query in enumerate(queries):
        prefix = model.encode([query])
        expected = reference_decode(model, prefix, config, query.key, 3)
        assert decode(model, prefix, config, keys=[query.key], seed=3)[0].tolist() == expected
        assert together[row].tolist() == expected


def test_stop_sequences(tiny_model64, queries):
    """Stop at what each row is seen to answer without a stop: alone, in a batch, in blocks, with a suffix."""
    model, keys = tiny_model64, [query.key for query in queries]
    plain = decode(model, model.encode(queries), decode_config(8, 8)).tolist()
    stops = [(), ((plain[0][3],),), ((plain[1][2], plain[1][3]),), ((plain[2][0],), (plain[3][5],)), ((299, 299),)]
    cut = 0
    for stop in stops:
        for options in ({}, {"block_length": 2}, {"steps": 4, "suffix": (20, 21)}, {"threshold": 0.2}):
            config = decode_config(**{"gen_length": 8, "steps": 8, "stop": stop, **options})
            together = decode_with_lengths(model, model.encode(queries), config)
            for row, query in enumerate(queries):
                expected = reference_decode(model, model.encode([query]), config, query.key, 0)
                size = int(together.lengths[row])
                assert together.ids[row, :size].tolist() == expected
                rest = together.ids[row, size:].tolist()
                assert rest == ([model.end_token_ids[0]] + [model.end_token_ids[1]] * (len(rest) - 1))[: len(rest)]
                cut += size < config.gen_length
    assert cut > 8
    # A text is the tokens that spell it; answers then end before it.
    texts = generate(model, queries, decode_config(8, 8))
    word = next(char for char in texts[0] if char.isascii() and char.isalnum())
    tokens = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    by_text, by_tokens = (decode_config(8, 8, stop=(stop,)) for stop in (word, tuple(tokens)))
    assert torch.equal(*(decode(model, model.encode(queries), config, keys=keys) for config in (by_text, by_tokens)))


def test_rows_that_have_stopped_cost_nothing(make_model, queries):
    model = make_model()
    rows, denoise = [], model.denoise

    def spy(prefix, response):
        rows.append(len(response))
        logits = denoise(prefix, response)
        logits[:, 1:, 9] += 10  # slot 0 is filled last
        logits[prefix.visual_mask.any(-1), 0, 9] += 1000  # except in rows with a picture
        return logits

    model.denoise = spy
    decoded = decode_with_lengths(model, model.encode(queries[:3]), decode_config(8, 8, stop=((9,),)))
    assert rows[0] == 3 and rows[1] == 1 and decoded.lengths[:2].tolist() == [0, 0]


def test_banned_tokens(make_model, queries):
    model = make_model()
    prefix = model.encode(queries)
    plain = decode(model, prefix, decode_config(8, 4))
    model.banned_token_ids = (int(plain[0, 0]), int(plain[1, 1]))
    got = decode(model, prefix, decode_config(8, 4))
    assert not torch.isin(got, torch.tensor(model.banned_token_ids)).any()
    model64 = model.double()
    for row, query in enumerate(queries):
        config = decode_config(8, 4)
        expected = reference_decode(model64, model64.encode([query]), config, query.key, 0)
        assert decode(model64, model64.encode(queries), config)[row].tolist() == expected


def test_a_mask_that_is_not_banned_leaves_its_slot_open(make_model, queries):
    # The published samplers count such a slot as committed, and may end with it unanswered.
    model = make_model()
    seen, denoise = [], model.denoise

    def favour_mask(prefix, response):
        seen.append(int((response == model.mask_token_id).sum()))
        logits = denoise(prefix, response)
        logits[:, 2, model.mask_token_id] += 1000
        return logits

    model.denoise = favour_mask
    got = decode(model, model.encode(queries[:1]), decode_config(4, 4, ban_mask=False))
    assert seen == [4, 4, 4, 4] and (got == model.mask_token_id).sum() == 4
    assert not (decode(model, model.encode(queries[:1]), decode_config(4, 4)) == model.mask_token_id).any()


def test_the_prefix_cache_is_made_once_and_follows_the_rows(make_model, queries):
    model = make_model()
    made, given, denoise = [], [], model.denoise

    def cache_prefix(prefix):
        made.append(len(prefix))
        return {"keys": [(torch.arange(len(prefix)),)], "size": 7}

    def spy(prefix, response, cache=None):
        given.append(None if cache is None else cache["keys"][0][0].tolist())
        logits = denoise(prefix, response)
        if cache is not None:
            assert cache["size"] == 7
            logits[cache["keys"][0][0] == 1] += torch.eye(logits.shape[-1])[9] * 1000  # row 1 is sure at once
        return logits

    model.cache_prefix, model.denoise = cache_prefix, spy
    decode(model, model.encode(queries[:3]), decode_config(4, 4, threshold=0.99, prefix_cache=True))
    assert made == [3] and given[0] == [0, 1, 2] and all(rows == [0, 2] for rows in given[1:])
    given.clear()
    decode(model, model.encode(queries[:3]), decode_config(4, 4))
    assert made == [3] and given == [None] * 4
    decode(model, model.encode(queries[:3]), decode_config(4, 4, cfg_scale=1.0, prefix_cache=True))
    assert made == [3, 3, 3]


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
    decode(model, model.encode(queries), decode_config(8, 8, threshold=0.01))
    assert len(calls) < 8
    calls.clear()
    decode(model, model.encode(queries), decode_config(8, 8))
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
    decode(model, model.encode(queries[:1]), decode_config(8, 8, threshold=0.9999))
    assert still_open == [8, 4, 3, 2, 1]


def test_the_mask_token_is_never_an_answer(make_model, queries):
    model = make_model()
    denoise = model.denoise

    def favour_mask(prefix, response):
        logits = denoise(prefix, response)
        logits[..., model.mask_token_id] += 1000
        return logits

    model.denoise = favour_mask
    got = decode(model, model.encode(queries), decode_config(4, 2, temperature=1.0), keys=[q.key for q in queries])
    assert not (got == model.mask_token_id).any()


def test_generate_does_not_depend_on_batch_size(tiny_model64, queries):
    config, finished = decode_config(8, 4, temperature=1.0), []
    one = generate(tiny_model64, queries, config, seed=2, batch_size=1)
    many = generate(tiny_model64, queries, config, seed=2, batch_size=3, progress=finished.append)
    assert one == many and finished == [3, 1]
    assert one != generate(tiny_model64, queries, config, seed=4)
    assert generate(tiny_model64, [replace(queries[0], response="other")], config, seed=2) == one[:1]


def test_generate_answers_what_the_encoder_shows(tiny_model64, queries):
    def shorn(model, batch):
        return model.encode([replace(query, images=(), prompt="And now?") for query in batch])

    config = decode_config(8, 4, temperature=1.0)
    shown = [replace(query, images=(), prompt="And now?") for query in queries]
    expected = generate(tiny_model64, shown, config, seed=2)
    assert generate(tiny_model64, queries, config, encode=shorn, seed=2, batch_size=3) == expected
    assert expected != generate(tiny_model64, queries, config, seed=2)


@given(st.integers(0, 200), st.integers(1, 60))
def test_quotas(slots, steps):
    quotas = commit_quotas(slots, steps)
    assert len(quotas) == steps and sum(quotas) == slots
    assert max(quotas) - min(quotas) <= 1 and quotas == sorted(quotas, reverse=True)


@pytest.mark.parametrize("key", SCHEDULES)
def test_published_schedules(key):
    schedule, shift, slots, steps = key
    assert commit_schedule(slots, steps, schedule, shift) == SCHEDULES[key]


@given(st.integers(1, 200), st.data(), st.sampled_from(["shift", "cosine", "linear"]), st.floats(0.05, 20))
def test_schedules_commit_everything(slots, data, schedule, shift):
    steps = data.draw(st.integers(1, slots))
    counts = commit_schedule(slots, steps, schedule, shift)
    assert len(counts) == steps and sum(counts) == slots and min(counts) >= 1
    assert commit_schedule(slots, steps) == commit_quotas(slots, steps)


def test_random_decoding_needs_keys(tiny_model, queries):
    with pytest.raises(ValueError, match="keys"):
        decode(tiny_model, tiny_model.encode(queries), decode_config(4, 4, temperature=1.0))
