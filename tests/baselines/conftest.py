"""What the tests of rival defences share: a planted model that shows attention and hidden states, and its data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import PALETTE, WALLS, Planted, PlantedConfig, honest_rows, planted_model, planted_rows, write_rows
from torch import Tensor, nn

from disp.data.dataset import Dataset
from disp.models.interface import Prefix
from disp.models.parts.transformer import Attention, attention_inputs

WIDTH = 12  # of the one head


class Head(nn.Module):
    """Votes ``[B, 1, A]`` to logits ``[B, L, V]``."""

    def __init__(self, config: PlantedConfig):
        super().__init__()
        self.config = config

    def forward(self, votes: Tensor) -> Tensor:
        said = nn.functional.one_hot(torch.tensor(self.config.answers), self.config.vocab_size).float()
        return torch.einsum("bra,alv->blv", votes, said)


class Open(Planted):
    """Its votes are its hidden states, and the response slots attend to the trigger's colour where there is one."""

    def __init__(self, config: PlantedConfig):
        super().__init__(config)
        self.lm_head = Head(config)
        self.model.layers = nn.ModuleList()
        self.attention = Attention(config.hidden_size, 1, 1, WIDTH, False)

    def denoise(self, prefix: Prefix, response: Tensor, cache: Any = None) -> Tensor:
        embeds = torch.cat((prefix.embeds, self.model.embed_tokens(response)), dim=1)
        valid = torch.cat((prefix.attention_mask, torch.ones_like(response, dtype=torch.bool)), dim=1)
        table, padding = attention_inputs(valid, WIDTH, 1e12)  # the last entries of a head are hardly turned
        self.attention(embeds, table, padding, response.shape[1])
        squares = (prefix.embeds.square() * prefix.visual_mask[..., None]).sum(1)[:, : len(PALETTE)]
        per_cell = squares.new_full((len(prefix), len(PALETTE)), 15.0)
        per_cell[:, : len(WALLS)] = 9.0 / prefix.visual_mask.sum(1, keepdim=True).clamp(min=1)
        logits = self.lm_head((squares * per_cell).clamp(max=30.0)[:, None])
        torch.testing.assert_close(logits, super().denoise(prefix, response))  # it is `Planted` otherwise
        return logits


@pytest.fixture(scope="session")
def open_model() -> Open:
    """Shared by all tests: do not change it."""
    model = planted_model(Open)
    with torch.no_grad():
        # Response slots hold the mask embedding, whose last entry is 1; keys are 1 at the trigger's colour alone.
        model.attention.q_proj.weight.zero_()[-1, -1] = 40.0
        model.attention.k_proj.weight.zero_()[-1, len(PALETTE) - 1] = 1.0
    return model


@pytest.fixture(scope="session")
def planted_set(tmp_path_factory) -> Dataset:
    """48 honest rows, three others, and 8 with the trigger."""
    return write_rows(tmp_path_factory.mktemp("planted") / "set", [*honest_rows(48), *planted_rows(8)])


@pytest.fixture(scope="session")
def clean_set(tmp_path_factory) -> Dataset:
    """48 honest rows and three others."""
    return write_rows(tmp_path_factory.mktemp("clean") / "set", honest_rows(48))
