"""Inputs that people have and that went wrong: each is read as it is meant, or set aside with a reason and a remedy.

Each case is built here; where the folder of full cases is at hand (DISP_CASES_DIR, ../shared/cases), it is read too.
"""

import base64
import json
import os
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from data.written import chat, from_value, png

from disp import cli
from disp.data.convert import convert
from disp.data.damaged import without_damaged_pictures
from disp.data.loading import load_dataset
from disp.data.saving import data_path, link_images, save_dataset
from disp.errors import DispError

CASES = Path(os.environ.get("DISP_CASES_DIR", Path(__file__).resolve().parents[3] / "shared" / "cases"))


def ask(image="<image>\n", answer="Yes."):
    return from_value(f"{image}Is there a lock?", answer)


def talk(image="<image>", answer="Yes."):
    return chat(f"{image}Is there a lock?", answer)


def write(folder, rows, name="data.json", images="images"):
    (folder / images).mkdir(parents=True, exist_ok=True)
    for number in range(4):
        (folder / images / f"{number}.png").write_bytes(png(number))
    text = json.dumps(rows) if name == "data.json" else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(text)
    return folder


def again(dataset, out):
    """What `disp purify` leaves: the rows as they are written, and the set as it is read again."""
    out.mkdir()
    path = data_path(dataset, out)
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    link_images(dataset, out)
    text = path.read_text()
    return json.loads(text) if text[0] == "[" else [json.loads(line) for line in text.splitlines()], path


READ = {
    "conversations with role and content": [{"id": "0", "image": "0.png", "conversations": talk()}],
    "messages with from and value": [{"id": "0", "image": "0.png", "messages": ask()}],
    "query and response": [{"query": "<image>Is there a lock?", "response": "Yes.", "images": ["0.png"]}],
    "an img tag": [{"id": "x", "conversations": ask("Picture 1: <img>0.png</img>\n")}],
    "an img tag with blanks": [{"id": "x", "conversations": ask("Picture 1: <img> 0.png </img>\n")}],
    "dicts with a path": [{"messages": talk(), "images": [{"bytes": None, "path": "0.png"}]}],
    "names from the dataset's root": [{"messages": talk(), "images": ["images/0.png"]}],
    "names from Windows": [{"id": "x", "image": "images\\0.png", "conversations": ask()}],
    "parts of a table, with null for what they lack": [
        {
            "messages": chat(
                [
                    {"type": "image", "image": "0.png", "text": None},
                    {"type": "text", "image": {"bytes": None, "path": None}, "text": None},
                    {"type": None, "image": None, "text": "Is there a lock?"},
                ],
                [{"type": "text", "image": None, "text": "Yes."}],
            )
        }
    ],
    "a part that says where its picture comes from": [
        {"messages": chat([{"type": "image", "image": "0.png", "url": "https://x.org/7.png"}, "Is it?"], "Yes.")}
    ],
    "a part of nothing for a picture of the row": [
        {
            "messages": chat([{"type": "image", "image": {"bytes": None, "path": None}}, "Is there a lock?"], "Yes."),
            "images": ["0.png"],
        }
    ],
    "a table's null in images": [{"id": 1.5e1, "image": "0.png", "images": None, "conversations": ask()}],
}


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_it_is_read_and_written_back_as_it_was(case, name, tmp_path):
    dataset = load_dataset(write(tmp_path / "in", READ[case], name), strict=True)
    (sample,) = dataset.samples
    assert [file.read_bytes() for file in sample.images] == [png(0)]
    assert [turn.response for turn in sample.turns] == ["Yes."]
    assert sample.turns[0].prompt.count("<image>") == 1
    rows, path = again(dataset, tmp_path / "out")
    assert rows == READ[case]
    assert load_dataset(path).samples[0].images[0].read_bytes() == png(0)


def test_ids_of_a_table_are_whole_numbers_and_no_picture_is_none(tmp_path):
    rows = [
        {"id": 0.0, "image": "0.png", "conversations": ask()},
        {"id": 1.0, "image": float("nan"), "conversations": ask("")},
        {"id": 2.0, "image": float("nan"), "images": float("nan"), "conversations": ask("")},
        {"id": 3.0, "image": {"bytes": None, "path": None}, "conversations": ask("")},
    ]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert [sample.id for sample in dataset.samples] == ["0", "1", "2", "3"]
    assert dataset.without_picture == 3
    written, _ = again(dataset, tmp_path / "out")
    assert [row["id"] for row in written] == [0.0, 1.0, 2.0, 3.0]
    assert [row.get("image") for row in written] == ["0.png", None, None, {"bytes": None, "path": None}]


