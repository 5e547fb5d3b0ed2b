"""Arrays are read and written one row at a time, and yet as if it were all at once."""

import gzip
import json

import pytest

from disp.data.dataset import Source
from disp.data.formats.files import Output
from disp.data.formats.json_files import rows, save_array
from disp.errors import DispError

ROWS = [{"id": 1, "text": "a\nb ü \u2028 \\n", "deep": [[], {}, [{"x": [1.5, None]}]]}, {}, {"é": "]"}, {"last": []}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("found", [[], ROWS, [1, "x", None, [ROWS]]])
def test_an_array_is_read_as_it_stands(found, indent, encoding, tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(("\n " + json.dumps(found, indent=indent, ensure_ascii=False) + " \r\n").encode(encoding))
    assert [(row.number, row.value) for row in rows(path, Source("json"))] == list(enumerate(found))


@pytest.mark.parametrize(
    "text", ["", "[", "[1", "[1,", "[1,]", "[1 2]", "[,1]", "[1]]", "[1] x", "[1, {]", "[1}", '["a', "{", "nul"]
)
def test_what_is_wrong_is_said_as_python_says_it(text, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(ValueError) as wrong:
        json.loads(text)
    with pytest.raises(DispError) as said:
        list(rows(path, Source("json")))
    assert f"is not valid JSON ({wrong.value});" in str(said.value)


@pytest.mark.parametrize("name", ["data.json", "data.json.gz"])
@pytest.mark.parametrize("found", [[], ROWS])
def test_an_array_is_written_as_if_at_once(found, name, tmp_path):
    save_array(tmp_path / name, (Output(row, "", "") for row in found))
    written = (tmp_path / name).read_bytes()
    expected = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    assert (gzip.decompress(written) if name.endswith(".gz") else written) == expected.encode()


@pytest.mark.parametrize("key", ["annotations", "questions"])
def test_lists_that_tell_of_pictures_by_number_are_to_be_joined(key, tmp_path):
    found = {"info": {}, "images": [{"id": 7, "file_name": "0.jpg"}], key: [{"image_id": 7, "question": "?", "id": 1}]}
    (tmp_path / "data.json").write_text(json.dumps(found))
    with pytest.raises(DispError, match=rf"\(image_id, in '{key}'\), as COCO and VQA do; join what belongs together"):
        list(rows(tmp_path / "data.json", Source("json")))


@pytest.mark.parametrize(("text", "found"), [("null", "null"), (" 5", "int"), ('"[1]"', "str"), ("true", "bool")])
def test_what_is_no_array_is_named(text, found, tmp_path):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(DispError, match=f"must hold a JSON array of rows, found {found}$"):
        list(rows(tmp_path / "data.json", Source("json")))
