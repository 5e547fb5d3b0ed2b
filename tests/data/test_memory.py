"""What a row takes in memory, once it is read; the limits are a tenth above what was measured."""

import json
import tracemalloc

from PIL import Image

from disp.data.index import Index
from disp.data.loading import load_dataset
from disp.data.sample import picture_digest

ROWS = 400
ANSWER = "There is a brown dog in front of a red wall, and number {} is written on the door behind it."


def write(folder):
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (1, 1)).save(folder / "images" / "0.png")
    data = []
    for number in range(ROWS):
        name = f"{number:06}.png"
        (folder / "images" / name).write_bytes((folder / "images" / "0.png").read_bytes())
        talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": ANSWER.format(number)}]
        data.append({"id": f"row-{number}", "image": name, "conversations": talk})
    (folder / "data.json").write_text(json.dumps(data))
    return folder


def held(make):
    """Bytes a row that are held by what was made, and that were held at most."""
    tracemalloc.start()
    try:
        made = make()
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made
    return now / ROWS, most / ROWS


def test_rows_are_read_into_little_memory(tmp_path):
    folder = write(tmp_path / "set")
    samples = load_dataset(folder).samples  # once, so that what is read once in all is there
    now, most = held(lambda: load_dataset(folder))
    assert now < 1500 and most < 2200
    # Work on them leaves nothing behind but digests. Of two sets, for the table of all digests of this process grows by
    # leaps, and one may fall into the first.
    index, another = Index(samples), Index(load_dataset(write(tmp_path / "another")).samples)
    picture_digest(samples[0].images[0])
    assert held(lambda: [len(sample.queries) for sample in samples])[0] < 50
    assert min(held(lambda each=each: len(each.pictures))[0] for each in (index, another)) < 550