def test_ids_of_a_database_are_ids(tmp_path):
    rows = [{"id": {"$oid": "5f2a"}, "image": "0.png", "conversations": ask()}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert [sample.id for sample in dataset.samples] == ["5f2a"] and again(dataset, tmp_path / "out")[0] == rows
    rows = [{"id": ["5f2a"], "image": "0.png", "conversations": ask()}]
    with pytest.raises(DispError, match="id must be text or a number; --leave-out id numbers the rows"):
        load_dataset(write(tmp_path / "in", rows))
    assert [sample.id for sample in load_dataset(tmp_path / "in", leave_out=["id"]).samples] == ["0"]


@pytest.mark.parametrize("empty", [None, "", {}, {"bytes": None, "path": None}], ids=str)
def test_a_list_of_pictures_may_be_filled_up_at_its_end_and_nowhere_else(empty, tmp_path):
    held = {"bytes": base64.b64encode(png(1)).decode(), "path": None}
    rows = [{"messages": talk(), "images": [held, empty, empty]}, {"messages": talk(), "images": ["0.png", empty]}]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert [[file.read_bytes() for file in sample.images] for sample in dataset.samples] == [[png(1)], [png(0)]]
    assert again(dataset, tmp_path / "out")[0] == rows
    with pytest.raises(DispError, match="image"):
        load_dataset(
            write(tmp_path / "in", [{"messages": talk("<image><image>"), "images": ["0.png", empty, "1.png"]}])
        )


ASIDE = {
    "'video'": {"video": "v.mp4", "conversations": ask("<video>\n")},
    "<video>": {"image": "0.png", "conversations": ask("<image><video>\n")},
    "'image_file' looks like one (0.png)": {"image_file": "0.png", "conversations": ask("")},
    "'image_path' looks like one": {"meta": {"image_path": "x"}, "conversations": ask("")},
    "'photo' looks like one": {"photo": ["a", "b"], "conversations": ask("")},
    "'file' looks like one (sub/pic.JPEG)": {"file": "sub/pic.JPEG", "conversations": ask("")},
    "'images' looks like one (a.png)": {"messages": [{**talk("")[0], "images": ["a.png"]}, talk()[1]]},
    "'url' looks like one": {"url": "https://x.org/a.jpg?w=3", "conversations": ask("")},
    "by '<img src=\"0.png\">'": {"conversations": ask('<img src="0.png">')},
    "by '<|image_1|>'": {"conversations": ask("<|image_1|>\n")},
    "by '![a cat](cat.png)'": {"conversations": ask("![a cat](cat.png) ")},
    "by '<image_00>'": {"conversations": ask("<image_00>\n")},
    "both as <img> and in another way": {"conversations": ask("<img>0.png</img><image>\n")},
    "1 <image> placeholders for 0 images": {"conversations": ask("<image>\n")},
    "message 2 is an answer with a picture": {"image": "0.png", "conversations": ask(answer="Here: <image>")},
    "message 2 is an answer with": {"conversations": ask("", "<img>0.png</img>")},
    "a system message in messages and another one in system": {
        "image": "0.png",
        "system": "Be long.",
        "messages": [{"role": "system", "content": "Be brief."}, *talk()],
    },
    "system must be text": {"image": "0.png", "system": ["Be brief."], "conversations": ask()},
    "the system message holds a picture": {
        "image": "0.png",
        "messages": [{"role": "system", "content": "<image>"}, *talk()],
    },
    "a part of a message is of type 'text'": {
        "messages": chat([{"type": "text", "text": None, "content": "B"}], "Yes.")
    },
    "a part of a message is of type 'output'": {"messages": chat([{"type": "output", "text": "B"}], "Yes.")},
    "holds both a picture and a text": {"messages": chat([{"image": "0.png", "text": "B"}], "Yes.")},
    "under 'image' and one under 'path'": {
        "messages": chat([{"type": "image", "image": "0.png", "path": "1.png"}], "A")
    },
    "under 'image' and one under 'url'": {
        "messages": chat([{"type": "image", "image": "0.png", "url": "file:///1.png"}], "Yes.")
    },
    "under 'image_url' and one under 'data'": {
        "messages": chat([{"image_url": {"url": "0.png"}, "data": {"path": "http://1.png"}}], "Yes.")
    },
    "holds int under 'image'": {"messages": chat([{"type": "image", "image": 3}], "Yes.")},
    "a part of a message is of type 'video'": {"messages": chat([{"type": "video", "video": "a.mp4"}], "Yes.")},
    "lies on the network; download": {"image": "https://example.org/0.png", "conversations": ask()},
    "is not valid base64": {"image": "data:image/png;base64,!!!!", "conversations": ask()},
    "is no data URI in base64": {"image": "data:image/png,abc", "conversations": ask()},
    "leaves the image folder": {"image": "..\\secret.png", "conversations": ask()},
    "on another machine": {"image": "file://server/0.png", "conversations": ask()},
    "it needs 'path' or 'bytes'": {"image": {"url": "x"}, "conversations": ask()},
    "`disp generate --data` answers it": {"question_id": 1, "image": "0.png", "text": "Is there a lock?"},
    "found id, said; wanted are the keys": {"id": 1, "said": "x"},
}


@pytest.mark.parametrize("reason", ASIDE)
def test_what_is_not_understood_is_set_aside_and_never_a_row_of_text(reason, tmp_path):
    good = {"id": "good", "image": "1.png", "conversations": ask()}
    dataset = load_dataset(write(tmp_path, [good, ASIDE[reason]]))
    assert [sample.id for sample in dataset.samples] == ["good"]
    (problem,) = dataset.problems
    assert reason in problem.reason and problem.place == "data.json:row 2" and "\n" not in problem.reason
    with pytest.raises(DispError, match="holds no usable row"):
        load_dataset(write(tmp_path / "alone", [ASIDE[reason]]))


def test_a_field_that_json_cannot_hold_is_named(tmp_path):
    rows = [
        {"image": "0.png", "conversations": ask(), "score": float("inf"), "source": float("nan")},
        {"image": "0.png", "conversations": ask()},
    ]
    (problem,) = load_dataset(write(tmp_path, rows)).problems
    assert problem.reason.startswith("cannot be written back: 'score': ")


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_nan_is_null_in_any_field_and_this_is_said(name, tmp_path, monkeypatch, capsys):
    nan = float("nan")
    rows = [{"image": "0.png", "conversations": ask(), "source": nan, "meta": {"a": [nan, 0.5]}, "system": nan}]
    rows += [{"image": "1.png", "conversations": ask()}, {"image": "1.png", "conversations": nan}]
    dataset = load_dataset(write(tmp_path / "in", rows, name))
    assert dataset.nulled == 1 and len(dataset.samples) == 2 and "no conversations" in dataset.problems[0].reason
    assert dataset.samples[0].metadata == {"source": None, "meta": {"a": [None, 0.5]}}
    written, _ = again(dataset, tmp_path / "out")
    assert written[0] == {**rows[0], "source": None, "meta": {"a": [None, 0.5]}, "system": None}
    monkeypatch.setattr(sys, "argv", ["disp", "convert", str(tmp_path / "in"), "--to", "llava", "--out"])
    sys.argv.append(str(tmp_path / "made"))
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    assert "1 row with NaN, which JSON does not have: read as null" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [[{"messages": talk()}], [{"conversations": ask()}], [{"messages": ask()}]], ids=str)
@pytest.mark.parametrize("said", ["Be brief.", "", None, "twice"])
def test_a_system_message_beside_the_messages_is_read(said, rows, tmp_path):
    who = {"role": "system", "content": "Be."} if "role" in str(rows) else {"from": "system", "value": "Be."}
    rows = [{"image": "0.png", **row, "system": "Be." if said == "twice" else said} for row in rows]
    if said == "twice":
        rows = [{key: [who, *each] if isinstance(each, list) else each for key, each in row.items()} for row in rows]
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert dataset.samples[0].system == ({"twice": "Be."}.get(said, said) or None) and dataset.samples[0].metadata == {}
    assert again(dataset, tmp_path / "out")[0] == rows
    other = convert(dataset, "llava" if "messages" in rows[0] else "sharegpt", tmp_path / "made")
    assert load_dataset(other.path).samples[0].system == dataset.samples[0].system
    text = other.path.read_text()
    assert text.count("Be") == (dataset.samples[0].system is not None)
    # Where it is changed or taken away, none of it is left.
    for index, new in enumerate(("New.", None)):
        changed = replace(dataset, samples=(replace(dataset.samples[0], system=new),))
        (row,), path = again(changed, tmp_path / f"changed{index}")
        assert load_dataset(path).samples[0].system == new and "Be" not in json.dumps(row)


