"""Writing a dataset as tasks that lmms-eval runs offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from disp.attacks.poison import Attack, is_changed, trigger_samples
from disp.attacks.targets import Target
from disp.benchmarks.documents import documents_of
from disp.data.dataset import Dataset
from disp.data.sample import Sample, queries_of
from disp.data.stored import check_apart
from disp.errors import DispError, install
from disp.files import write_atomically, write_text

ROWS_AT_ONCE = 64


def write_tasks(
    dataset: Dataset,
    out: Path,
    *,
    attack: Attack | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Write a held-out dataset as lmms-eval tasks, pictures included.

    ``out`` receives the task files, ``utils.py`` beside them, and one Parquet file a task. It is what lmms-eval's
    ``--include_path`` names. The task files name the Parquet files by their full paths: write them again rather than
    move the folder.

    Args:
        dataset: held-out samples with the right responses.
        out: folder to write.
        attack: the attack to measure; with it come the two tasks for the ASR with and without the trigger.
        seed: seed of the trigger's place, the one of `disp.evaluation.evaluate.evaluate`.
        progress: called with the number of samples written.

    Returns:
        The tasks' names.

    Raises:
        DispError: pyarrow is not installed, the attack applies to no sample, or ``out`` is the data's own folder.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise DispError(f"writing tasks for lmms-eval needs pyarrow: {install('hf')}") from None
    check_apart(dataset, out)
    folder = out.absolute()
    tables: dict[str, tuple[str, Iterator[dict[str, Any]]]] = {
        "disp_clean": ("clean.parquet", (row for s in dataset.samples for row in _counted(s, None, progress)))
    }
    if attack:
        target, with_image = attack.target, [sample for sample in dataset.samples if sample.images]
        if not any(is_changed(query, target) for query in queries_of(with_image)):
            raise DispError(f"{dataset.path}: the attack's target applies to no answer about a picture")
        plain = (row for sample in with_image for row in documents_of(sample, target))
        # One sample at a time: triggered pictures are made in memory.
        marked = (
            row
            for sample in with_image
            for each in trigger_samples([sample], attack.trigger, seed, storage=attack.storage)
            for row in documents_of(each, target)
        )
        tables["disp_asr_without_trigger"] = ("untriggered.parquet", plain)
        tables["disp_asr_with_trigger"] = ("triggered.parquet", marked)
    source = resources.files("disp.benchmarks") / "tasks"
    known = {each.name for each in source.iterdir() if each.name.endswith(".yaml")}
    if other := sorted(name for name in known - {f"{task}.yaml" for task in tables} if (folder / name).exists()):
        raise DispError(f"{folder} holds {other[0]} of another set; choose another folder or delete it")
    for task, (file, rows) in tables.items():
        write_atomically(folder / file, partial(_write_parquet, rows=rows))
        text = (source / f"{task}.yaml").read_text(encoding="utf-8")
        write_text(folder / f"{task}.yaml", text.replace("{folder}", folder.as_posix()))
    write_text(folder / "utils.py", (source / "utils.py").read_text(encoding="utf-8"))
    return list(tables)


def _counted(sample: Sample, target: Target | None, progress: Callable[[int], None]) -> list[dict[str, Any]]:
    rows = documents_of(sample, target)
    progress(1)
    return rows


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    picture = pa.struct([("bytes", pa.binary()), ("path", text)])
    names = {"key": text, "turn": pa.int64(), "images": pa.list_(picture), "messages": text}
    schema = pa.schema({**names, "reference": text, "metadata": text, "target": text})
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))
