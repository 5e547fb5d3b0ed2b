"""Twenty rows decided in a real browser with the keyboard alone, the server killed in between, and nothing lost."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
from chromium import CONTRASTS, OUTSIDE, PROGRAM, Browser

pytest.importorskip("uvicorn", reason="the extra review is not installed")

from disp.data.decisions import read_decisions
from disp.review.run import open_run

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium; install it or name it in DISP_CHROMIUM")
KEYS = {"yes": ("y", 89), "no": ("n", 78), "skip": ("s", 83), "back": ("ArrowLeft", 37), "next": ("ArrowRight", 39)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


class Server:
    """`disp review` in a process of its own, on one port."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        command = ["-m", "disp", "review", str(self.folder), "--port", str(self.port), "--no-browser"]
        self.process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        assert "20 flagged rows" in self.process.stdout.readline()

    def kill(self):
        self.process.kill()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture
def server(folder):
    server = Server(folder)
    yield server
    server.kill()


def at(browser, path):
    """Wait for a page."""
    browser.until(f"location.pathname === '{path}' && document.readyState === 'complete'")


def press(browser, name):
    browser.press(*KEYS[name])


def test_twenty_rows_by_keyboard_with_the_server_killed_in_between(browser, server, folder):
    words = [("yes", "no", "skip")[number % 3] for number in range(20)]
    browser.go(f"{server.address}/")
    at(browser, "/row/1")
    for number, word in enumerate(words, 1):
        if number in (6, 13):
            # The row is decided as soon as the next one is asked about; what is pressed now arrives nowhere.
            server.kill()
            press(browser, word)
            browser.until("!document.getElementById('notice').hidden")
            assert "Not saved: disp review does not answer" in browser.value(
                "document.getElementById('notice').innerText"
            )
            browser.screenshot(f"review-not-saved-{number}", whole=False)
            assert len((folder / "decisions.jsonl").read_text(encoding="utf-8").splitlines()) == number - 1
            server.start()
            press(browser, word)  # the page is that of the other server; it is loaded again and nothing is decided
            browser.until("document.getElementById('notice').hidden && document.readyState === 'complete'")
        press(browser, word)
        at(browser, "/done" if number == 20 else f"/row/{number + 1}")
    rows = open_run(folder).rows
    decisions = read_decisions(folder / "decisions.jsonl", {row.id for row in rows}, folder)
    assert [decisions.by_id[row.id].decision for row in rows] == words
    assert len((folder / "decisions.jsonl").read_text(encoding="utf-8").splitlines()) == 20
    assert browser.value("document.querySelector('h1').innerText") == "Every row is decided"
    browser.screenshot("review-done")


def test_back_and_forth_and_another_mind(browser, server, folder):
    browser.go(f"{server.address}/row/5")
    at(browser, "/row/5")
    for name, path in (("next", "/row/6"), ("no", "/row/7"), ("back", "/row/6"), ("yes", "/row/7")):
        press(browser, name)
        at(browser, path)
    log = [json.loads(line) for line in (folder / "decisions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["decision"] for row in log] == ["no", "yes"] and log[0]["id"] == log[1]["id"]
    # Keys with others held, and keys that mean nothing here, do nothing.
    browser("Input.dispatchKeyEvent", type="rawKeyDown", key="y", code="y", windowsVirtualKeyCode=89, modifiers=2)
    browser.press("x", 88)
    browser.settle(0.3)
    assert browser.value("location.pathname") == "/row/7"
    # A key that is held down repeats; it decides nothing.
    browser("Input.dispatchKeyEvent", type="rawKeyDown", key="y", code="y", windowsVirtualKeyCode=89, autoRepeat=True)
    browser.settle(0.3)
    assert browser.value("location.pathname") == "/row/7"


def test_without_the_script_the_buttons_work(browser, server, folder):
    browser("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.go(f"{server.address}/row/1")
        for _ in range(2):  # past the link to the overview, to the first button
            browser.press("Tab", 9)
        browser.events.clear()
        browser(
            "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
        browser.wait("Page.loadEventFired")
    finally:
        browser("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.value("location.pathname") == "/row/2"
    assert json.loads((folder / "decisions.jsonl").read_text(encoding="utf-8"))["decision"] == "yes"


@pytest.mark.parametrize(
    ("path", "width", "scheme"), [("/row/9", 1280, "light"), ("/row/7", 390, "dark"), ("/done", 768, "light")]
)
def test_pages_fit_and_can_be_read_and_nothing_from_the_data_acts(browser, server, path, width, scheme):
    browser.go(f"{server.address}{path}", width=width, scheme=scheme)
    browser.settle(0.5)
    assert browser.value("document.documentElement.scrollWidth") == width
    assert browser.value(OUTSIDE) == []
    assert [text for text in browser.value(CONTRASTS) if text[0] < 4.5] == []
    assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith((server.address, "data:")) for url in asked)
    assert [event["params"] for event in browser.events if event["method"] == "Log.entryAdded"] == []
    assert not {"Page.javascriptDialogOpening", "Runtime.exceptionThrown"} & {e["method"] for e in browser.events}
    assert "owned" not in browser.value("document.title")
    browser.screenshot(f"review{path.replace('/', '-')}-{width}", whole=path == "/done")
