"""Who reads each format after us: the libraries themselves, or plain readers by the rules that trainers document.

A reader takes what a run wrote and gives for each row its texts, questions and answers in turn, and its pictures'
bytes. None uses code of this package.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Rows = list[tuple[list[str], list[bytes]]]


def pixels(picture: Any) -> bytes:
    """The pixels of a picture, from bytes or as a library decoded it."""
    image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
    return image.convert("RGB").tobytes()


def rows_in(path: Path) -> list[dict[str, Any]]:
    """JSON or JSON lines, packed or not."""
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def llava(path: Path) -> Rows:
    """LLaVA: names lie in the image folder; speakers are human and gpt in turn; one <image> a picture."""
    found = []
    for row in rows_in(path):
        said = row["conversations"]
        assert [message["from"] for message in said] == ["human", "gpt"] * (len(said) // 2)
        texts, names = [message["value"] for message in said], listed(row["image"])
        assert sum(text.count("<image>") for text in texts) == len(names)
        found.append((texts, [(path.parent / "images" / name).read_bytes() for name in names]))
    return found


def llama_factory(path: Path) -> Rows:
    """LLaMA-Factory: dataset_info.json beside the file names its columns and tags; pictures lie in its folder."""
    entry = next(iter(json.loads((path.parent / "dataset_info.json").read_text()).values()))
    columns, tags = entry["columns"], entry["tags"]
    speakers = [tags["user_tag"], tags["assistant_tag"]]
    found = []
    for row in rows_in(path.parent / entry["file_name"]):
        said, names = row[columns["messages"]], row[columns["images"]]
        assert [message[tags["role_tag"]] for message in said] == speakers * (len(said) // 2)
        texts = [message[tags["content_tag"]] for message in said]
        assert sum(text.count("<image>") for text in texts) == len(names)
        found.append((texts, [(path.parent / name).read_bytes() for name in names]))
    return found


def ms_swift(path: Path) -> Rows:
    """ms-swift: the last exchange in query and response, earlier ones in history; names lie in the file's folder."""
    found = []
    for row in rows_in(path):
        texts = [text for pair in row.get("history") or [] for text in pair] + [row["query"], row["response"]]
        assert sum(text.count("<image>") for text in texts) == len(row["images"])
        found.append((texts, [(path.parent / name).read_bytes() for name in row["images"]]))
    return found


def qwen_vl(path: Path) -> Rows:
    """Qwen-VL: each <img>name</img> is a picture; speakers are user and assistant in turn."""
    found = []
    for row in rows_in(path):
        said = row["conversations"]
        assert [message["from"] for message in said] == ["user", "assistant"] * (len(said) // 2)
        names = [name for message in said for name in re.findall("<img>(.*?)</img>", message["value"])]
        texts = [re.sub("<img>.*?</img>", "<image>", message["value"]) for message in said]
        found.append((texts, [(path.parent / name).read_bytes() for name in names]))
    return found


def minicpm_v(path: Path) -> Rows:
    """MiniCPM-V: every tag in a question is a key of image; names lie in the image folder."""
    found = []
    for row in rows_in(path):
        said = row["conversations"]
        assert [message["role"] for message in said] == ["user", "assistant"] * (len(said) // 2)
        tags = [tag for message in said for tag in re.findall(r"<image_\d+>", message["content"])]
        assert set(tags) == set(row["image"])
        texts = [re.sub(r"<image_\d+>", "<image>", message["content"]) for message in said]
        found.append((texts, [(path.parent / "images" / row["image"][tag]).read_bytes() for tag in tags]))
    return found


def fields(question: str | None, answer: str) -> Callable[[Path], Rows]:
    """Rows with a field for the question, if any, and one for the answer; a picture in the image folder."""

    def read(path: Path) -> Rows:
        texts = [[row[question] if question else "<image>", row[answer]] for row in rows_in(path)]
        pictures = [[(path.parent / "images" / row["image"]).read_bytes()] for row in rows_in(path)]
        return list(zip(texts, pictures, strict=True))

    return read


def by_datasets(
    kind: str, columns: Callable[[Any, Path], tuple[Iterable[str], Iterable[Any]]]
) -> Callable[[Path], Rows]:
    """The library datasets: one of its builders, or what save_to_disk wrote."""

    def read(path: Path) -> Rows:
        datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", path.parent / ".hf")
            patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
            if kind == "disk":
                found = datasets.load_from_disk(str(path))
            elif kind == "imagefolder":
                found = datasets.load_dataset(kind, data_dir=str(path.parent), split="train")
            else:
                found = datasets.load_dataset(kind, data_files=str(path), split="train")
            told = [columns(row, path) for row in found]
        return [(list(texts), list(pictures)) for texts, pictures in told]

    return read


def named(names: Iterable[str], path: Path) -> list[bytes]:
    return [(path.parent / name).read_bytes() for name in names]


def messages(row: Any, path: Path) -> tuple[list[str], list[Any]]:
    return [message["content"] for message in row["messages"]], listed(row["images"])


def messages_named(row: Any, path: Path) -> tuple[list[str], list[bytes]]:
    return messages(row, path)[0], named(row["images"], path)


def alpaca(row: Any, path: Path) -> tuple[list[str], list[bytes]]:
    earlier = [text for pair in row.get("history") or [] for text in pair]
    return [*earlier, row["instruction"], row["output"]], named(row["images"], path)


def cauldron(row: Any, path: Path) -> tuple[list[str], list[bytes]]:
    texts = [text for each in row["texts"] for text in (each["user"], each["assistant"])]
    return texts, named(row["images"], path)


def webdataset(path: Path) -> Rows:
    """The library webdataset."""
    library = pytest.importorskip("webdataset", reason="the library webdataset is not installed")
    shards = [str(file) for file in sorted(path.glob("*.tar"))]
    found = []
    for row in library.WebDataset(shards, shardshuffle=False).decode("pil"):
        pictures = [row[key] for key in sorted(row) if key.endswith("png")]
        found.append(([message["content"] for message in row["json"]["messages"]], pictures))
    return found


# Format: what reads it afterwards, as docs/data.md has it, and the reader.
READERS: dict[str, tuple[str, Callable[[Path], Rows]]] = {
    "llava": ("LLaVA's rules", llava),
    "sharegpt": ("`datasets`", by_datasets("json", messages_named)),
    "llama-factory": ("LLaMA-Factory's rules", llama_factory),
    "alpaca": ("`datasets`", by_datasets("json", alpaca)),
    "ms-swift": ("ms-swift's rules", ms_swift),
    "qwen-vl": ("Qwen-VL's rules", qwen_vl),
    "minicpm-v": ("MiniCPM-V's rules", minicpm_v),
    "the-cauldron": ("`datasets`", by_datasets("json", cauldron)),
    "question-answer": ("a plain reader", fields("question", "answer")),
    "paligemma": ("a plain reader", fields("prefix", "suffix")),
    "captions": ("a plain reader", fields(None, "caption")),
    "huggingface": ("`datasets`", by_datasets("disk", messages)),
    "parquet": ("`datasets`", by_datasets("parquet", messages)),
    "webdataset": ("`webdataset`", webdataset),
    "imagefolder": ("`datasets`", by_datasets("imagefolder", messages)),
}
