"""A headless Chromium, driven through its DevTools protocol (chromedevtools.github.io)."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def browser(folder: Path, width: int = 1280, height: int = 900, scheme: str = "light"):
    """A context with a `Page`; skips the test, and says why, where there is no browser."""
    client = pytest.importorskip(
        "websockets.sync.client", reason="websockets is not installed: pip install '.[browser]'"
    )
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed: apt-get install chromium")
    arguments = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *("--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", "about:blank"),
    ]
    with open(folder / "chromium.log", "wb") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
    try:
        address = _address(folder / "chromium.log", process)
        with client.connect(address, max_size=None) as socket:
            page = Page(socket)
            page.resize(width, height, scheme)
            yield page
    finally:
        process.terminate()
        process.wait(30)


def _address(log: Path, process: subprocess.Popen) -> str:
    for _ in range(600):
        if match := re.search(r"DevTools listening on (ws://\S+)", log.read_text(errors="replace")):
            return match[1]
        assert process.poll() is None, log.read_text(errors="replace")
        time.sleep(0.1)
    raise TimeoutError(log.read_text(errors="replace"))


class Page:
    """A tab: what it logged, what it asked the network for, and what JavaScript says of it."""

    def __init__(self, socket):
        self._socket, self._numbers, self._session = socket, itertools.count(1), None
        self.messages: list[str] = []
        """What the console and the log have, such as errors and refused requests."""
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters):
        """Call a method of the protocol and return its result; events are noted."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=120))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict):
        method, values = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.messages.append(str([part.get("value") for part in values["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(values["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.messages.append(values["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.messages.append(f"dialog: {values['message']}")
            raise AssertionError(self.messages)
        elif method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])

    def resize(self, width: int, height: int, scheme: str = "light"):
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        pairs = [{"name": name, "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=pairs)
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1 + (width < 500)}
        self.call("Emulation.setDeviceMetricsOverride", **metrics, mobile=width < 500)

    def open(self, file: Path):
        self.call("Page.navigate", url=Path(file).absolute().as_uri())
        self.wait("document.readyState === 'complete'")

    def run(self, script: str):
        """Return the value of a JavaScript expression; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 60):
        """Wait until a JavaScript expression is true."""
        ends = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < ends, f"never true: {condition}"
            time.sleep(0.02)

    def click(self, selector: str):
        """Click the middle of an element with the mouse."""
        script = f"""(() => {{
            const found = document.querySelector({json.dumps(selector)});
            found.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = found.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + Math.min(box.height, 40) / 2];
        }})()"""
        x, y = self.run(script)
        for kind in ("mousePressed", "mouseReleased"):
            where = {"x": x, "y": y, "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **where)

    def type(self, text: str):
        """Type a text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = ""):
        """Press and release a key, such as Enter (13)."""
        values = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **down, **values)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def screenshot(self, file: Path, height: int | None = None):
        width, full = self.run("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(full, height or full), "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        Path(file).write_bytes(base64.b64decode(shot["data"]))
