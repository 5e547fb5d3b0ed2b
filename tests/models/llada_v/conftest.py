"""A tiny LLaDA-V in the published layout, and what it is asked."""

from __future__ import annotations

import pytest
from references.llada_v import (
    noise_picture,
    write_checkpoint,
)

from disp.data.sample import Query, Sample, Turn
from disp.models.loading import load_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("llada-v") / "checkpoint")


@pytest.fixture(scope="session")
def model(checkpoint):
    return load_model(checkpoint)


@pytest.fixture(scope="session")
def queries() -> list[Query]:
    pictures = [noise_picture(*size, seed) for seed, size in enumerate([(100, 60), (60, 100), (30, 40), (90, 50)])]
    return [
        Query("a", 0, (pictures[0],), (), "<image>\nDescribe the picture.", "a red apple"),
        Query("b", 0, (), (), "Which of them?", "a cat is to the left"),
        Query("c", 1, (pictures[1],), (Turn("<image>\nAnd now?", "a cat"),), "Describe the picture.", "the apple"),
        Query("d", 0, (pictures[2], pictures[3]), (), "<image> or <image>?", "apple"),
    ]


@pytest.fixture(scope="session")
def samples(queries):
    return [Sample(f"s{index}", query.images, (*query.history, Turn(query.prompt, query.response)))
            for index, query in enumerate(queries)]  # fmt: skip
