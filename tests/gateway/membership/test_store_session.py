"""Requests to the store end in time, however their answers come."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.gateway.membership import store_session, store_thread
from cluster.gateway.membership.etcd_store import EtcdStore, StoreError
from cluster.gateway.membership.store_thread import StoreWatch
from cluster.iocp import IocpCore
from tests.support import wait_until

pytest.importorskip("etcd3gw")

BODY = b'{"header":{}}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)
PATIENT_S = 30.0
TOO_LATE = r"has not come as a whole within 30 s"
_REQUEST = re.compile(rb"POST .*\r\n\r\n\{.*\}", re.DOTALL)

Answer = Callable[[socket.socket], None]


def _take_request(connection: socket.socket) -> bool:
    """Receive one request; False at the end of the connection."""
    data = b""
    while not _REQUEST.fullmatch(data):
        received = connection.recv(65_536)
        if not received:
            return False
        data += received
    return True


class Server:
    """Answers each request of each connection by `answer`, with as many threads as it takes."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.serve: Answer = self._answer_all
        self.served = 0
        """Connections that have ended."""
        self.connections: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.is_closed = threading.Event()
        self.drips = threading.Event()
        """Set when some of an answer that drips has been sent."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self.serve(connection)
        except OSError:
            pass
        self.served += 1

    def _answer_all(self, connection: socket.socket) -> None:
        while _take_request(connection):
            self.answer(connection)

    def drip(self, connection: socket.socket, data: bytes) -> None:
        """Send a byte each 50 ms: for longer than an answer may take."""
        for count, byte in enumerate(data):
            if self.is_closed.wait(0.05):
                return
            connection.sendall(bytes([byte]))
            if count == 3:
                self.drips.set()

    def close(self) -> None:
        self.is_closed.set()
        self.listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(lambda connection: connection.sendall(HEAD + BODY))
    yield made
    made.close()


@pytest.fixture
def cut_what_drips(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time of a request be up when its answer drips, and never else."""

    class Timer(threading.Timer):
        def run(self) -> None:
            assert self.interval == PATIENT_S
            while not self.finished.is_set():
                if server.drips.wait(0.01):
                    server.drips.clear()
                    self.function()
                    return

    monkeypatch.setattr(store_session, "Timer", Timer)


def drip_head(server: Server) -> Answer:
    return lambda connection: server.drip(connection, HEAD + BODY)


def drip_body(server: Server) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD.replace(b"%d" % len(BODY), b"400"))
        server.drip(connection, b" " * 400)

    return answer


@pytest.mark.usefixtures("cut_what_drips")
@pytest.mark.parametrize("dripping", [drip_head, drip_body])
def test_an_answer_that_drips_ends_in_time_and_the_next_request_is_answered(
    server: Server, dripping: Callable[[Server], Answer]
) -> None:
    store = EtcdStore([server.url], "test", PATIENT_S)
    whole, server.answer = server.answer, dripping(server)
    with pytest.raises(StoreError, match=TOO_LATE):
        store.read()
    server.answer = whole
    assert store.read() == []
    server.answer = dripping(server)
    with pytest.raises(StoreError, match=TOO_LATE):
        store.read()  # on a connection that has been used
    store.close()


def test_a_handshake_of_tls_that_drips_ends_in_time(server: Server) -> None:
    def drip_record(connection: socket.socket) -> None:
        if connection.recv(65_536):  # else the time was up before there was anything to answer
            server.drip(connection, b"\x16\x03\x03\x40\x00" + bytes(400))

    server.serve = drip_record
    store = EtcdStore([server.url.replace("http:", "https:")], "test", 1.0)
    began_at = time.monotonic()
    with pytest.raises(StoreError, match=r"timed out|as a whole"):
        store.read()
    assert time.monotonic() - began_at < 10
    store.close()


def test_who_is_connected_too_late_is_not_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, is_over = socket.getaddrinfo, threading.Event()

    def resolve_late(*arguments: Any) -> Any:
        assert is_over.wait(30)
        return resolve(*arguments)

    class Timer(threading.Timer):
        def run(self) -> None:
            super().run()
            is_over.set()

    asked: list[socket.socket] = []
    server.answer = asked.append
    monkeypatch.setattr(store_session, "Timer", Timer)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_late)
    store = EtcdStore([server.url], "test", 0.5)
    with pytest.raises(StoreError, match=r"has not come as a whole within 0\.5 s"):
        store.read()
    wait_until(lambda: server.served == 1, what="the end of the connection")
    assert not asked
    store.close()


@pytest.mark.parametrize("scheme", ["http", "all"])
def test_proxies_of_the_environment_are_not_for_the_store(
    server: Server, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    store = EtcdStore([server.url], "test", 5.0)
    assert store.read() == []
    store.close()


@pytest.mark.usefixtures("cut_what_drips")
def test_another_server_is_asked_for_one_that_drips(server: Server) -> None:
    slow = Server(lambda connection: slow.drip(connection, HEAD + BODY))
    slow.drips = server.drips
    try:
        store = EtcdStore([slow.url, server.url], "test", PATIENT_S)
        assert store.read() == []
        store.close()
    finally:
        slow.close()


def test_a_moment_without_threads_is_a_failed_request_and_the_watch_goes_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_start = threading.Event()
    was_refused = threading.Event()
    start = threading.Timer.start

    def start_if_there_is_one(timer: threading.Timer) -> None:
        if not may_start.is_set():
            was_refused.set()
            raise RuntimeError("can't start new thread")
        start(timer)

    monkeypatch.setattr(threading.Timer, "start", start_if_there_is_one)
    monkeypatch.setattr(store_thread, "WATCH_PAUSE_S", 0.05)
    server.answer = lambda connection: connection.sendall(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'1c\r\n{"result":{"created":true}}\n\r\n'
    )
    store = EtcdStore([server.url], "test", 5.0)
    with pytest.raises(StoreError, match="can't start new thread"):
        store.read()
    core = IocpCore()
    told: list[bool] = []
    watch = StoreWatch(EtcdStore([server.url], "test", 5.0), core, lambda: told.append(True))
    try:
        was_refused.clear()
        assert was_refused.wait(10)
        may_start.set()
        wait_until(lambda: (core.dispatch(0.05), told)[1], what="a watch")
    finally:
        watch.close(10)
        store.close()
        core.close()


def test_a_silent_server_is_told_of_as_before(server: Server) -> None:
    server.answer = lambda connection: None
    store = EtcdStore([server.url], "test", 0.2)
    with pytest.raises(StoreError, match=r"timed out|as a whole"):
        store.read()
    store.close()


def test_what_a_server_says_is_told_in_one_line_without_control_characters(server: Server) -> None:
    said = "no\x1b]0;title\x07 such\r\n2026-01-01 INFO gateway: drained" + 1_000 * "x"
    head = f"HTTP/1.1 500 No\r\nContent-Length: {len(said)}\r\nConnection: close\r\n\r\n"
    server.answer = lambda connection: connection.sendall((head + said).encode())
    store = EtcdStore([server.url], "test", 5.0)
    with pytest.raises(StoreError) as raised:
        store.read()
    assert str(raised.value).isprintable()
    assert r"no\x1b]0;title\x07 such 2026-01-01 INFO" in str(raised.value)
    assert len(str(raised.value)) < 500
    store.close()
