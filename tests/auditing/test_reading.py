"""What an audit reads of the disk."""

from collections import Counter

from planted import audit_config, honest_rows, planted_rows, write_rows

from disp.auditing.audit import audit
from disp.data import sample
from disp.files import sha256


def test_an_audit_reads_each_picture_once_for_its_digest(model, tmp_path, monkeypatch):
    read = Counter()

    def digest(file):  # without the memory that a process has of files
        read[file] += 1
        return sha256(file)

    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows()])
    monkeypatch.setattr(sample, "file_digest", digest)
    found = audit(model, dataset, audit_config(), tmp_path / "out")
    assert found.verdict == "poisoned"  # so that pictures were told apart at every step
    assert read == Counter({picture for row in dataset.samples for picture in row.images})
