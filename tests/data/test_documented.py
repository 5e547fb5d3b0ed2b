"""docs/data.md lists the formats that the table has."""

from pathlib import Path

from data.written import WRITTEN

from disp.data.formats.dialects import DIALECTS
from disp.data.formats.table import FILES, FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_page_has_every_format():
    expected = [f"| `{name}` | {each.title} | {'yes' if each.writes else 'no'} |" for name, each in FORMATS.items()]
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index("| name | what it is | `disp convert --to` |") + 2
    assert lines[start : start + len(expected)] == expected and not lines[start + len(expected)]


def test_every_format_is_made_of_what_there_is_and_has_a_set_in_the_tests():
    for each in FORMATS.values():
        dialects = {each.dialect} | ({each.writes[0]} if each.writes else set())
        files = {each.files} | ({each.writes[1]} if each.writes else set())
        assert dialects <= {None, *DIALECTS} and files <= {None, *FILES}
    # Question files and captions are read by tests of their own, and the image folders hold questions and answers.
    assert set(FORMATS) - {"questions", "captions", "question-answer"} <= set(WRITTEN)
