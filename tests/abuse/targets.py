"""Readers of files, each as a function of the file's bytes that returns, or raises `DispError` in one line."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from disp.attacks.poison import load_attack
from disp.auditing.truth import read_truth
from disp.data.decisions import read_decisions
from disp.data.loading import load_dataset
from disp.errors import DispError
from disp.files import claim, read_finished_jsonl
from disp.models.adapters import base_of
from disp.models.checkpoint import weight_files
from disp.models.loading import family_of
from disp.planning.checkpoints import read_config, sizes_of, stored_parameters
from disp.report.html import write_report

CORPUS = Path(__file__).parent / "corpus"


def data(folder: Path, content: bytes) -> object:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "data.json").write_bytes(content)
    return load_dataset(folder)


def lines(folder: Path, content: bytes) -> object:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "data.jsonl").write_bytes(content)
    return load_dataset(folder)


def results(folder: Path, content: bytes) -> object:
    (folder / "rows.jsonl").write_bytes(content)
    rows = list(read_finished_jsonl(folder / "rows.jsonl"))
    assert list(read_finished_jsonl(folder / "rows.jsonl")) == rows, "healed once"
    return rows


def run(folder: Path, content: bytes) -> object:
    (folder / "run.json").write_bytes(content)
    return claim(folder / "run.json", {"model": "a", "config": {"steps": 4}}, "a run")


def manifest(folder: Path, content: bytes) -> object:
    (folder / "manifest.json").write_bytes(content)
    return load_attack(folder / "manifest.json")


def truth(folder: Path, content: bytes) -> object:
    (folder / "manifest.json").write_bytes(content)
    return read_truth(folder / "manifest.json")


def config(folder: Path, content: bytes) -> object:
    (folder / "config.json").write_bytes(content)
    return family_of(folder)


def sizes(folder: Path, content: bytes) -> object:
    (folder / "config.json").write_bytes(content)
    return sizes_of(read_config(folder), folder)


def weights(folder: Path, content: bytes) -> object:
    (folder / "model.safetensors.index.json").write_bytes(content)
    return weight_files(folder)


def stored(folder: Path, content: bytes) -> object:
    (folder / "model.safetensors.index.json").write_bytes(content)
    return stored_parameters(folder)


def adapter(folder: Path, content: bytes) -> object:
    (folder / "adapter_config.json").write_bytes(content)
    return base_of(folder)


def audit(folder: Path, content: bytes) -> object:
    (folder / "audit.json").write_bytes(content)
    (folder / "evidence.jsonl").write_bytes(b"")
    return write_report(folder)


def evidence(folder: Path, content: bytes) -> object:
    """Rows with right checksums; what damage without them does is the campaign's."""
    said = [line[:-1] for line in content.splitlines() if line.endswith(b"}")]
    about = {"verdict": "no evidence", "samples": len(said), "flagged": 0}
    (folder / "audit.json").write_text(json.dumps(about))
    lines = (each + b', "crc32": "%08x"}\n' % zlib.crc32(each) for each in said)
    (folder / "evidence.jsonl").write_bytes(b"".join(lines))
    return write_report(folder)


def decisions(folder: Path, content: bytes) -> object:
    (folder / "decisions.jsonl").write_bytes(content)
    return read_decisions(folder / "decisions.jsonl", {"a", "b"}, Path("data.json"))


def decisions_table(folder: Path, content: bytes) -> object:
    (folder / "decisions.csv").write_bytes(content)
    return read_decisions(folder / "decisions.csv", {"a", "b"}, Path("data.json"))


TARGETS: dict[str, Callable[[Path, bytes], object]] = {
    each.__name__: each
    for each in (
        data, lines, results, run, manifest, truth, config, sizes, weights, adapter, audit, evidence, decisions,
        decisions_table, stored,
    )
}  # fmt: skip


def attempt(name: str, content: bytes) -> str:
    """What a reader says about bytes: the error, or "" where it took them.

    Raises:
        AssertionError: the error has several lines or is endless.
        Exception: anything else that the reader raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            TARGETS[name](Path(folder), content)
        except DispError as error:
            assert "\n" not in str(error).strip() and len(str(error)) < 3000, str(error)[:3000]
            return str(error)
    return ""


def seeds(name: str) -> list[bytes]:
    """The corpus of a reader."""
    return [file.read_bytes() for file in sorted(CORPUS.glob(f"{name}-*"))]
