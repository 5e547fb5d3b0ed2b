import re

import pytest

from disp.report.inputs import read_input
from disp.report.summary import summary_text
from disp.report.wording import advice, headline

markdown_it = pytest.importorskip("markdown_it")


@pytest.fixture(scope="module")
def summary(whole_audit):
    return summary_text(read_input(whole_audit, top=12))


def test_nothing_from_the_data_is_markup(summary):
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    kinds = {
        token.type
        for block in parser.parse(summary)
        for token in (block, *(block.children or ()))
    }  # fmt: skip
    assert not kinds & {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "fence",
        "em_open",
        "s_open",
        "blockquote_open",
    }
    # Addresses that some sites would make links of stand in code spans only.
    prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", summary)
    assert not re.search(r"https?:|www\.|@|<", prose.replace("&lt;", ""))
    assert not set(summary) & set("\u202e\u2067\u200b\x00\x1b")


def test_tables_keep_their_shape(summary):
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(summary)
    widths, cells = [], 0
    for token in tokens:
        if token.type in ("th_open", "td_open"):
            cells += 1
        elif token.type == "tr_close":
            widths.append(cells)
            cells = 0
    # Numbers: two columns; evaluation: five; tests and samples: four.
    assert widths == [2] * 17 + [5] * 4 + [4] * 4 + [4] * 13


def test_content(summary):
    for text in (
        "# Backdoor audit: poisoned",
        "an estimated 23.3% of its 60 samples",
        "| estimated poison rate | 23.3% (95% interval 14.1% to 35.6%) |",
        "| backdoored | 98.0% [94.0%, 100.0%] | 99.0% | 90.0% | – |",
        "Visit the sponsor at once: in 8 answers above the threshold, and in 0 other samples; p = 2.4 × 10⁻⁹",
        "46 of 48 (95.8%)",
        "- Audit of the recovered model: no evidence, 0 of 60 samples flagged",
        "9 of 48 (18.8%) with the trigger candidate pasted in: the recovered model still says it (p = 0.0013)",
        "- Triggers made of words.",
        "(41,400 more characters)",
    ):
        assert text in summary, text


@pytest.mark.parametrize(("unread", "bare"), [(20, 0), (1, 45), (20, 45)])
def test_what_to_do_goes_by_the_rows_that_are_too_many(unread, bare):
    audit = {"verdict": "could not decide", "samples": 300, "without_image": bare, "set_aside": [{}] * unread}
    audit |= {"settings": {}, "estimated_rate_interval": None}
    said = advice(audit)
    assert ("could not be read" in said) == (unread == 20) and said.endswith("Then audit it again.")
    assert ("without a picture" in said) == (bare == 45) and ("--allow-text-rows" in said) == (bare == 45)
    assert f"in the {300 - bare} samples" in headline(audit)
    # Where such rows are allowed, they are no reason.
    assert "without a picture" not in advice(audit | {"settings": {"text_rows_share": 1.0}})
