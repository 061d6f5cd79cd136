"""A real chromium, driven over its debugging pipe: no driver, no library, no port."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio", "--remote-debugging-pipe",
)  # fmt: skip


def executable() -> str | None:
    """The browser of this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab. ``events`` has what it said since the last ``open``, requests and errors too."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        program = executable()
        assert program is not None
        to_read, self._to = os.pipe()
        self._from, from_write = os.pipe()
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'  # the numbers that chromium takes
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *FLAGS, f"--user-data-dir={profile}",
             f"--window-size={width},{height}", "about:blank"],
            pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self._until(self._page)
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log", "Performance"):
            self.call(f"{domain}.enable")

    def _page(self) -> str | None:
        self._session = None
        found = self.call("Target.getTargets")["targetInfos"]
        return next((t["targetId"] for t in found if t["type"] == "page"), None)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol; what it answers."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 20)
            assert more, "the browser is gone"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def open(self, url: str, ready: str = "document.readyState === 'complete'") -> float:
        """Load ``url``; seconds until the expression ``ready`` holds."""
        self.events.clear()
        start = time.monotonic()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait(ready)
        return time.monotonic() - start

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise's too."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> None:
        """Until ``expression`` holds."""
        self._until(lambda: self.run(expression) or None, seconds, expression)

    def _until(self, ask: Callable[[], Any], seconds: float = 20, what: str = "the tab") -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = ask()
            if found is not None:
                return found
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s: {what}")

    def click(self, selector: str) -> None:
        """With the real pointer, in the middle of the element, once it stands still."""
        find = f"document.querySelector({json.dumps(selector)})"
        box = self.run(
            f"(async () => {{ {find}.scrollIntoView({{block: 'center'}}); let was = null; "
            "for (;;) { await new Promise(r => requestAnimationFrame(() => setTimeout(r, 30))); "
            f"const b = {find}.getBoundingClientRect(); "
            "const now = [b.x + b.width / 2, b.y + b.height / 2]; "
            "if (was && was[0] === now[0] && was[1] === now[1]) return now; was = now; } })()"
        )
        self.press_at(*box)

    def press_at(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name: str, code: int, text: str = "") -> None:
        """Press one key, ``key("Escape", 27)``."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name,
                      windowsVirtualKeyCode=code, **more)  # fmt: skip

    def seconds(self) -> float:
        """CPU time of the tab's process so far: what else the machine does is not in it."""
        found = self.call("Performance.getMetrics")["metrics"]
        return float(next(m["value"] for m in found if m["name"] == "ProcessTime"))

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip

    def colours(self, scheme: str) -> None:
        """``light`` or ``dark``, as the system would say."""
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip

    def picture(self, path: Path, whole: bool = False) -> None:
        """A PNG of what is in sight, or of the whole page."""
        more: dict[str, Any] = {}
        if whole:
            size = self.run("[innerWidth, document.body.scrollHeight]")
            clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
            more = {"captureBeyondViewport": True, "clip": clip}
        found = self.call("Page.captureScreenshot", **more)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, dialogs and requests beyond the file."""
        self.run("0")
        found = []
        for event in self.events:
            kind, params = event.get("method"), event.get("params", {})
            if kind == "Runtime.exceptionThrown" or kind == "Page.javascriptDialogOpening":
                found.append(json.dumps(params))
            elif kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(json.dumps(params["args"]))
            elif kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif kind == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:", "about:")):
                    found.append(url)
        return found

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)
