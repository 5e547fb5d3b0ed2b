"""The report in a real browser: it acts on nothing, fits every width, and can be read by everybody.

Without Chromium these tests are skipped.
"""

from __future__ import annotations

import base64
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from chromium import CONTRASTS, OUTSIDE, PROGRAM, Browser

from disp.report.html import write_report

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium; install it or name it in DISP_CHROMIUM")


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
