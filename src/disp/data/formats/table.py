"""Every format that is read and written, by the name that ``--format`` and ``--to`` take."""

from __future__ import annotations

from dataclasses import dataclass

from disp.data.formats import arrow, image_folder, json_files, json_parts, webdataset
from disp.data.formats.files import Files
from disp.errors import unknown_name

# How rows are kept in files.
FILES: dict[str, Files] = {
    files.name: files
    for files in (
        json_files.ARRAY,
        json_files.LINES,
        json_parts.PARTS,
        arrow.PARQUET,
        arrow.ARROW,
        webdataset.WEBDATASET,
        image_folder.IMAGE_FOLDER,
    )
}


@dataclass(frozen=True)
class Format:
    """What a format is made of.

    Attributes:
        title: what it is, for documentation.
        dialect: the rows that it has; None if any that is understood.
        files: the files that it lies in; None if any.
        writes: dialect and files of a new dataset in this format; None if it is only read.
    """

    title: str
    dialect: str | None = None
    files: str | None = None
    writes: tuple[str, str] | None = None


FORMATS: dict[str, Format] = {
    "llava": Format("LLaVA: `image`, `conversations` of `from` and `value`", "llava", None, ("llava", "json")),
    "sharegpt": Format(
        "ShareGPT, OpenAI, TRL, MiniCPM-V: `messages` of `role` and `content`, `images`",
        "sharegpt",
        None,
        ("sharegpt", "json"),
    ),
    "llama-factory": Format(
        "LLaMA-Factory: `dataset_info.json` with columns and tags", None, None, ("sharegpt", "json")
    ),
    "alpaca": Format("Alpaca: `instruction`, `input`, `output`, `images`", "alpaca", None, ("alpaca", "json")),
    "ms-swift": Format("ms-swift: `query`, `response`, `history`, `images`", "ms-swift", None, ("ms-swift", "lines")),
    "qwen-vl": Format("Qwen-VL: `<img>name</img>` in the text", "qwen-vl", None, ("qwen-vl", "json")),
    "minicpm-v": Format("MiniCPM-V: `image` with names of several pictures, `<image_00>` in the text", "minicpm-v"),
    "the-cauldron": Format(
        "the-cauldron: `images`, `texts` of `user` and `assistant`", "the-cauldron", None, ("the-cauldron", "lines")
    ),
    "question-answer": Format("`question`, `answer`, `image`", "question-answer"),
    "paligemma": Format("PaliGemma: `image`, `prefix`, `suffix`", "paligemma"),
    "questions": Format("LLaVA's question files: `question_id`, `image`, `text`", "questions"),
    "captions": Format("`image` and `text` or `caption`", "captions"),
    "huggingface": Format(
        "Hugging Face datasets: a folder of `save_to_disk`, or a hub id",
        None,
        "huggingface",
        ("sharegpt", "huggingface"),
    ),
    "parquet": Format("parquet files, with the pictures in them", None, "parquet", ("sharegpt", "parquet")),
    "webdataset": Format("WebDataset: tar files", None, "webdataset", ("sharegpt", "webdataset")),
    "imagefolder": Format(
        "an image folder with `metadata.jsonl` or `metadata.csv`", None, "imagefolder", ("sharegpt", "imagefolder")
    ),
}


def format_of(name: str) -> Format:
    """The format of this name.

    Raises:
        DispError: there is none.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    return FORMATS[name]
