"""The report in a real browser: it acts on nothing, fits every width, and can be read by everybody.

Chromium is spoken to over a pipe, in its own protocol; without Chromium these tests are skipped. DISP_SCREENSHOTS names
a folder for screenshots to be looked at.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from disp.report.html import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = os.environ.get("DISP_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium; install it or name it in DISP_CHROMIUM")

# Every text that is seen, with the contrast of its colour to what lies behind it (WCAG 2 relative luminance).
CONTRASTS = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const luminance = colour => colour.slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('title, desc')) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [light, dark] = [luminance(ink), luminance(ground(element))].sort((a, b) => b - a);
    found.push([(light + 0.05) / (dark + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""
# Texts that reach out of their section and do not lie in a part that scrolls.
OUTSIDE = """
[...document.querySelectorAll('.data, img, svg.bar, table, h1, h2, h3, h4')].filter(element => {
  if (element.closest('.scroll') || !element.checkVisibility()) return false;
  const box = element.getBoundingClientRect();
  const frame = (element.closest('section') || document.body).getBoundingClientRect();
  return box.left < frame.left - 1 || box.right > frame.right + 1;
}).map(element => element.outerHTML.slice(0, 120))
"""

# Chromium reads commands from descriptor 3 and answers on 4.
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """A headless Chromium and one page in it."""

    def __init__(self, home):
        command_read, self.command = os.pipe()
        self.reply, reply_write = os.pipe()
        # Moved up, since one of ours may be 3 or 4 itself.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (command_read, reply_write)]
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage")
        own = (f"--user-data-dir={home}", "--no-first-run", "--remote-debugging-pipe", "about:blank")
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", START, *map(str, ends), PROGRAM, *options, *own],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (command_read, reply_write, *ends):
            os.close(end)
        self.number, self.rest, self.session, self.events = 0, b"", None, []
        target = next(each for each in self("Target.getTargets")["targetInfos"] if each["type"] == "page")
        self.session = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Accessibility"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.command, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            assert answer is not None, f"Chromium does not answer {method}"
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            if not select.select([self.reply], [], [], max(0, end - time.monotonic()))[0]:
                return None
            data = os.read(self.reply, 1 << 20)
            assert data, "Chromium has ended"
            self.rest += data
        message, _, self.rest = self.rest.partition(b"\0")
        answer = json.loads(message)
        if "method" in answer:
            self.events.append(answer)
        return answer

    def wait(self, method):
        end = time.monotonic() + 60
        while not any(event["method"] == method for event in self.events):
            assert self._next(end - time.monotonic()) is not None, f"no {method}"

    def settle(self, seconds):
        """Take in what still happens for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._next(end - time.monotonic()) is not None:
            pass

    def show(self, path, *, width=1280, scheme="light", media=""):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        self("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        self.wait("Page.loadEventFired")

    def value(self, expression):
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key, code):
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, name):
        folder = os.environ.get("DISP_SCREENSHOTS")
        if folder:
            data = self("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            Path(folder, f"{name}.png").write_bytes(base64.b64decode(data))

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        os.close(self.command)
        os.close(self.reply)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def server():
    """A server on this machine that hostile text asks for things, and the list of what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, asked
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def report(tmp_path_factory, server, make_audit_folder):
    return write_report(make_audit_folder(tmp_path_factory.mktemp("report") / "audit", server[0]))


def test_the_trap_works(browser, server, tmp_path):
    """A page that is not inert reaches the server: the next test can fail."""
    port, asked = server
    path = tmp_path / "trap.html"
    path.write_text(f"<script>document.title='owned'</script><img src='http://127.0.0.1:{port}/trap.png'>")
    browser.show(path)
    browser.settle(1)
    assert browser.value("document.title") == "owned"
    assert "/trap.png" in asked
    asked.clear()


def test_hostile_text_does_nothing(browser, report, server):
    browser.show(report)
    browser.settle(2)
    requests = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith(("data:image/", report.as_uri()))] == []
    assert server[1] == []
    assert browser.value("document.title") == "Backdoor audit: poisoned"
    assert browser.value("location.href") == report.as_uri()
    assert browser.value("document.querySelectorAll('script, iframe, link, form, object, embed, base').length") == 0
    handlers = (
        "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(name => /^on/.test(name))"
    )
    assert browser.value(handlers) == []
    assert browser.value("document.compatMode") == "CSS1Compat"
    # Nothing was blocked either, which is to say that nothing was tried, and the style sheet applies.
    assert [event["params"] for event in browser.events if event["method"] == "Log.entryAdded"] == []
    assert not {"Page.javascriptDialogOpening", "Runtime.exceptionThrown"} & {e["method"] for e in browser.events}
    assert browser.value("getComputedStyle(document.querySelector('.data')).unicodeBidi") == "isolate"
    assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_every_width_fits(browser, report, width):
    browser.show(report, width=width)
    assert browser.value("document.documentElement.scrollWidth") == width
    assert browser.value(OUTSIDE) == []
    browser.screenshot(f"report-{width}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser, report, scheme):
    browser.show(report, scheme=scheme)
    browser.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = browser.value(CONTRASTS)
    assert len(found) > 300
    assert [text for text in found if text[0] < 4.5] == []
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
    browser.screenshot(f"report-{scheme}")


def test_print(browser, report):
    # On paper it is light whatever the screen is, all is open and the contents' links are gone.
    browser.show(report, scheme="dark", media="print")
    assert browser.value(CONTRASTS)[0][0] >= 4.5
    assert browser.value("getComputedStyle(document.body).color") == "rgb(26, 29, 36)"
    assert browser.value("document.querySelector('nav').checkVisibility()") is False
    data = base64.b64decode(browser("Page.printToPDF")["data"])
    assert data.startswith(b"%PDF") and len(data) > 50_000


def test_screen_readers_and_keyboards(browser, report):
    browser.show(report)
    nodes = [node for node in browser("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]

    def names(role):
        return [node.get("name", {}).get("value", "") for node in nodes if node["role"]["value"] == role]

    for landmark in ("banner", "main", "navigation", "contentinfo"):
        assert len(names(landmark)) == 1, landmark
    assert "Verdict: poisoned" in names("heading")
    # The chart is one picture with a name; whatever only decorates is silent.
    pictures = names("image") + names("img") + names("graphics-document")
    assert len(pictures) >= 30 and all(pictures)
    assert "Histogram of the samples’ suspicion" in pictures
    assert {"deletion", "insertion"} <= {node["role"]["value"] for node in nodes}
    assert all(names("region"))
    spoken = " ".join(node.get("name", {}).get("value", "") for node in nodes)
    assert "removed:" in spoken and "end of added" in spoken

    browser.press("Tab", 9)
    assert browser.value("document.activeElement.className") == "skip"
    assert browser.value("document.activeElement.getBoundingClientRect().left") >= 0
    seen = set()
    for _ in range(200):
        browser.press("Tab", 9)
        seen.add(browser.value("document.activeElement.tagName + ' ' + document.activeElement.className"))
        if browser.value("document.activeElement === document.body"):
            break
    assert {"A ", "SUMMARY ", "DIV scroll"} <= seen
