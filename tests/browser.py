"""A page in a real browser: Chromium without a window, driven by the DevTools protocol.

    python -m tests.browser PAGE FOLDER

writes report-light.png and report-dark.png, the head of the report PAGE, into FOLDER.
"""

import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--remote-debugging-port=0")
SCHEMES = ("light", "dark")


class Tab:
    """One tab of a browser. `errors` has what its console reports as errors and exceptions."""

    def __init__(self, socket: Any):
        self.socket, self.number, self.errors = socket, 0, []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> dict:
        """Send a command and return its result. Raises RuntimeError when the browser refuses it."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": arguments}))
        while (message := self._next()).get("id") != self.number:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def _next(self) -> dict:
        message = json.loads(self.socket.recv(timeout=60))
        kind, facts = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown" or (kind == "Runtime.consoleAPICalled" and facts["type"] == "error") or (
                kind == "Log.entryAdded" and facts["entry"]["level"] == "error"):
            self.errors.append(json.dumps(facts)[:500])
        return message

    def open(self, page: Path, width: int, height: int, scheme: str = "light") -> None:
        """Load a file at this size of the window, in pixels, and in a light or dark scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.absolute().as_uri())
        deadline = time.monotonic() + 60
        while self.js("location.protocol != 'file:' || document.readyState != 'complete'"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{page} does not load")
            time.sleep(0.05)

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True,
                          awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:500])
        return found["result"].get("value")

    def screenshot(self, whole: bool = False) -> Image.Image:
        """The visible part of the page, or all of it."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        return Image.open(BytesIO(base64.b64decode(data))).convert("RGB")


@contextmanager
def browser() -> Iterator[Tab]:
    """An empty tab of a browser with a new profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            address = next(line.split()[-1] for line in process.stderr if line.startswith("DevTools listening on"))
            with connect(address, proxy=None, ping_interval=None) as socket:
                socket.send(json.dumps({"id": 0, "method": "Target.getTargets"}))
                targets = json.loads(socket.recv(timeout=60))["result"]["targetInfos"]
            target = next(one["targetId"] for one in targets if one["type"] == "page")
            page = address.replace(address[address.index("/devtools/"):], f"/devtools/page/{target}")
            with connect(page, proxy=None, max_size=None, ping_interval=None) as socket:
                yield Tab(socket)
        finally:
            process.terminate()
            process.wait(timeout=30)


def pictures(page: Path, folder: Path, width: int = 1100) -> None:
    """Write the head of a report in both schemes, with few colours, so that the files are small."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as tab:
        for scheme in SCHEMES:
            tab.open(page, width, 900, scheme)
            height = int(tab.js("document.querySelector('header').getBoundingClientRect().bottom")) + 16
            target = folder / f"report-{scheme}.png"
            tab.screenshot().crop((0, 0, width, height)).quantize(192).save(target, optimize=True)
            print(f"{target}: {target.stat().st_size // 1000} kB")


if __name__ == "__main__":
    if not CHROMIUM:
        sys.exit("error: no Chromium was found; install one, e.g. apt-get install chromium")
    pictures(*map(Path, sys.argv[1:]))
