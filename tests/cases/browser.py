"""A page in a real headless Chromium, told what to do over the pipe of its DevTools protocol; needs nothing else."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patience import HANG_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # of a container's root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
)


def find_browser() -> str | None:
    """FASTLG_BROWSER, or a Chromium on the PATH."""
    named = os.environ.get("FASTLG_BROWSER")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab. ``problems``: what its console and its network said; ``requests``: every address that it asked for."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.last, self.session = reader, writer, 0, None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.events: list[str] = []

    def call(self, method: str, **params: Any) -> dict:
        """Waits for the answer; what is told meanwhile is noted."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while (told := self._next()).get("id") != self.last:
            self._note(told)
        assert "error" not in told, (method, told["error"])
        return told["result"]

    def wait_for(self, event: str) -> None:
        while event not in self.events:
            self._note(self._next())

    def _next(self) -> dict:
        message = bytearray()
        while (byte := self.reader.read(1)) != b"\0":
            assert byte, "the browser ended"
            message += byte
        return json.loads(message)

    def _note(self, told: dict) -> None:
        method, params = told.get("method", ""), told.get("params", {})
        self.events.append(method)
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.problems.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Page.javascriptDialogOpening":
                self.problems.append(json.dumps(params)[:500])

    def open(self, path: Path) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.look(1100, 900)
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def look(self, width: int, height: int, scheme: str = "light", media: str = "screen") -> None:
        """The size of the window in px, the reader's colours, and screen or print."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def opened(path: Path, browser: str) -> Iterator[Page]:
    """The HTML file in a browser of its own, loaded."""
    profile = tempfile.mkdtemp(prefix="fastlg-browser-")
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for pair in (os.pipe(), os.pipe()) for end in pair]
    theirs_in, ours_out, ours_in, theirs_out = ends

    def connect() -> None:
        os.dup2(theirs_in, 3)
        os.dup2(theirs_out, 4)

    command = [browser, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command,
        preexec_fn=connect,
        pass_fds=(3, 4),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (theirs_in, theirs_out):
        os.close(end)
    with open(ours_in, "rb") as reader, open(ours_out, "wb") as writer:
        page = Page(reader, writer)
        try:
            page.open(path)
            yield page
            page.session = None
            page.call("Browser.close")
            process.wait(timeout=HANG_S)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(profile, ignore_errors=True)