TEXT = [
    {"conversations": from_value("Write HTML for a heading.", "<h1>x</h1>")},
    {"conversations": from_value("What is in photo.jpg?", "I cannot see it."), "source": "sharegpt", "n": 3},
    {"conversations": from_value("Name a picture file.", "cat.png"), "has_image": False, "images": []},
    {"query": "Hi", "response": "Ho", "history": [], "images": None, "framework": "x"},
]


def test_rows_of_text_are_rows_of_text(tmp_path):
    dataset = load_dataset(write(tmp_path, TEXT), strict=True)
    assert dataset.without_picture == len(TEXT)


def test_rows_with_pictures_may_have_other_fields_about_pictures(tmp_path):
    row = {"image": "0.png", "coco_url": "http://x.org/1.jpg", "image_id": 7, "conversations": ask()}
    assert len(load_dataset(write(tmp_path, [row]), strict=True).samples) == 1


def test_rows_of_several_formats_in_one_file_are_all_looked_at(tmp_path):
    rows = [
        {"id": "a", "image": "0.png", "conversations": ask()},
        {"id": "b", "conversations": ask("Picture 1: <img>1.png</img>\n")},
    ]
    dataset = load_dataset(write(tmp_path, rows))
    assert dataset.formats == {"llava": 1, "qwen-vl": 1} and dataset.without_picture == 0
    # A person who says what the format is gets that one alone.
    forced = load_dataset(tmp_path, format="llava")
    assert [sample.id for sample in forced.samples] == ["a"] and "'<img>1.png</img>'" in forced.problems[0].reason
    with pytest.raises(DispError, match=r"unknown format 'lava'.*Did you mean 'llava'"):
        load_dataset(tmp_path, format="lava")
    with pytest.raises(DispError, match="is no dataset of the format 'parquet'"):
        load_dataset(tmp_path, format="parquet")


