"""Batches that memory is too short for are done in parts: nothing is lost, and no byte of a result changes."""

import json

import pytest
import torch
from scale.processes import files, write_set

from disp.auditing.audit import audit
from disp.auditing.config import AuditConfig
from disp.data.loading import load_dataset
from disp.data.sample import queries_of
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.halving import TooLittleMemory, fitting
from disp.models.builtin.model import BuiltinModel
from disp.purification.config import PurifyConfig
from disp.purification.guard import GuardConfig, guard
from disp.purification.purify import purify
from disp.suspicion.config import SaliencyConfig, ScoringConfig

SHORT = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "numpy": MemoryError("Unable to allocate 4 GiB for an array"),
}


class Machine:
    """Something to be beside; it has room for so many rows."""

    def __init__(self, room, error=SHORT["CUDA"]):
        self.room, self.error, self.tried = room, error, []

    def doubled(self, rows):
        self.tried.append(len(rows))
        if len(rows) > self.room:
            raise self.error
        return [2 * row for row in rows]


@pytest.mark.parametrize("error", SHORT.values(), ids=SHORT)
def test_a_batch_is_halved_until_it_fits_and_the_next_ones_begin_with_that(error, capsys):
    machine = Machine(3, error)
    found = list(fitting(machine, machine.doubled, range(20), 8))
    assert [row for _, rows in found for row in rows] == list(range(0, 40, 2))
    assert [row for part, _ in found for row in part] == list(range(20))
    assert machine.tried == [8, 4, *[2] * 4, *[2] * 4, 2, 2]


def test_what_did_not_fit_is_said_once(capsys):
    machine = Machine(20)
    list(fitting(machine, machine.doubled, range(100), 37))
    other = Machine(20)
    list(fitting(other, other.doubled, range(100), 37))
    assert capsys.readouterr().err == "memory is too short for 37 rows at once: going on with 19\n"


def test_a_row_that_does_not_fit_alone_is_named_with_what_helps():
    class Row:
        key = "row#1"

    machine = Machine(0)
    with pytest.raises(TooLittleMemory, match=r"^memory is too short for row#1 alone \(CUDA out of memory.*--dtype"):
        list(fitting(machine, machine.doubled, [Row(), Row()], 2))
    assert machine.tried == [2, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    machine = Machine(1, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(fitting(machine, machine.doubled, range(4), 4))
    assert machine.tried == [4]
    with pytest.raises(DispError, match="batch_size must be at least 1, got 0"):
        list(fitting(machine, machine.doubled, range(4), 0))


def test_a_step_within_a_step_is_given_more_rows_once_there_are_fewer_around_it():
    """The inner one fits nothing beside four outer rows, and three beside two."""
    machine, beside = Machine(0), []

    def outer(rows):
        machine.room = 0 if len(rows) > 2 else 3
        beside.append(len(rows))
        return [row for _, found in fitting(machine, machine.doubled, rows, 2) for row in found]

    assert [rows for _, rows in fitting(machine, outer, range(8), 4)] == [[0, 2], [4, 6], [8, 10], [12, 14]]
    assert beside == [4, 2, 2, 2, 2]
    assert machine.tried == [2, 1, 2, 2, 2, 2]


@pytest.fixture
def short_of_memory(monkeypatch):
    """A function that lets passes of more rows than that fail; it returns how many rows passes had until then."""

    def limit(most):
        rows = []
        for name in ("denoise", "denoise_slots", "embed"):
            whole = getattr(BuiltinModel, name)

            def limited(self, *given, whole=whole, **named):
                shown = given[0].embeds if given else next(iter(named.values()))
                rows.append(len(shown))
                if len(shown) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return whole(self, *given, **named)

            monkeypatch.setattr(BuiltinModel, name, limited)
        return rows

    return limit


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(write_set(tmp_path_factory.mktemp("data") / "data", 12))


# Models in 64 bits below: in 32 the last digit of a score may depend on what else is in its batch.
SCORING = ScoringConfig(saliency=SaliencyConfig(probes=1), candidates=3, batch_size=8)


def test_a_purification_short_of_memory_leaves_the_same_bytes(make_model, dataset, tmp_path, short_of_memory):
    config = PurifyConfig(scoring=SCORING, batch_size=8)
    purify(make_model().double(), dataset, config, tmp_path / "much")
    rows = short_of_memory(3)
    purify(make_model().double(), dataset, config, tmp_path / "little")
    assert max(rows) > 3
    assert files(tmp_path / "little") == files(tmp_path / "much")


def test_an_audit_short_of_memory_finds_the_same(make_model, dataset, tmp_path, short_of_memory):
    config = AuditConfig(scoring=SCORING, batch_size=8)
    model = make_model(gen_length=6).double()
    audit(model, dataset, config, tmp_path / "much")
    short_of_memory(3)
    audit(make_model(gen_length=6).double(), dataset, config, tmp_path / "little")
    much, little = files(tmp_path / "much"), files(tmp_path / "little")
    told = [json.loads(each.pop("audit.json")) for each in (much, little)]
    assert little == much
    assert [{**each, "cost": None} for each in told[:1]] == [{**each, "cost": None} for each in told[1:]]


def test_answers_under_masking_are_the_same_short_of_memory(make_model, dataset, short_of_memory):
    config = GuardConfig(decode=decode_config(gen_length=4, steps=2), batch_size=8)
    queries = queries_of(dataset.samples)
    expected = guard(make_model(), queries, config)
    short_of_memory(2)
    assert guard(make_model(), queries, config) == expected
