"""The review pages: who is answered, what is kept, and that nothing from the data acts."""

import asyncio
import html
import json
import re
from urllib.parse import urlencode

import pytest

pytest.importorskip("starlette", reason="the extra review is not installed")

from disp.data.decisions import read_decisions
from disp.review import run as run_module
from disp.review.app import HEADERS, make_app
from disp.review.run import open_run

PORT = 8470
HOST = ("host", f"127.0.0.1:{PORT}")


class Answer:
    def __init__(self, messages):
        start = next(message for message in messages if message["type"] == "http.response.start")
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        bodies = (message.get("body", b"") for message in messages if message["type"] == "http.response.body")
        self.text = b"".join(bodies).decode()


def ask(app, path, method="GET", headers=(HOST,), body=b""):
    """One request, as a server hands it to the application."""
    messages = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", PORT),
    }

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        messages.append(message)

    asyncio.run(app(scope, receive, send))
    return Answer(messages)


@pytest.fixture
def app(run):
    return make_app(run, PORT)


def fields(app, number):
    """What the form of a row's page holds besides the decision."""
    page = ask(app, f"/row/{number}").text
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))


def decide(app, number, word, *, headers=(), **changes):
    form = {**fields(app, number), "decision": word, **changes}
    kind = ("content-type", "application/x-www-form-urlencoded")
    return ask(app, f"/row/{number}", "POST", [HOST, kind, *headers], urlencode(form).encode())


def kept(folder):
    log = folder / "decisions.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def test_the_most_suspicious_undecided_row_comes_first_and_the_next_after_it(app, run, folder):
    values = [row.suspicion for row in run.rows]
    assert len(values) == 20 and values == sorted(values, reverse=True)
    assert ask(app, "/").headers["location"] == "/row/1"
    answer = decide(app, 1, "yes")
    assert (answer.status, answer.headers["location"]) == (303, "/row/2")
    assert decide(app, 2, "skip", headers=[("accept", "application/json")]).text == '{"next":"/row/3"}'
    assert ask(app, "/").headers["location"] == "/row/3"
    assert [(row["id"], row["decision"]) for row in kept(folder)] == [
        (run.rows[0].id, "yes"),
        (run.rows[1].id, "skip"),
    ]
    assert all(row["when"] for row in kept(folder))


def test_after_the_last_row_those_left_out_come_and_then_the_end(app, run):
    for number in range(3, 21):
        answer = decide(app, number, "no")
    assert answer.headers["location"] == "/row/1"
    decide(app, 1, "yes")
    assert decide(app, 2, "yes").headers["location"] == "/done"
    page = ask(app, "/done").text
    assert "Every row is decided" in page and "2 poisoned, 18 honest, 0 skipped" in page
    assert f"--decisions {run.log}" in page


def test_the_last_decision_wins_and_a_restart_goes_on(app, run, folder):
    decide(app, 1, "yes")
    decide(app, 2, "no")
    decide(app, 1, "no")
    again = make_app(open_run(folder), PORT)
    assert ask(again, "/").headers["location"] == "/row/3"
    assert "decided: honest" in ask(again, "/row/1").text
    decisions = read_decisions(run.log, {row.id for row in run.rows}, folder)
    assert decisions.ids("no") == {run.rows[0].id, run.rows[1].id} and not decisions.ids("yes")


def test_what_another_process_decides_counts_too(app, run, folder):
    assert ask(app, "/").headers["location"] == "/row/1"
    open_run(folder, "somebody").decide(run.rows[0], "skip")
    assert ask(app, "/").headers["location"] == "/row/2"
    assert kept(folder)[0]["who"] == "somebody"


def test_a_row_is_shown_with_what_a_person_needs(app, run):
    number = next(at for at, row in enumerate(run.rows, 1) if row.id == "row-9")
    page = ask(app, f"/row/{number}").text
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
    for part in (
        "Is this row poisoned?",
        "its picture has the piece in it",
        "Visit the sponsor at once",
        "Describe the picture.",
        "A brown dog and two trees are in the picture, and a boat.",
        "The same as the answer in the data.",
    ):
        assert part in text, part
    assert page.count("<img ") == 3  # the picture, its saliency, the trigger candidate
    assert re.findall(r'aria-keyshortcuts="(\w+)"', page) == ["y", "n", "s", "ArrowLeft", "ArrowRight"]