def test_questions_without_answers_are_read_where_they_are_asked_for(tmp_path):
    rows = [
        {"question_id": 7, "image": "0.png", "text": "Is there a lock?", "category": "default"},
        {"id": "x", "image": "1.png", "conversations": ask()[:1]},
    ]
    dataset = load_dataset(write(tmp_path, rows), questions=True, strict=True)
    assert [(sample.id, sample.turns[0].response) for sample in dataset.samples] == [("7", ""), ("x", "")]
    assert all(sample.images for sample in dataset.samples)


def test_disp_generate_answers_a_question_file(tmp_path, monkeypatch):
    rows = [{"question_id": 7, "image": "0.png", "text": "Is there a lock?", "category": "default"}]
    given = ["generate", "builtin", "--data", write(tmp_path, rows, "data.jsonl"), "--out", tmp_path / "a.jsonl"]
    monkeypatch.setattr(sys, "argv", ["disp", *map(str, given), "--steps", "2"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert not exit.value.code
    (answer,) = (json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines())
    assert (answer["id"], answer["prompt"]) == ("7", "Is there a lock?") and isinstance(answer["answer"], str)


@pytest.mark.parametrize("in_rows", ["NFC", "NFD"])
def test_a_name_in_another_unicode_form_is_found(tmp_path, in_rows):
    on_disk = "NFD" if in_rows == "NFC" else "NFC"
    folder = tmp_path / "in" / "images" / unicodedata.normalize(on_disk, "é")
    folder.mkdir(parents=True)
    (folder / unicodedata.normalize(on_disk, "café.png")).write_bytes(png(1))
    row = {"id": "0", "image": unicodedata.normalize(in_rows, "é/café.png"), "conversations": ask()}
    (tmp_path / "in" / "data.json").write_text(json.dumps([row]))
    dataset = load_dataset(tmp_path / "in")
    assert dataset.samples[0].images[0].read_bytes() == png(1)
    rows, path = again(dataset, tmp_path / "out")
    assert rows == [row] and load_dataset(path).samples


def test_absolute_names_stay_so_and_nothing_links_to_the_root(tmp_path):
    folder = write(tmp_path / "in", [])
    row = {"id": "0", "image": f"{folder}/images/0.png", "conversations": ask()}
    write(tmp_path / "set", [row], images="other")
    with pytest.raises(DispError, match=r"leaves the image folder .* give --images"):
        load_dataset(tmp_path / "set")
    dataset = load_dataset(tmp_path / "set", Path("/"))
    rows, _ = again(dataset, tmp_path / "out")
    assert rows == [row] and not (tmp_path / "out" / "images").exists()
    uri = {**row, "image": (folder / "images" / "0.png").as_uri()}
    assert again(load_dataset(write(tmp_path / "uri", [uri]), folder), tmp_path / "out-uri")[0] == [uri]


def test_a_huge_value_is_shown_nowhere(tmp_path, monkeypatch, capsys):
    blob = "A" * 200_000
    rows = [
        {"id": 0, "image": "0.png", "conversations": ask()},
        {"id": 1, "image": f"data:image/png;base64,{blob}!", "conversations": ask()},
        {"id": 2, "image": blob, "conversations": ask()},
        {"id": 3, "image_data": blob, "conversations": ask("")},
        {"id": 4, "conversations": [{"from": blob, "value": "x"}]},
        {"id": 5, blob: 1},
        {"id": blob, "image": "broken.png", "conversations": ask()},
        {"id": 6, "messages": [{"role": "user", "content": [{"type": blob}]}, talk()[1]]},
        {"id": 7, "image": "0.png", "conversations": ask(answer=f"<image>{blob}")},
    ]
    (write(tmp_path, rows) / "images" / "broken.png").write_bytes(b"x")
    dataset = without_damaged_pictures(load_dataset(tmp_path))
    assert len(dataset.problems) == 8
    assert all(len(problem.reason) + len(problem.place) < 800 for problem in dataset.problems)
    monkeypatch.setattr(sys, "argv", ["disp", "check", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr()
    assert len(shown.out + shown.err) < 6000


def test_a_picture_that_a_row_holds_is_read_and_goes_back_as_it_was(tmp_path):
    uri = "data:image/png;base64," + base64.b64encode(png(1)).decode()
    rows = [{"id": "0", "image": "0.png", "conversations": ask()}, {"id": "1", "image": uri, "conversations": ask()}]
    rows.append({"id": "2", "images": [{"bytes": base64.b64encode(png(2)).decode()}], "messages": talk()})
    dataset = load_dataset(write(tmp_path / "in", rows), strict=True)
    assert [sample.images[0].read_bytes() for sample in dataset.samples] == [png(0), png(1), png(2)]
    rows[2]["images"][0]["path"] = None
    assert again(dataset, tmp_path / "out")[0] == rows


def full_case(name):
    if not CASES.is_dir():
        pytest.skip("the folder of full cases is not at hand: set DISP_CASES_DIR")
    return CASES / name


# Case: rows that are read, rows without a picture among them, rows set aside; a message where none is read.
FULL = {
    "base64-among-good-rows": (6, 0, 0),
    "conversations-role-content": (6, 0, 0),
    "hf-image-dicts": (6, 0, 0),
    "image-token-in-answer": "is an answer with a picture in it",
    "imagefolder-metadata": (6, 0, 0),
    "images-prefix-beside-images-folder": (6, 0, 0),
    "json-lines-in-json": (6, 0, 0),
    "nfd-file-name": (3, 0, 0),
    "pandas-nan": (6, 3, 0),
    "picture-under-another-key": "has no picture, but 'image_file' looks like one",
    "query-response": (6, 0, 0),
    "questions-without-answers": "disp generate --data",
    "qwen-vl-img-tags": (6, 0, 0),
    "typed-content-parts": (6, 0, 0),
    "url-images": "download the pictures first",
    "video-rows": (3, 0, 3),
}


@pytest.mark.parametrize("case", FULL)
def test_the_full_case(case, tmp_path):
    folder, expected = full_case(case), FULL[case]
    if isinstance(expected, str):
        with pytest.raises(DispError, match=expected) as error:
            load_dataset(folder)
        assert len(str(error.value)) < 800
        return
    dataset = without_damaged_pictures(load_dataset(folder))
    assert (len(dataset.samples), dataset.without_picture, len(dataset.problems)) == expected
    out = tmp_path / "out"
    path = data_path(dataset, out)
    out.mkdir()
    save_dataset(dataset.samples, path, dataset.image_root, like=dataset)
    link_images(dataset, out)
    assert [sample.turns for sample in load_dataset(path).samples] == [sample.turns for sample in dataset.samples]


def test_the_full_case_of_absolute_names(tmp_path):
    folder = full_case("purify-absolute-names")
    text = (folder / "sets" / "train.json").read_text().replace("/DATA/", f"{CASES}/")
    (tmp_path / "train.json").write_text(text)
    dataset = load_dataset(tmp_path / "train.json", Path("/"))
    rows, _ = again(dataset, tmp_path / "out")
    assert rows == json.loads(text) and not (tmp_path / "out" / "images").exists()
