"""Tables: parquet files, and folders that Hugging Face's `save_to_disk` wrote. Needs pyarrow, not `datasets`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from disp.data.dataset import Source
from disp.data.formats.files import Files, Output, check_columns, with_values
from disp.data.formats.row import Row
from disp.data.formats.splits import of_split
from disp.errors import DispError, install
from disp.files import write_atomically, write_json

# Columns of messages.
_MESSAGES = ("conversations", "messages", "texts")
# Rows that are in memory at a time, with their pictures.
AT_ONCE = 64
# The end of a stream of rows, now and before pyarrow 0.15.
_ENDS = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")
# What a new table's columns are, as `datasets` says it.
_TEXT = {"dtype": "string", "_type": "Value"}
# Versions before 4 know no "List", and later ones read both of these.
_PICTURES = {"feature": {"_type": "Image"}, "_type": "Sequence"}


def pyarrow() -> Any:
    """The library.

    Raises:
        DispError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DispError(f"reading parquet and Hugging Face datasets needs pyarrow: {install('hf')}") from None
    return pyarrow


def parquet_files(path: Path, split: str | None = None) -> list[Path]:
    """The file, or those of a split in a folder in order of their names."""
    return of_split(sorted(path.glob("*.parquet")), split) if path.is_dir() else [path]


