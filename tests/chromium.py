"""A headless Chromium, spoken to over a pipe in its own protocol.

Tests that use it are skipped where there is none; DISP_CHROMIUM names it where it is not found. DISP_SCREENSHOTS names
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
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = os.environ.get("DISP_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

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

    def show(self, path, **how):
        self.go(path.as_uri(), **how)

    def go(self, url, *, width=1280, scheme="light", media=""):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        self("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self("Page.navigate", url=url)
        self.wait("Page.loadEventFired")

    def value(self, expression):
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key, code):
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def until(self, expression, seconds=30):
        """Wait until an expression is true of whatever page is there by then."""
        end = time.monotonic() + seconds
        while True:
            answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
            if answer["result"].get("value"):
                return
            assert time.monotonic() < end, f"not true: {expression}; at {self.value('location.href')}"
            self.settle(0.05)

    def screenshot(self, name, *, whole=True):
        folder = os.environ.get("DISP_SCREENSHOTS")
        if folder:
            data = self("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
            Path(folder, f"{name}.png").write_bytes(base64.b64decode(data))

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        os.close(self.command)
        os.close(self.reply)
