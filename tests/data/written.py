"""Small datasets in every format, each written by hand, and plain readers of them: no code of the library."""

import base64
import csv
import gzip
import io
import json
import tarfile

import numpy as np
from PIL import Image

ANSWERS = ["A cat.", "Two.", "A dog and a cat."]


def png(number):
    """The bytes of a picture."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def pictures(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for number in (1, 2, 3):
        (folder / f"{number}.png").write_bytes(png(number))


def chat(*texts, who="role", what="content", names=("user", "assistant")):
    return [{who: names[index % 2], what: text} for index, text in enumerate(texts)]


def from_value(*texts):
    return chat(*texts, who="from", what="value", names=("human", "gpt"))


def first(image="<image>\n"):
    return [f"{image}What is it?", ANSWERS[0], "How many ears?", ANSWERS[1]]


def second(image="<image>"):
    return [f"{image}{image} And these?", ANSWERS[2]]


def json_rows(name, *, one=lambda number: f"{number}.png"):
    """The same two samples, of one and of two pictures, as rows of a dialect."""
    many = [one(2), one(3)]
    if name == "llava":
        return [
            {"id": "a", "image": one(1), "conversations": from_value(*first()), "source": {"x": 1}},
            {"id": "b", "image": many, "conversations": from_value(*second())},
        ]
    if name == "sharegpt":
        return [
            {"messages": chat(*first()), "images": [one(1)]},
            {"messages": [{"role": "system", "content": "Be brief."}, *chat(*second())], "images": many},
        ]
    if name == "typed-parts":
        image, text = {"type": "image"}, lambda words: {"type": "text", "text": words}
        parts = [
            [image, text("\nWhat is it?")],
            [text(ANSWERS[0])],
            [text("How many ears?")],
            [text(ANSWERS[1])],
        ]
        inline = [
            [
                {"type": "image", "image": one(2)},
                {"type": "image_url", "image_url": {"url": one(3)}},
                text(" And these?"),
            ],
            [text(ANSWERS[2])],
        ]
        return [{"messages": chat(*parts), "images": [one(1)]}, {"messages": chat(*inline)}]
    if name == "alpaca":
        return [
            {
                "instruction": "How many ears?",
                "input": "",
                "output": ANSWERS[1],
                "history": [["<image>\nWhat is it?", ANSWERS[0]]],
                "images": [one(1)],
            },
            {"instruction": "<image><image> And", "input": "these?", "output": ANSWERS[2], "images": many},
        ]
    if name == "ms-swift":
        return [
            {
                "query": "How many ears?",
                "response": ANSWERS[1],
                "history": [["<image>\nWhat is it?", ANSWERS[0]]],
                "images": [one(1)],
            },
            {"query": "<image><image> And these?", "response": ANSWERS[2], "images": many, "system": "Be brief."},
        ]
    if name == "qwen-vl":
        tags = "".join(f"<img>{each}</img>" for each in many)
        return [
            {"id": "a", "conversations": chat(*first(f"Picture 1: <img>{one(1)}</img>\n"), who="from", what="value")},
            {"query": f"{tags} And these?", "response": ANSWERS[2]},
        ]
    if name == "minicpm-v":
        tags = {f"<image_{index:02}>": one(number) for index, number in enumerate((3, 2))}
        return [
            {"id": "a", "image": {"<image>": one(1)}, "conversations": chat(*first())},
            {"id": "b", "image": tags, "conversations": chat("<image_01><image_00> And these?", ANSWERS[2])},
        ]
    if name == "paligemma":
        rows = [{"image": one(1), "prefix": "answer en What is it?", "suffix": ANSWERS[0]}]
        return [*rows, {"image": one(2), "prefix": "answer en And these?", "suffix": ANSWERS[2]}]
    assert name == "the-cauldron"
    texts = [{"user": q, "assistant": a, "source": "x"} for q, a in (first("")[:2], first("")[2:])]
    return [
        {"images": [one(1)], "texts": texts},
        {"images": many, "texts": [{"user": "And these?", "assistant": ANSWERS[2], "source": "y"}]},
    ]


def write_json(dialect, suffix=".json", lines=False):
    def write(folder):
        pictures(folder / "images")
        rows = json_rows(dialect)
        text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
        path = folder / f"set{suffix}"
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
        return path

    return write


def read_json(path):
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return json.loads(text) if text.lstrip()[0] == "[" else [json.loads(line) for line in text.splitlines()]


def write_data_uris(folder):
    rows = json_rows("llava", one=lambda number: "data:image/png;base64," + base64.b64encode(png(number)).decode())
    (folder / "set.json").write_text(json.dumps(rows))
    return folder / "set.json"


def write_base64(folder):
    rows = json_rows("llava", one=lambda number: base64.b64encode(png(number)).decode())
    (folder / "set.json").write_text(json.dumps(rows))
    return folder / "set.json"


def in_parts(one):
    """A row of one picture and one of two, each in a part of a message, as ``one`` writes the part of a number."""
    text = lambda words: {"type": "text", "text": words}  # noqa: E731
    return [
        {"messages": chat([one(1), text("What is it?")], [text(ANSWERS[0])])},
        {"messages": chat([one(2), one(3), text(" And these?")], ANSWERS[2])},
    ]


def write_files(suffix):
    """A file for each row."""

    def write(folder):
        pictures(folder / "data" / "images")
        for index, row in enumerate(json_rows("llava")):
            text = json.dumps([row]) if suffix == ".json" else json.dumps(row) + "\n"
            (folder / "data" / f"train-{index:05}-of-00002{suffix}").write_text(text)
        return folder

    return write


def read_files(path):
    folder = path / "data" if (path / "data").is_dir() else path
    return [row for file in sorted(folder.glob("*.json*")) for row in read_json(file)]


def write_parts(one):
    def write(folder):
        (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in in_parts(one)))
        return folder / "set.jsonl"

    return write


def as_text(number, head="data:image/png;base64,"):
    return head + base64.b64encode(png(number)).decode()


def write_parquet_parts(held):
    """Parts in a table, where each has all columns; those that have nothing to say are null."""

    def write(folder):
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts = [{"type": "image", "text": None}, {"type": "text", "image": None}]
        rows = in_parts(lambda number: {**parts[0], "image": held(number)})
        for message in (message for row in rows for message in row["messages"]):
            content = message["content"]
            content = [{"type": "text", "text": content}] if isinstance(content, str) else content
            message["content"] = [{**parts[part["type"] == "text"], **part} for part in content]
        pq.write_table(pa.Table.from_pylist(rows), folder / "set.parquet")
        return folder / "set.parquet"

    return write


def write_llama_factory(folder):
    pictures(folder / "pics")
    rows = [
        {"chat": chat(*first(), who="by", what="said", names=("u", "a")), "pics": ["pics/1.png"], "sys": "Be brief."},
        {"chat": chat(*second(), who="by", what="said", names=("u", "a")), "pics": ["pics/2.png", "pics/3.png"]},
    ]
    (folder / "mine.json").write_text(json.dumps(rows))
    tags = {"role_tag": "by", "content_tag": "said", "user_tag": "u", "assistant_tag": "a"}
    columns = {"messages": "chat", "images": "pics", "system": "sys"}
    entry = {"file_name": "mine.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps({"mine": entry, "hub": {"hf_hub_url": "x/y"}}))
    return folder


def read_llama_factory(folder):
    folder = folder if folder.is_dir() else folder.parent
    info = json.loads((folder / "dataset_info.json").read_text())["mine"]
    assert info["columns"]["messages"] == "chat"
    return json.loads((folder / info["file_name"]).read_text())


def table_rows(name):
    embedded = lambda number: {"bytes": png(number), "path": f"{number}.png"}  # noqa: E731
    rows = json_rows("the-cauldron" if name == "the-cauldron" else "llava", one=embedded)
    if name == "the-cauldron":
        return rows
    # LLaVA-OneVision's columns: one picture a row.
    return [
        {"id": "a", "image": embedded(1), "conversations": from_value(*first()), "data_source": "x"},
        {"id": "b", "image": embedded(2), "conversations": from_value(*second("")[:2]), "data_source": "y"},
    ]


def write_parquet(name, files=1, columned=False):
    def write(folder):
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = table_rows(name)
        if columned:  # a list for each field of the messages, as tables of older versions of `datasets` have it
            for row in rows:
                talk = row["conversations"]
                row["conversations"] = {key: [message[key] for message in talk] for key in talk[0]}
        if files == 1:
            pq.write_table(pa.Table.from_pylist(rows), folder / "set.parquet")
            return folder / "set.parquet"
        (folder / "data").mkdir()
        for index, row in enumerate(rows):
            pq.write_table(pa.Table.from_pylist([row]), folder / "data" / f"train-{index:05}-of-00002.parquet")
        return folder

    return write


def read_parquet(path):
    import pyarrow.parquet as pq

    if path.is_dir() and (path / "data").is_dir():
        path = path / "data"
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def write_save_to_disk(folder):
    """What `datasets` writes for these rows, byte for byte but for the fingerprint."""
    import pyarrow as pa

    rows, text = table_rows("one-vision"), {"dtype": "string", "_type": "Value"}
    features = {
        "id": text,
        "image": {"_type": "Image"},
        "conversations": {"feature": {"from": text, "value": text}, "_type": "List"},
        "data_source": text,
    }
    plain = pa.Table.from_pylist(rows)
    table = plain.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (folder / "set").mkdir()
    with pa.OSFile(str(folder / "set" / "data-00000-of-00001.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "set" / "dataset_info.json").write_text(json.dumps({"citation": "", "features": features}))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0f", "_split": None}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    (folder / "set" / "state.json").write_text(json.dumps(state))
    return folder / "set"


def read_save_to_disk(folder):
    import pyarrow as pa

    with pa.memory_map(str(folder / "data-00000-of-00001.arrow")) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


def write_tar(suffix=".tar", mode="w", **more):
    def write(folder):
        (folder / "set").mkdir()
        for shard, number in (("s-000", 1), ("s-001", 2)):
            with tarfile.open(folder / "set" / f"{shard}{suffix}", mode) as tar:
                talk = {"conversations": from_value(*(first() if number == 1 else second(""))), "tag": number, **more}
                members = {f"x/{number:04}.png": png(number), f"x/{number:04}.json": json.dumps(talk).encode()}
                for name, content in {**members, f"x/{number:04}.cls": b"7"}.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return folder / "set"

    return write


def read_tar(folder):
    found = {}
    for file in sorted(folder.glob("*.t*")):
        with tarfile.open(file) as tar:
            for member in tar:
                content = tar.extractfile(member).read()
                json_member = member.name.endswith(".json")
                found[f"{file.name}:{member.name}"] = json.loads(content) if json_member else content
    return found


def write_image_folder(name):
    def write(folder):
        pictures(folder / "set" / "train")
        rows = [
            {"file_name": "1.png", "prompt": "What is it?", "response": ANSWERS[0], "n": "1"},
            {"file_name": "2.png", "prompt": "And this, then?", "response": ANSWERS[2], "n": "2"},
        ]
        file = folder / "set" / "train" / name
        if name.endswith(".csv"):
            with file.open("w", newline="") as out:
                writer = csv.DictWriter(out, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "set"

    return write


def read_image_folder(path):
    folder = path / "train" if path.is_dir() else path.parent
    files = sorted(folder.glob("metadata.*"))
    if files[0].suffix == ".csv":
        with files[0].open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = read_json(files[0])
    return [{**row, "file": (folder / row["file_name"]).read_bytes()} for row in rows]


# Format: how it is written, how it is read back, what `formats` says, and how many turns and pictures there are.
WRITTEN = {
    "llava": (write_json("llava"), read_json, {"llava": 2}),
    "llava-lines": (write_json("llava", ".jsonl", True), read_json, {"llava": 2}),
    "llava-gz": (write_json("llava", ".json.gz"), read_json, {"llava": 2}),
    "llava-lines-gz": (write_json("llava", ".jsonl.gz", True), read_json, {"llava": 2}),
    "lines-in-json": (write_json("llava", ".json", True), read_json, {"llava": 2}),
    "llava-files": (write_files(".json"), read_files, {"llava": 2}),
    "llava-lines-files": (write_files(".jsonl"), read_files, {"llava": 2}),
    "data-uris": (write_data_uris, read_json, {"llava": 2}),
    "sharegpt": (write_json("sharegpt"), read_json, {"sharegpt": 2}),
    "typed-parts": (write_json("typed-parts", ".jsonl", True), read_json, {"sharegpt": 2}),
    "parts-link": (
        write_parts(lambda number: {"type": "image_url", "image_url": {"url": as_text(number), "detail": "low"}}),
        read_json,
        {"sharegpt": 2},
    ),
    "parts-uri": (
        write_parts(lambda number: {"type": "image", "image": as_text(number)}),
        read_json,
        {"sharegpt": 2},
    ),
    "parts-base64": (
        write_parts(lambda number: {"type": None, "image": as_text(number, "")}),
        read_json,
        {"sharegpt": 2},
    ),
    "parts-dict": (
        write_parts(lambda number: {"type": "image", "image": {"bytes": as_text(number, ""), "path": None}}),
        read_json,
        {"sharegpt": 2},
    ),
    "parquet-parts": (write_parquet_parts(png), read_parquet, {"sharegpt": 2}),
    "parquet-parts-dict": (
        write_parquet_parts(lambda number: {"bytes": png(number), "path": f"{number}.png"}),
        read_parquet,
        {"sharegpt": 2},
    ),
    "alpaca": (write_json("alpaca"), read_json, {"alpaca": 2}),
    "ms-swift": (write_json("ms-swift", ".jsonl", True), read_json, {"ms-swift": 2}),
    "qwen-vl": (write_json("qwen-vl"), read_json, {"qwen-vl": 2}),
    "minicpm-v": (write_json("minicpm-v"), read_json, {"minicpm-v": 2}),
    "paligemma": (write_json("paligemma", ".jsonl", True), read_json, {"paligemma": 2}),
    "base64": (write_base64, read_json, {"llava": 2}),
    "the-cauldron": (write_json("the-cauldron", ".jsonl", True), read_json, {"the-cauldron": 2}),
    "llama-factory": (write_llama_factory, read_llama_factory, {"llama-factory": 2}),
    "parquet": (write_parquet("one-vision"), read_parquet, {"llava": 2}),
    "parquet-columned": (write_parquet("one-vision", 1, True), read_parquet, {"llava": 2}),
    "parquet-folder": (write_parquet("one-vision", 2), read_parquet, {"llava": 2}),
    "parquet-cauldron": (write_parquet("the-cauldron"), read_parquet, {"the-cauldron": 2}),
    "huggingface": (write_save_to_disk, read_save_to_disk, {"llava": 2}),
    "webdataset": (write_tar(), read_tar, {"llava": 2}),
    "webdataset-gz": (write_tar(".tar.gz", "w:gz"), read_tar, {"llava": 2}),
    "webdataset-tgz": (write_tar(".tgz", "w:gz"), read_tar, {"llava": 2}),
    # Rows that were packed as they were: the picture's old name is in them.
    "webdataset-named": (write_tar(image="coco/train/0001.jpg"), read_tar, {"llava": 2}),
    "imagefolder": (write_image_folder("metadata.jsonl"), read_image_folder, {"question-answer": 2}),
    "imagefolder-csv": (write_image_folder("metadata.csv"), read_image_folder, {"question-answer": 2}),
}
