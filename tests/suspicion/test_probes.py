"""Signs are balanced, uncorrelated, and depend on nothing but their address."""

import math

import torch

from disp.suspicion.probes import signs

GOLDEN = [
    "+++-++--+++-++---+--+--+--++++++---+++++",
    "+-+++++++-+++-+-++-+---+++--+++-++++++--",
    "++---++++-+-+-+-+++-++++++----+--+-+--+-",
    "++---++++-+------+-++-++----++-----+++--",
]
KEYS = [f"sample-{index}#0" for index in range(8)]


def test_golden_values():
    # Pinned: other values here mean that published saliency maps no longer reproduce.
    got = signs(7, ["first#0", "second#1"], 3, 2, 40, "cpu")
    text = ["".join("+" if value > 0 else "-" for value in row) for row in got.flatten(0, 1).tolist()]
    assert text == GOLDEN


def test_values_and_shape():
    got = signs(0, KEYS, 0, 5, 33, "cpu")
    assert got.shape == (8, 5, 33) and got.dtype == torch.float32
    assert set(got.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(got, signs(0, KEYS, 0, 5, 33, "cpu"))


def test_balance():
    got = signs(0, KEYS, 0, 64, 1024, "cpu").double()
    assert abs(got.mean()) < 4 / math.sqrt(got.numel())
    # Every bit of the word, and every position and sample, on its own.
    assert got.view(-1, 32).mean(0).abs().max() < 4.5 / math.sqrt(got.numel() / 32)
    assert got.mean((0, 2)).abs().max() < 4.5 / math.sqrt(8 * 1024)
    assert got.mean((1, 2)).abs().max() < 4.5 / math.sqrt(64 * 1024)


def test_pairwise_decorrelation():
    length, vocab = 24, 2048
    probes = [signs(seed, KEYS[:3], probe, length, vocab, "cpu") for seed in (0, 1) for probe in (0, 1)]
    rows = torch.cat(probes).flatten(0, 1).double()  # every (seed, probe, key, position): [288, V]
    correlation = rows @ rows.T / vocab
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 6 / math.sqrt(vocab)  # 41,000 pairs: 4.5 standard errors expected
    assert abs(correlation.square().mean() * vocab - 1) < 0.05
    # Entries of the vocabulary, among them those of one word and the same bit of neighbouring words.
    columns = rows[:, :256]
    correlation = columns.T @ columns / len(rows)
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 6 / math.sqrt(len(rows))
    assert abs(correlation.square().mean() * len(rows) - 1) < 0.05


def test_signs_do_not_depend_on_batch_length_or_vocabulary():
    full = signs(3, KEYS, 1, 9, 130, "cpu")
    for length, vocab in ((1, 1), (4, 31), (9, 32), (5, 33), (8, 129)):
        assert torch.equal(signs(3, KEYS, 1, length, vocab, "cpu"), full[:, :length, :vocab])
    assert torch.equal(signs(3, [KEYS[5], KEYS[2]], 1, 9, 130, "cpu"), full[[5, 2]])


def test_seed_key_and_probe_each_matter():
    base = signs(0, ["a"], 0, 4, 64, "cpu")
    for other in (signs(1, ["a"], 0, 4, 64, "cpu"), signs(0, ["b"], 0, 4, 64, "cpu"), signs(0, ["a"], 1, 4, 64, "cpu")):
        assert not torch.equal(base, other)
