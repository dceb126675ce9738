"""The chat's page in a browser, where there is Chromium: it is driven by the DevTools protocol."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.examples.test_applications import StartNode, Terminal, start_node
from tests.support import wait_until
from tests.system.cluster_node import ROOT
from tests.websocket.front import front_of

__all__ = ["start_node"]

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the nodes of these tests need signals"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and writes no log."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Serve the files of `directory`, as `python -m http.server` does; give the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class Page:
    """A page in a browser."""

    def __init__(self, devtools: ClientConnection) -> None:
        self._devtools = devtools
        self._count = 0

    def evaluate(self, expression: str) -> Any:
        """Return what a JavaScript expression is there, as JSON has it."""
        self._count += 1
        parameters = {"expression": expression, "returnByValue": True}
        call = {"id": self._count, "method": "Runtime.evaluate", "params": parameters}
        self._devtools.send(json.dumps(call))
        while True:
            answer = json.loads(self._devtools.recv(timeout=20))
            if answer.get("id") == self._count:
                result = answer["result"]
                assert "exceptionDetails" not in result, result
                return result["result"].get("value")

    def submit(self, form: str, **values: str) -> None:
        """Fill in a form and send it."""
        for name, value in values.items():
            self.evaluate(f"document.getElementById('{name}').value = {json.dumps(value)}; 0")
        self.evaluate(f"document.getElementById('{form}').requestSubmit(); 0")

    def wait_for(self, pattern: str) -> None:
        """Wait until a line that is shown matches `pattern`."""
        wait_until(
            lambda: re.search(pattern, self.evaluate("document.body?.innerText") or ""),
            timeout_s=20,
            what=f"{pattern!r} on the page",
        )


@contextmanager
def browser(directory: Path, address: str) -> Iterator[Page]:
    """Open a page in a browser without a window."""
    assert CHROMIUM is not None
    with subprocess.Popen(
        [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-dev-shm-usage", "--remote-debugging-port=0"),
            *(f"--user-data-dir={directory / 'browser'}", "about:blank"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            port_file = directory / "browser" / "DevToolsActivePort"
            wait_until(
                lambda: port_file.exists() and port_file.read_text().count("\n") >= 1,
                timeout_s=30,
                what="the browser's port",
            )
            port, path = port_file.read_text().split()
            with connect(f"ws://127.0.0.1:{port}{path}", compression=None) as devtools:
                create = {"id": 0, "method": "Target.createTarget", "params": {"url": address}}
                devtools.send(json.dumps(create))
                target = json.loads(devtools.recv(timeout=20))["result"]["targetId"]
                page = f"ws://127.0.0.1:{port}/devtools/page/{target}"
                with connect(page, compression=None) as of_page:
                    yield Page(of_page)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(120)
def test_people_in_a_browser_and_at_a_terminal_chat_across_a_death(
    start_node: StartNode, tmp_path: Path
):
    node = start_node("examples.chat.server:app")
    with (
        front_of(tmp_path, node.port) as front,
        served(ROOT / "examples" / "chat" / "web") as pages,
        browser(tmp_path, f"{pages}?server={front.address}") as page,
        Terminal("examples.chat.client", "bob", node) as bob,
    ):
        page.wait_for(r"\* who are you\?")
        page.submit("login", name="ann", room="garden")
        page.wait_for(r"\* welcome, ann")
        bob.type("/join garden\n")
        bob.wait_for(r"\[garden\] \* bob came in")
        page.wait_for(r"\[garden\] \* bob came in")
        page.submit("say", text="grüß Gott")
        bob.wait_for(r"\[garden\] <ann> grüß Gott")
        page.wait_for(r"\[garden\] <ann> grüß Gott")
        for pid in node.worker_pids():
            os.kill(pid, signal.SIGKILL)
        bob.type("still here?\n")
        page.wait_for(r"\[garden\] <bob> still here\?")
        page.submit("say", text="yes")
        bob.wait_for(r"\[garden\] <ann> yes")
        assert front.stop() == 0
        page.wait_for(r"\* the connection has ended \(1001\)")
        bob.wait_for(r"\[garden\] \* ann is gone \(eof\)")
