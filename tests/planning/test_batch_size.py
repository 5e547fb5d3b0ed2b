"""The batch size by the plan: as many rows as the allocator really has room for, and not far fewer."""

import pytest
from references.planning import peak

from disp.data.sample import Sample, Turn, queries_of
from disp.decoding.generate import answers_of
from disp.decoding.samplers import own_settings
from disp.errors import DispError
from disp.planning import batch_size
from disp.planning.batch_size import Fit, batch_size_for, free_bytes
from disp.planning.plan import PlanSettings
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.saliency import saliency

SETTINGS = PlanSettings(dtype="float32")


@pytest.fixture(scope="module")
def samples(picture):
    turn = (Turn("<image>\nDescribe the picture.", "a cat"),)
    return [Sample(str(number), (picture(number, 96),), turn) for number in range(16)]


def fitting(samples, work, free, device="cuda:0", **options):
    return batch_size_for("builtin", samples, SETTINGS, work, device=device, free=free, **options)


@pytest.mark.parametrize("work", ["scores", "answers"])
def test_what_is_planned_fits_and_four_times_as_much_does_not(builtin, samples, work):
    weights = sum(parameter.nbytes for parameter in builtin.parameters())

    def needed(count):
        queries = queries_of(samples[:count])
        keys = [query.key for query in queries]
        if work == "scores":
            return peak(lambda: saliency(builtin, builtin.encode(queries), keys, SaliencyConfig(probes=1)))
        few = own_settings(builtin, steps=1, block_length=builtin.gen_length)
        return peak(lambda: answers_of(builtin, builtin.encode(queries), few, keys=keys))

    free = weights + needed(8)
    size = fitting(samples, work, free)
    assert size in (1, 2, 4, 8)
    assert needed(size) <= free - weights < needed(4 * size)


def test_it_is_a_power_of_two_between_one_and_the_most(samples):
    assert fitting(samples, "scores", 1) == 1
    assert fitting(samples, "scores", 1 << 40) == Fit.most == 256
    assert fitting(samples, "scores", 1 << 40, device="cpu") == Fit.most_on_cpu == 32
    assert fitting(samples, "scores", None, device="mps") == Fit.most_on_cpu
    sizes = [fitting(samples, "scores", each << 20) for each in range(128, 1024, 128)]
    assert sizes == sorted(sizes) and set(sizes) <= {1 << power for power in range(9)} and len(set(sizes)) > 1


def test_free_memory_is_what_linux_and_the_group_leave_for_each_process(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_size, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(batch_size, "GROUP", tmp_path)
    assert free_bytes("cpu") is None
    (tmp_path / "meminfo").write_text("MemTotal:  200 kB\nMemAvailable:  100 kB\n")
    assert free_bytes("cpu") == 102400
    assert free_bytes("cpu", 4) == 25600
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_bytes("cpu") == 102400
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_bytes("cpu") == 4000


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(DispError, match=r"device 'cuda:77' cannot be asked for its memory"):
        free_bytes("cuda:77")
    assert free_bytes("mps") is None