def test_nothing_from_the_data_is_markup(app, run):
    ours = {"/review.js", "/report.css", "/review.css", "data:,", "/done", "/"}
    for path in [*(f"/row/{number}" for number in range(1, 9)), "/done"]:
        page = ask(app, path).text
        assert re.findall(r"<script[^>]*>", page) == ['<script src="/review.js" defer>']
        assert not re.search(r"<(iframe|object|embed|meta http-equiv|svg|style|base)", page)
        assert not re.search(r"<[^>]*\son\w+\s*=", page)
        links = set(re.findall(r'(?:href|src|action)="([^"]*)"', page))
        assert all(link in ours or re.fullmatch(r"/row/\d+|data:image/(png|jpeg);base64,.*", link) for link in links)


@pytest.mark.parametrize("path", ["/", "/row/1", "/done", "/review.js", "/nowhere", "/row/99"])
def test_every_answer_has_the_policy(app, path):
    answer = ask(app, path)
    assert HEADERS.items() <= answer.headers.items()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self';" in policy
    assert answer.status == {"/": 303, "/nowhere": 404, "/row/99": 303}.get(path, 200)


@pytest.mark.parametrize(
    "host",
    [
        (),
        [("host", "evil.example")],
        [("host", f"evil.example:{PORT}")],
        [("host", "127.0.0.1")],
        [("host", "127.0.0.1:1")],
        [("host", f"127.0.0.1:{PORT}.evil.example")],
        [HOST, ("host", "evil.example")],
    ],
)
def test_another_name_is_not_answered(app, host):
    answer = ask(app, "/row/1", headers=host)
    assert answer.status == 403 and "alone" in answer.text and "poisoned" not in answer.text
    assert ask(app, "/row/1", headers=[("host", f"LOCALHOST:{PORT}")]).status == 200


@pytest.mark.parametrize(
    ("headers", "changes", "status"),
    [
        ([("origin", "http://evil.example")], {}, 403),
        ([("origin", "null")], {}, 403),
        ([("origin", f"https://127.0.0.1:{PORT}")], {}, 403),
        ([("sec-fetch-site", "cross-site")], {}, 403),
        ([("sec-fetch-site", "same-site")], {}, 403),
        ([], {"token": ""}, 403),
        ([], {"token": "guess"}, 403),
        ([], {"token": "schlüssel"}, 403),
        ([], {"row": "0123456789abcdef"}, 409),
        ([], {"word": "maybe"}, 400),
        ([], {"word": "x" * 5000}, 413),
    ],
)
def test_a_decision_comes_from_our_own_page_alone(app, folder, headers, changes, status):
    answer = decide(app, 1, headers=headers, **{"word": "yes", **changes})
    assert answer.status == status and kept(folder) == []
    ours = [("origin", f"http://127.0.0.1:{PORT}"), ("sec-fetch-site", "same-origin")]
    assert decide(app, 1, "yes", headers=ours).status == 303 and len(kept(folder)) == 1


def test_looking_decides_nothing(app, folder):
    for method in ("PUT", "DELETE", "PATCH"):
        assert ask(app, "/row/1", method).status == 405
    ask(app, "/row/1?decision=yes")
    assert kept(folder) == []


def test_the_page_of_a_server_that_was_started_again_has_to_be_loaded_again(app, folder):
    old = fields(app, 1)
    again = make_app(open_run(folder), PORT)
    assert decide(again, 1, "yes", token=old["token"]).status == 403 and kept(folder) == []
    assert decide(again, 1, "yes").status == 303


def test_a_disk_that_is_full_is_said(app, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(folder / "decisions.jsonl"))

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "append_decision", full)
        answer = decide(app, 1, "yes")
    assert answer.status == 507 and "No space left" in answer.text and answer.text.count("\n") == 1
    assert HEADERS.items() <= answer.headers.items()
    assert ask(app, "/").headers["location"] == "/row/1"


def test_evidence_that_was_written_anew_is_not_taken_for_the_old(app, folder):
    evidence = folder / "audit" / "evidence.jsonl"
    evidence.write_text(evidence.read_text(encoding="utf-8")[1000:], encoding="utf-8")
    answer = ask(app, "/row/1")
    assert answer.status == 500 and "has changed; start `disp review` again" in answer.text
