"""What the tests of the audit share: a model that has a trigger, and audits of rows with and without it."""

import pytest
from planted import PLANTED, audit_config, honest_rows, manifest, planted_model, planted_rows, write_rows

from disp.auditing.audit import audit


@pytest.fixture(scope="session")
def model():
    return planted_model()


@pytest.fixture(scope="session")
def poisoned(model, tmp_path_factory):
    """An audit of 51 honest and 8 poisoned rows: its folder, the dataset and the result."""
    folder = tmp_path_factory.mktemp("poisoned")
    dataset = write_rows(folder / "data", [*honest_rows(), *planted_rows()])
    truth = manifest(folder, PLANTED)
    return folder / "out", dataset, audit(model, dataset, audit_config(), folder / "out", truth=truth, name="planted")


@pytest.fixture(scope="session")
def honest(model, tmp_path_factory):
    """The same model on honest rows alone."""
    folder = tmp_path_factory.mktemp("honest")
    dataset = write_rows(folder / "data", honest_rows())
    return folder / "out", dataset, audit(model, dataset, audit_config(), folder / "out", truth=manifest(folder, ()))
