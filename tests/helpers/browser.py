"""A headless Chromium, driven by the DevTools protocol over two pipes: no other package."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find():
    """Return the path of a browser of this machine, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser process; `new_tab` opens a page in it."""

    def __init__(self):
        self.folder = tempfile.mkdtemp()
        ours, theirs = os.pipe(), os.pipe()  # what it reads as 3, and writes as 4
        command = [
            find(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-extensions", "--disable-background-networking",
            "--remote-debugging-pipe", f"--user-data-dir={self.folder}", "about:blank",
        ]  # fmt: skip

        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (ours[0], theirs[1])]

        def arrange():
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            command, preexec_fn=arrange, close_fds=False, stderr=subprocess.DEVNULL
        )
        for fd in (ours[0], theirs[1], *high):
            os.close(fd)
        self.to, self.back = os.fdopen(ours[1], "wb", 0), os.fdopen(theirs[0], "rb", 0)
        self.count, self.rest, self.events = 0, b"", []

    def send(self, method, session=None, **parameters):
        """Send a command, and return its result; keep the events that come before it."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self.to.write(json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self.count:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            self.events.append(told)

    def _next(self):
        while b"\0" not in self.rest:
            assert select.select([self.back], [], [], 60)[0], "the browser says nothing"
            block = self.back.read(1 << 16)
            assert block, "the browser has ended"
            self.rest += block
        line, _, self.rest = self.rest.partition(b"\0")
        return json.loads(line)

    def new_tab(self, width=1280, height=800, dark=False):
        """Open a tab of a size."""
        return Tab(self, width, height, dark)

    def close(self):
        """End it."""
        with contextlib.suppress(OSError, AssertionError):
            self.send("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()
        self.process.wait()
        self.to.close()
        self.back.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Tab:
    """A page, as a person sees and touches it."""

    def __init__(self, browser, width, height, dark):
        self.browser = browser
        target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def send(self, method, **parameters):
        """Send a command to this page."""
        return self.browser.send(method, self.session, **parameters)

    def open(self, link):
        """Go to an address."""
        self.send("Page.navigate", url=link)

    def js(self, expression):
        """Return the value of an expression in the page."""
        told = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression, seconds=30):
        """Wait until an expression holds."""
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"{expression}: {self.js('document.body.innerText')}"
            time.sleep(0.02)

    def press(self, key, **more):
        """Press a key and let it go."""
        codes = {"Enter": 13, "Tab": 9}
        text = {"text": "\r" if key == "Enter" else key} if key != "Tab" else {}
        code = codes.get(key, ord(key[0].upper()))
        for kind, extra in (("keyDown", {**text, **more}), ("keyUp", {})):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **extra
            )

    def click(self, element, times=1, first=1):
        """Click on the middle of an element, several times at once, or go on with that."""
        box = f"document.getElementById({element!r}).getBoundingClientRect()"
        x, y = self.js(f"[{box}.x + {box}.width / 2, {box}.y + {box}.height / 2]")
        for count in range(first, first + times):
            for kind in ("mousePressed", "mouseReleased"):
                self.send(
                    "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=count
                )

    def screenshot(self, path):
        """Save what is seen as PNG."""
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def complaints(self):
        """Return what the browser's console has told of: errors, and what the policy blocked."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(event["params"]["exceptionDetails"])
            if event["method"] == "Log.entryAdded":
                found.append(event["params"]["entry"]["text"])
        return found