def arrow_files(folder: Path) -> list[Path]:
    """The files of a folder that `save_to_disk` wrote, in the order of its state.json.

    Raises:
        DispError: state.json does not name files in the folder.
    """
    try:
        state = json.loads((folder / "state.json").read_bytes())
        names = [each["filename"] for each in state["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise ValueError("a file outside the folder")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DispError(f"{folder / 'state.json'} does not name the dataset's files ({error}); save it again") from None
    return [folder / name for name in names]


def columns(file: Path) -> list[str]:
    """The names of the columns of a parquet file.

    Raises:
        DispError: it cannot be read.
    """
    pa = pyarrow()
    with _named(file):
        return list(pa.parquet.read_schema(file).names)


def parquet_rows(path: Path, source: Source) -> Iterator[Row]:
    """The rows of parquet files.

    Raises:
        DispError: a file cannot be read.
    """
    pa = pyarrow()
    number = 0
    for file in _existing(parquet_files(path, source.split), path):
        with _named(file):
            batches = pa.parquet.ParquetFile(file).iter_batches(AT_ONCE)
        for row in _numbered(file, batches, number):
            yield row
            number += 1


def arrow_rows(path: Path, source: Source) -> Iterator[Row]:
    """The rows of a folder that `save_to_disk` wrote.

    Raises:
        DispError: a file cannot be read.
    """
    number = 0
    for file in _existing(arrow_files(path), path):
        for row in _numbered(file, _stream(file), number):
            yield row
            number += 1


def save_parquet(path: Path, outputs: Iterable[Output], like: tuple[Path, Source] | None = None) -> None:
    """Write parquet: files of the old names into a folder, or one file."""
    pa = pyarrow()
    olds = {file.name: file for file in (parquet_files(like[0], like[1].split) if like else ())}
    for name, group in groupby(outputs, key=lambda output: output.file if not path.suffix else ""):
        target = path / name if not path.suffix else path
        old = olds.get(name) or next(iter(olds.values()), None)
        schema = None
        if old:
            with _named(old):
                schema = _left(pa.parquet.read_schema(old), like)
        write_atomically(target, partial(_write, tables=_tables(group, schema), open_writer=pa.parquet.ParquetWriter))


def save_arrow(path: Path, outputs: Iterable[Output], like: tuple[Path, Source] | None = None) -> None:
    """Write a folder as `save_to_disk` does; state.json, which makes it a dataset, comes last."""
    pa = pyarrow()
    name = "data-00000-of-00001.arrow"
    schema, info = None, None
    if like:
        for file in arrow_files(like[0])[:1]:
            with _named(file), pa.memory_map(str(file)) as memory:
                schema = _left(pa.ipc.open_stream(memory).schema, like)
        info = _json(like[0] / "dataset_info.json")
        if isinstance(info, dict) and isinstance(features := info.get("features"), dict):
            info["features"] = {name: each for name, each in features.items() if name not in like[1].left_out}
    split = like[1].split if like else None
    folder = path / split if split else path
    write_atomically(folder / name, lambda file: _write(file, _tables(outputs, schema), pa.ipc.new_stream))
    write_json(folder / "dataset_info.json", info or {"features": _features(folder / name)})
    state: dict[str, Any] = {
        "_data_files": [{"filename": name}],
        "_fingerprint": "0" * 16,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    write_json(folder / "state.json", state)
    if split:
        write_json(path / "dataset_dict.json", {"splits": [split]})


def _write(file: Path, tables: Iterator[Any], open_writer: Callable[[Any, Any], Any]) -> None:
    """Write tables of one schema to a file."""
    with _named(file, "written", "free some space or choose another folder"):
        first = next(tables)
        with pyarrow().OSFile(str(file), "wb") as sink, open_writer(sink, first.schema) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)


def _tables(outputs: Iterable[Output], schema: Any) -> Iterator[Any]:
    pa = pyarrow()
    buffer: list[dict[str, Any]] = []
    begun = False
    for output in outputs:
        buffer.append(with_values(output.row))
        if len(buffer) == AT_ONCE:
            table = _table(pa, buffer, schema, begun=begun)
            schema, begun = table.schema, True
            yield table
            buffer = []
    if buffer or schema is not None:
        yield _table(pa, buffer, schema, begun=begun)


def _table(pa: Any, found: list[dict[str, Any]], schema: Any, *, begun: bool) -> Any:
    """Rows as a table; where others are written already (``begun``) it has their columns."""
    if schema is None:
        schema = _new_schema(pa)
    found = [_columned(row, schema) for row in found]
    unknown = sorted({key for row in found for key in row} - set(schema.names))
    if unknown and begun:
        raise DispError(
            f"a row has {unknown[0]!r}, for which the table that is written has no column; convert the set to a format "
            "of JSON, such as llava"
        )
    # An id that was given to a row, or pictures that it did not have: as new columns of text.
    for key in unknown:
        schema = schema.append(pa.field(key, pa.string()))
    try:
        return pa.Table.from_pylist(found, schema=schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DispError(f"a row does not fit the columns of the table that was read ({_line(error)})") from None


def _left(schema: Any, like: tuple[Path, Source] | None) -> Any:
    """The columns of a table without those that were left out, also of what `datasets` says about them."""
    gone = [name for name in (like[1].left_out if like else ()) if name in schema.names]
    for name in gone:
        schema = schema.remove(schema.get_field_index(name))
    told = dict(schema.metadata or {})
    try:
        said = json.loads(told[b"huggingface"]) if gone else None
        if said:
            features = said["info"]["features"]
            said["info"]["features"] = {name: each for name, each in features.items() if name not in gone}
            schema = schema.with_metadata({**told, b"huggingface": json.dumps(said).encode()})
    except (KeyError, ValueError, TypeError, AttributeError):  # no words of `datasets`
        pass
    return schema


def _new_schema(pa: Any) -> Any:
    """Columns of a new table."""
    text = pa.string()
    known = {
        "id": text,
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": text})),
        "messages": pa.list_(pa.struct({"role": text, "content": text})),
        "metadata": text,
    }
    features: dict[str, Any] = {
        "id": _TEXT,
        "images": _PICTURES,
        "messages": [{"role": _TEXT, "content": _TEXT}],
        "metadata": _TEXT,
    }
    info = json.dumps({"info": {"features": features}})
    return pa.schema(known, metadata={"huggingface": info})


def _features(file: Path) -> Any:
    pa = pyarrow()
    with pa.memory_map(str(file)) as memory:
        metadata = pa.ipc.open_stream(memory).schema.metadata or {}
    try:
        return json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return None


def _stream(file: Path) -> Iterator[Any]:
    pa = pyarrow()
    with _named(file), pa.memory_map(str(file)) as memory:
        reader = pa.ipc.open_stream(memory)
        end = memory.tell()
        for batch in reader:
            end = memory.tell()
            for start in range(0, batch.num_rows, AT_ONCE):
                yield batch.slice(start, AT_ONCE)
        # pyarrow takes the end of a file that was cut off behind a batch for the end of the stream. The number of rows
        # in dataset_info.json does not help: `datasets` leaves it as it was where rows were filtered.
        memory.seek(end)
        if memory.read() not in _ENDS:
            raise DispError(
                f"{file} is cut off or damaged: the end mark does not follow the last row; copy or download it again"
            )


def _numbered(file: Path, batches: Iterable[Any], first: int) -> Iterator[Row]:
    number = first
    iterator = iter(batches)
    while True:
        with _named(file):
            batch = next(iterator, None)
            if batch is not None:
                batch.validate(full=True)  # pyarrow trusts a file's offsets: damaged ones crash the process
                check_columns(file, batch.schema.names)
            rows = None if batch is None else _in_whole_numbers(batch).to_pylist()
        if rows is None:
            return
        for row in rows:
            yield Row(f"{file.name}:row {number - first + 1}", number, _listed(row), file.name)
            number += 1


def _in_whole_numbers(batch: Any) -> Any:
    """The batch with nanoseconds as whole numbers: Python's own times are too coarse for them."""
    columns = [(column, _without_nanoseconds(column.type)) for column in batch.columns]
    if all(kind == column.type for column, kind in columns):
        return batch
    return pyarrow().RecordBatch.from_arrays([column.cast(kind) for column, kind in columns], batch.schema.names)


def _without_nanoseconds(kind: Any) -> Any:
    pa = pyarrow()
    types = pa.types
    if (types.is_timestamp(kind) or types.is_duration(kind) or types.is_time64(kind)) and kind.unit == "ns":
        return pa.int64()
    if types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([field.with_type(_without_nanoseconds(field.type)) for field in fields])
    if types.is_map(kind):
        key, item = _without_nanoseconds(kind.key_type), _without_nanoseconds(kind.item_type)
        return kind if (key, item) == (kind.key_type, kind.item_type) else pa.map_(key, item)
    for is_list, make in ((types.is_list, pa.list_), (types.is_large_list, pa.large_list)):
        if is_list(kind):
            return make(kind.value_field.with_type(_without_nanoseconds(kind.value_type)))
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_without_nanoseconds(kind.value_type)), kind.list_size)
    return kind


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a list of messages where the table has a list for each of their fields, as `datasets` once did."""
    new = dict(row)
    for key in _MESSAGES:
        fields = row.get(key)
        if isinstance(fields, dict) and fields and all(isinstance(each, list) for each in fields.values()):
            if len({len(each) for each in fields.values()}) == 1:
                new[key] = [dict(zip(fields, each, strict=True)) for each in zip(*fields.values(), strict=True)]
    return new


def _columned(row: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """The opposite of `_listed`, where the table's columns ask for it."""
    new = dict(row)
    for key in _MESSAGES:
        kind = schema.field(key).type if key in schema.names else None
        if isinstance(row.get(key), list) and kind is not None and pyarrow().types.is_struct(kind):
            names = [kind.field(index).name for index in range(kind.num_fields)]
            new[key] = {name: [message.get(name) for message in row[key]] for name in names}
    return new


class _named:
    """Whatever pyarrow says about a file becomes one message that names it."""

    def __init__(self, file: Path, done: str = "read", remedy: str = "copy or download it again") -> None:
        self.file, self.done, self.remedy = file, done, remedy

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pyarrow().ArrowException | OSError | ValueError | TypeError | OverflowError):
            raise DispError(f"{self.file} cannot be {self.done} ({_line(error)}); {self.remedy}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _existing(files: list[Path], path: Path) -> list[Path]:
    if not files:
        raise DispError(f"{path} holds no data files; give a folder with parquet files, or one of save_to_disk")
    return files


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


PARQUET = Files("parquet", "parquet files", parquet_rows, save_parquet, ".parquet", is_json=False, embeds=True)
ARROW = Files("huggingface", "a folder of save_to_disk", arrow_rows, save_arrow, "", is_json=False, embeds=True)
