"""A few rows, and a small model to fine-tune on them."""

import pytest

from disp.data.sample import Sample, Turn


@pytest.fixture
def samples(picture):
    return [
        Sample(f"s{index}", (picture(index),), (Turn("<image>\nDescribe the picture.", answer),))
        for index, answer in enumerate(["cat", "dog", "tree", "boat", "apple", "two"])
    ]


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.05, gen_length=8)
