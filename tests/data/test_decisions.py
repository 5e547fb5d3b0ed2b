"""A person's decisions: read from files that people and the review page write, checked line by line."""

import json

import pytest

from disp.data.decisions import Decision, append_decision, latest, mend_log, read_decisions
from disp.errors import DispError

IDS = {"a", "b", "c", "7", "it's"}


@pytest.fixture
def read(tmp_path):
    def run(text, name="decisions.csv"):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        return read_decisions(tmp_path / name, IDS, tmp_path / "data.json")

    return run


def words(decisions):
    return {key: each.decision for key, each in decisions.by_id.items()}


@pytest.mark.parametrize(
    "text",
    [
        "id,decision\na,yes\nb,no\n7,skip\n",
        "\ufeffid,decision\r\na,yes\r\nb,no\r\n7,skip\r\n",
        "id;decision\na;YES\nb; no \n7;skip",
        "Decision\tID\nyes\ta\nno\tb\n\nskip\t7\n",
        "id,picture,decision,who\na,x.png,yes,me\nb,,no,\n7,,skip,\nc,,,\n",
        f"id,answer,decision\na,{'x ' * 70_000},yes\nb,,no\n7,,skip\n",
        '{"id": "a", "decision": "yes"}\n{"id": "b", "decision": "no"}\n\n{"id": 7, "decision": "skip"}',
    ],
)
def test_both_forms_are_read(read, text):
    assert words(read(text)) == {"a": "yes", "b": "no", "7": "skip"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,decision\na,yes\nx,no\n", r"decisions\.csv:3: no row that can be used in .*data\.json has the id 'x'"),
        ("id,decision\na,yes\nb,no\na,no\n", r"decisions\.csv:4: 'a' is already decided in line 2; keep one"),
        ("id,decision\na,maybe\n", r"decisions\.csv:2: the decision on 'a' must be yes, no or skip, not \"maybe\""),
        ("id,decision\n,yes\n", r"decisions\.csv:2: a decision without the id of a row"),
        ("id,decision\na,yes,me\n", r"decisions\.csv:2: 3 cells under 2 columns"),
        ('id,decision\n"a"x,yes\n', r"decisions\.csv:2: not valid CSV"),
        ("name,verdict\na,yes\n", r"decisions\.csv:1: no column decision and no column id"),
        ("", r"decisions\.csv:1: no column decision"),
        ('{"id": "a", "decision": "yes"}\n{"id": "b"', r"decisions\.csv:2: not valid JSON"),
        ('{"id": "a", "decision": true}', r"decisions\.csv:1: the decision on 'a' must be .* not true"),
        ('{"id": "a"}', r"decisions\.csv:1: the decision on 'a' must be yes, no or skip, not null"),
        ('{"decision": "yes"}', r"decisions\.csv:1: a decision without the id"),
        ('{"id": "a", "decision": "yes"}\n["b", "no"]', r"decisions\.csv:2: a decision must be an object .* list"),
        ('{"id": "a", "decision": "yes"}\n{"id": "a", "decision": "yes", "when": "now"}', r"csv:2: 'a' is already"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_place(read, text, message):
    with pytest.raises(DispError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text(read, tmp_path):
    with pytest.raises(DispError, match="nowhere: no such file"):
        read_decisions(tmp_path / "nowhere", IDS, tmp_path)
    with pytest.raises(DispError, match="cannot be read"):
        read_decisions(tmp_path, IDS, tmp_path)
    (tmp_path / "latin.csv").write_bytes("id,decision\nä,yes\n".encode("latin-1"))
    with pytest.raises(DispError, match="not UTF-8"):
        read_decisions(tmp_path / "latin.csv", IDS, tmp_path)


def test_of_a_log_the_last_decision_counts(tmp_path):
    log = tmp_path / "decisions.jsonl"
    for key, word, when in (("a", "yes", "1"), ("it's", "skip", "2"), ("a", "no", "3")):
        append_decision(log, Decision(key, word, "me", when))
    decisions = read_decisions(log, IDS, tmp_path)
    assert words(decisions) == latest(log) == {"a": "no", "it's": "skip"}
    assert decisions.by_id["a"].to_json() == {"id": "a", "decision": "no", "who": "me", "when": "3"}


@pytest.mark.parametrize("torn", ['{"id": "b", "decis', '{"id": "b"}', '{"id": "b", "decision": "y', '"b"'])
def test_a_torn_last_line_is_cut_off_before_the_log_goes_on(tmp_path, torn):
    log = tmp_path / "decisions.jsonl"
    append_decision(log, Decision("a", "yes"))
    whole = log.read_text()
    log.write_text(whole + torn)
    mend_log(log)
    assert log.read_text() == whole
    append_decision(log, Decision("c", "no"))
    assert latest(log) == {"a": "yes", "c": "no"}


def test_a_whole_last_line_without_an_end_stays(tmp_path):
    log = tmp_path / "decisions.jsonl"
    log.write_text('{"id": "a", "decision": "yes"}')
    mend_log(log)
    append_decision(log, Decision("b", "no"))
    assert latest(log) == {"a": "yes", "b": "no"}
    mend_log(tmp_path / "not there")
    assert latest(tmp_path / "not there") == {}


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    log = tmp_path / "decisions.jsonl"
    append_decision(log, Decision("a", "yes"))

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            append_decision(log, Decision("b", "no"))
    assert [json.loads(line)["id"] for line in log.read_text().splitlines()] == ["a"]


def test_yes_and_no_win_over_what_is_flagged(read):
    decisions = read("id,decision\na,yes\nb,no\nc,skip\n")
    order = ["c", "b", "a", "7", "it's"]
    assert decisions.over(["b", "c", "7"], order) == ("c", "a", "7")
    assert decisions.identity() == {"a": "yes", "b": "no"}
    assert decisions.counts() == {"yes": 1, "no": 1, "skip": 1}
