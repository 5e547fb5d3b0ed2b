"""LaViDa's decoding."""

from __future__ import annotations

import pytest
import torch
from references.lavida import (
    DREAM,
    LLADA,
    MASK,
    left_padded,
)

from disp.decoding.generate import decode
from disp.decoding.samplers import decode_config
from disp.models.lavida.config import LavidaConfig
from disp.models.lavida.family import FAMILY

SETTINGS = [
    {"steps": 6},
    {"steps": 4, "schedule": "shift", "schedule_shift": 0.33, "prefix_cache": True},
    {"steps": 6, "sampler": "dream", "algorithm": "entropy", "step_ratio": 0.5},
    {"steps": 6, "sampler": "dream", "algorithm": "topk_margin", "top_k": 50, "prefix_cache": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: each.get("sampler", "llada"))
def test_masked_visual_tokens_are_no_candidates_and_rows_are_independent(model, settings):
    prefix, rows = left_padded(model)
    masked = prefix.visual_mask & (torch.arange(prefix.embeds.shape[1]) % 2 == 0)
    hidden = prefix.with_masked(masked, model.mask_embedding)
    config = decode_config(gen_length=6, **settings)
    ids = decode(model, hidden, config)
    assert not (ids == MASK).any()
    offset = prefix.embeds.shape[1] - rows[1].embeds.shape[1]
    alone = rows[1].with_masked(masked[1:, offset:], model.mask_embedding)
    assert torch.equal(decode(model, alone, config), ids[1:])


def test_the_published_defaults_are_valid_settings():
    for config in (LLADA, DREAM):
        own = LavidaConfig.from_official(config)
        decoding = decode_config(gen_length=own.gen_length, **own.generation)
        assert (decoding.schedule, decoding.schedule_shift, decoding.prefix_cache) == ("shift", 0.33, True)
        for settings in FAMILY.presets(config).values():
            assert decode_config(**settings).prefix_cache
