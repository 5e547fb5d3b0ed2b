"""WebDataset's tar files: read to their end, no member left out without a word, and written back whole."""

import gzip
import io
import json
import tarfile

import pytest
from data.written import as_text, png

from disp.data.convert import convert
from disp.data.loading import load_dataset
from disp.data.saving import data_path, save_dataset
from disp.errors import DispError

ANSWER = "A cat."


def qa(answer=ANSWER, **more):
    return json.dumps({"question": "What is it?", "answer": answer, **more}).encode()


def pack(path, *members):
    """A tar file; a member's content is bytes, or the kind of a link and its target."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def rewritten(dataset, out, answer="new"):
    """The members of the set as it is written with new answers."""
    out.mkdir()
    path = data_path(dataset, out)
    samples = [sample.with_responses([answer] * len(sample.turns)) for sample in dataset.samples]
    save_dataset(samples, path, dataset.image_root, like=dataset)
    assert [sample.turns[0].response for sample in load_dataset(path, strict=True).samples] == [answer] * len(samples)
    return [
        (member.name, tar.extractfile(member).read())
        for file in sorted(path.glob("*.tar"))
        for tar in [tarfile.open(file)]
        for member in tar
    ]


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


DAMAGED = {
    "a byte of a header": lambda content, place: flipped(content, place + 150),
    "cut off at a header": lambda content, place: content[:place],
    "cut off within a header": lambda content, place: content[: place + 200],
    "cut off within the end": lambda content, place: content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512),
    "joined": lambda content, place: content + content,
}


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_tar_file_that_is_not_whole_is_refused(name, packed, tmp_path):
    file = pack(
        tmp_path / "s.tar", *((f"{n}.{kind}", c) for n in "012" for kind, c in (("png", png(1)), ("json", qa())))
    )
    content = file.read_bytes()
    assert len(load_dataset(file).samples) == 3
    content = DAMAGED[name](content, content.index(b"1.png"))
    file.unlink()
    file = tmp_path / ("s.tar.gz" if packed else "s.tar")
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DispError, match=r"is cut off or damaged at byte \d+|holds more behind the end of") as error:
        load_dataset(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


GOOD = [("good.png", png(2)), ("good.json", qa())]
ASIDE = {
    "points in the stem": (
        [(f"img.v{n}.{kind}", c) for n in (0, 1) for kind, c in (("png", png(n)), ("json", qa(str(n))))],
        "has the rows v0.json and v1.json; names of samples differ before the first point",
    ),
    "a row beside json": (
        [("0.png", png(1)), ("0.json", qa()), ("0.v1.json", qa("B"))],
        "has the rows json and v1.json",
    ),
    "two captions": ([("0.png", png(1)), ("0.txt", b"A"), ("0.long.txt", b"B")], "has the captions txt and long.txt"),
    "a member twice": ([("0.png", png(1)), ("0.json", qa("A")), ("0.json", qa("B"))], "two members called 0.json"),
    "upper case": ([("0.png", png(1)), ("0.PNG", png(2)), ("0.json", qa())], "has two members called 0.PNG"),
    "no suffix": ([("0", png(1)), ("0.json", qa())], "0 has no suffix; a picture is called jpg, png"),
    "a link that leads out": (
        [("0.png", (tarfile.SYMTYPE, "../../1.png")), ("0.json", qa())],
        "0.png is a link to ../../1.png, which is not in the tar file; pack it again with tar --dereference",
    ),
    "a link to itself": ([("0.png", (tarfile.SYMTYPE, "0.png")), ("0.json", qa())], "0.png is a link to 0.png"),
    "a device": ([("0.png", (tarfile.CHRTYPE, "")), ("0.json", qa())], "0.png is no file"),
    "Latin letters": ([("0.png", png(1)), ("0.txt", "café".encode("latin-1"))], "txt is not in UTF-8"),
    "no JSON": ([("0.png", png(1)), ("0.json", b"{bad")], "json is not valid JSON"),
    "another caption": (
        [("0.png", png(1)), ("0.json", json.dumps({"caption": "A"}).encode()), ("0.txt", b"B")],
        "txt says something else than the answer in json; keep one of them",
    ),
    "a picture that the JSON does not name": (
        [("0.jpg", png(1)), ("0.png", png(2)), ("0.json", qa(image="0.jpg"))],
        "has the picture 0.png, which 'image' in its JSON does not name",
    ),
    "another than the JSON names": (
        [("0.a.png", png(1)), ("0.b.png", png(2)), ("0.c.png", png(3)), ("0.json", qa(images=["x/1.png", "x/2.png"]))],
        "has the picture 0.a.png, which 'images' in its JSON does not name",
    ),
    "a picture beside one in the JSON": (
        [("0.png", png(1)), ("0.json", qa(image=as_text(2)))],
        "has the picture 0.png, which 'image' in its JSON does not name",
    ),
    "a readme that is a picture": ([("README", png(1))], "README has no suffix"),
    "a caption of the readme's name": ([("README.txt", b"A cat.")], "no conversations"),
    "a key twice": (
        [("0.png", png(1)), ("0.json", b'{"caption": "POISON", "caption": "clean"}')],
        "json has the key 'caption' twice, of which only one would be read",
    ),
    "a key twice below": (
        [("0.png", png(1)), ("0.json", qa()[:-1] + b', "a": {"b": 1, "b": 2}}')],
        "the key 'b' twice",
    ),
    "a key twice in a row beside json": (
        [("0.png", png(1)), ("0.json", qa()), ("0.v1.json", b'{"caption": "A", "caption": null}')],
        "has the rows json and v1.json",
    ),
    "two pictures of one name": (
        [("0.jpeg", png(1)), ("0.jpg", png(2)), ("0.txt", b"A")],
        "has the pictures 0.jpeg and 0.jpg, of which readers take one; name them in its JSON, or call the others",
    ),
    "two pictures that the JSON calls otherwise": (
        [("0.jpg", png(1)), ("0.png", png(2)), ("0.json", qa(question="<image><image>", images=["a.jpg", "b.jpg"]))],
        "has the picture 0.jpg, which 'images' in its JSON does not name",
    ),
    "a picture of an unknown suffix": (
        [("0.png", png(1)), ("0.image", png(2)), ("0.json", qa())],
        "image may be a picture",
    ),
    "a picture that is not opened": (
        [("0.png", png(1)), ("0.jxl", b"\xff\x0a"), ("0.json", qa())],
        "jxl may be a picture",
    ),
    "a film beside a picture": ([("0.png", png(1)), ("0.mp4", b"\0"), ("0.txt", b"A")], "mp4 may be a picture"),
    "packed JSON": ([("0.png", png(1)), ("0.json.gz", b"\x1f"), ("0.json", qa())], "json.gz may be a picture or a row"),
    "a packed caption": (
        [("0.png", png(1)), ("0.txt.gz", b"\x1f"), ("0.txt", b"A")],
        "txt.gz may be a picture or a row",
    ),
    "lines": ([("0.png", png(1)), ("0.jsonl", qa("B")), ("0.json", qa())], "jsonl may be a picture or a row"),
    "a row of an unknown suffix": (
        [("0.png", png(1)), ("0.data", qa("B")), ("0.json", qa())],
        "data may be a picture or a",
    ),
    "a caption beside a talk": ([("0.png", png(1)), ("0.json", qa("A")), ("0.txt", b"B")], "txt says something else"),
}


@pytest.mark.parametrize("name", ASIDE)
def test_a_sample_of_which_something_would_be_left_out_is_set_aside(name, tmp_path):
    members, said = ASIDE[name]
    dataset = load_dataset(pack(tmp_path / "s.tar", *GOOD, *members))
    (problem,) = dataset.problems
    assert [sample.id for sample in dataset.samples] == ["good"]
    assert said in problem.reason and "\n" not in problem.reason


APART = {
    "in folders": [("s0/conv.json", qa()), ("s0/image.png", png(1))],
    "pictures first": [("0.png", png(1)), ("1.png", png(2)), ("0.json", qa()), ("1.json", qa())],
    "without a suffix": [("0", png(1)), ("1", png(2)), ("0.json", qa()), ("1.json", qa())],
    "of a kind that is not opened": [("0.jxl", png(1)), ("1.jxl", png(2)), ("0.json", qa()), ("1.json", qa())],
}


@pytest.mark.parametrize("name", APART)
def test_rows_whose_pictures_lie_apart_are_no_rows_of_text(name, tmp_path):
    dataset = load_dataset(pack(tmp_path / "s.tar", *GOOD, *APART[name]))
    assert [sample.id for sample in dataset.samples] == ["good"]
    assert len(dataset.problems) == len(APART[name])
    assert any(
        "is one without text; the members of a sample are neighbours" in each.reason for each in dataset.problems
    )


def test_pictures_and_texts_in_files_of_their_own_are_no_rows_of_text(tmp_path):
    pack(tmp_path / "images.tar", ("0.png", png(1)))
    pack(tmp_path / "good.tar", *GOOD)
    pack(tmp_path / "texts.tar", ("0.json", qa()))
    assert [sample.id for sample in load_dataset(tmp_path).samples] == ["good"]


def test_rows_of_text_beside_rows_with_pictures_are_read(tmp_path):
    dataset = load_dataset(pack(tmp_path / "s.tar", ("0.json", qa()), *GOOD), strict=True)
    assert dataset.without_picture == 1


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE], ids=["hard", "symbolic"])
def test_links_in_a_tar_file_are_followed(kind, tmp_path):
    target = "x/0.png" if kind == tarfile.LNKTYPE else "0.png"
    members = [("x/0.png", png(1)), ("x/0.json", qa()), ("x/1.png", (kind, target)), ("x/1.json", qa())]
    dataset = load_dataset(pack(tmp_path / "s.tar", *members), strict=True)
    assert [[file.read_bytes() for file in sample.images] for sample in dataset.samples] == [[png(1)]] * 2
    assert [content for name, content in rewritten(dataset, tmp_path / "out") if name.endswith("png")] == [png(1)] * 2
    with (tmp_path / "s.tar").open("rb") as file, gzip.open(tmp_path / "p.tar.gz", "wb") as packed:
        packed.write(file.read())
    dataset = load_dataset(tmp_path / "p.tar.gz")
    assert [problem.reason for problem in dataset.problems] == ["x/1.png is a link; unpack the tar file with gunzip"]


HIDDEN = {
    "of a Mac": ["._{}.png", "{}.png", "._{}.json", "{}.json"],
    "between members": ["{}.png", ".DS_Store", "x/.hidden.json", "{}.json"],
    "about the set": ["README.md", "LICENSE", "x/LICENSE", "{}.png", "{}.json"],
}


@pytest.mark.parametrize("case", HIDDEN)
def test_hidden_files_and_readmes_part_no_sample(case, tmp_path):
    members = [
        (name.format(number), png(number) if name == "{}.png" else qa() if name == "{}.json" else b"{bad")
        for number in range(2)
        for name in HIDDEN[case]
    ]
    dataset = load_dataset(pack(tmp_path / "s.tar", *members), strict=True)
    assert [sample.images[0].read_bytes() for sample in dataset.samples] == [png(0), png(1)]
    # Readers pass these files over, and they are not written again.
    assert [name for name, _ in rewritten(dataset, tmp_path / "out")] == ["0.png", "0.json", "1.png", "1.json"]


def test_hidden_pictures_are_no_pictures_apart(tmp_path):
    members = [("._0.png", b"x"), ("0.json", qa()), (".x.png", png(1)), ("1.json", qa())]
    assert load_dataset(pack(tmp_path / "s.tar", *members), strict=True).without_picture == 2


def test_pictures_that_the_json_names_are_all_that_there_are(tmp_path):
    images = ["1.png", "0.jpg", "0.0.png"]
    members = [(f"0.{n}", png(i)) for i, n in enumerate(["0.png", "jpg", "mask.png"])] + [("0.json", qa(image="0.jpg"))]
    with pytest.raises(DispError, match=r"has the picture 0\.0\.png"):
        load_dataset(pack(tmp_path / "s.tar", *members))
    members[-1] = ("0.json", qa(images=images[1:]))
    dataset = load_dataset(pack(tmp_path / "s.tar", *members), strict=True)
    assert [file.read_bytes() for file in dataset.samples[0].images] == [png(1), png(0)]


def test_a_mask_is_no_second_picture_and_other_json_no_row(tmp_path):
    meta = b'{"license": "x"}'
    members = [("0.mask.png", png(2)), ("0.meta.json", meta), ("0.png", png(1)), ("0.1.png", png(3)), ("0.json", qa())]
    dataset = load_dataset(pack(tmp_path / "s.tar", *members), strict=True)
    assert [file.read_bytes() for file in dataset.samples[0].images] == [png(3), png(1)]
    assert rewritten(dataset, tmp_path / "out") == [*members[:4], ("0.json", qa("new"))]


def test_what_is_worked_out_of_a_picture_lies_beside_it(tmp_path):
    numbers = b"\x93NUMPY" + bytes(100)
    more = [("0.npy", numbers), ("0.depth.npz", b"PK"), ("0.cls", b"7"), ("0.mask.jxl", b"\xff\x0a"), ("0.md5", b"0f")]
    members = [("0.png", png(1)), *more, ("0.json", qa())]
    dataset = load_dataset(pack(tmp_path / "s.tar", *members), strict=True)
    assert rewritten(dataset, tmp_path / "out") == [*members[:-1], ("0.json", qa("new"))]


def test_two_pictures_that_the_json_names_are_both_shown(tmp_path):
    members = [
        ("0.jpeg", png(1)),
        ("0.jpg", png(2)),
        ("0.json", qa(question="<image><image>", images=["0.jpg", "0.jpeg"])),
    ]
    dataset = load_dataset(pack(tmp_path / "s.tar", *members), strict=True)
    assert [file.read_bytes() for file in dataset.samples[0].images] == [png(2), png(1)]


def test_samples_with_the_same_key_are_told_apart_when_they_are_written(tmp_path):
    members = [("0.png", png(1)), ("0.json", b"{bad"), ("1.png", png(1)), ("1.json", qa())]
    members += [("0.png", png(2)), ("0.json", qa("<image><image>")), ("2.json", qa())]
    members += [("0.png", png(3)), ("0.json", qa())]
    dataset = load_dataset(pack(tmp_path / "s.tar", *members))
    assert [sample.id for sample in dataset.samples] == ["1", "2", "0"] and len(dataset.problems) == 2
    found = dict(rewritten(dataset, tmp_path / "out"))
    assert found["0.png"] == png(3) and list(found) == ["1.png", "1.json", "2.json", "0.png", "0.json"]


@pytest.mark.parametrize("fields", [{"caption": ANSWER, "width": 96}, {"caption": None}, {"url": "x"}, {}])
@pytest.mark.parametrize("answer", ["new", ""])
def test_the_captions_of_img2dataset_change_together(fields, answer, tmp_path):
    members = [("0.png", png(1)), ("0.txt", ANSWER.encode()), ("0.json", json.dumps(fields).encode())]
    dataset = load_dataset(pack(tmp_path / "s.tar", *members), strict=True)
    assert dataset.formats == {"captions": 1} and dataset.samples[0].turns[0].response == ANSWER
    found = dict(rewritten(dataset, tmp_path / "out", answer))
    assert found["0.txt"] == answer.encode()
    assert json.loads(found["0.json"]) == {**fields, **({"caption": answer} if fields.get("caption") else {})}


def test_a_caption_that_repeats_an_answer_of_a_talk_changes_with_it(tmp_path):
    members = [("0.png", png(1)), ("0.json", qa()), ("0.txt", f"{ANSWER}\n".encode())]
    dataset = load_dataset(pack(tmp_path / "s.tar", *members), strict=True)
    assert dict(rewritten(dataset, tmp_path / "out")) == {"0.png": png(1), "0.json": qa("new"), "0.txt": b"new"}


@pytest.mark.parametrize("name", ["a.b", "a.jpe", "a.jp2", "a", "a.PNG"])
def test_a_new_member_is_called_by_what_readers_know(name, tmp_path):
    (tmp_path / name).write_bytes(png(1))
    row = {"image": name, "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": ANSWER}]}
    (tmp_path / "data.json").write_text(json.dumps([row]))
    made = convert(load_dataset(tmp_path), "webdataset", tmp_path / "out")
    again = load_dataset(made.path, strict=True)
    assert [file.read_bytes() for file in again.samples[0].images] == [png(1)]
