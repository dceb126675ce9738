"""An HTTP session whose requests have a time in which the whole answer has to come.

The timeouts of `requests` count from one byte to the next, so a server that sends one now and then
would be waited for without end. Here a second thread cuts the connection when the time is up.
Imports the client library of the store; see `EtcdStore`.
"""

import socket
from threading import Timer
from typing import Any
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

__all__ = ["StoreSession"]


class StoreSession(requests.Session):
    """Not for two threads at a time. Raises as `requests.Session` does."""

    def __init__(self, timeout_s: float) -> None:
        """Let every answer come within `timeout_s` seconds; of one that is streamed its head."""
        super().__init__()
        self._timeout_s = timeout_s
        self._connections: WeakSet[HTTPConnection] = WeakSet()
        adapter = HTTPAdapter()
        adapter.poolmanager.pool_classes_by_scheme = _pools_told_of(self._connections)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a request; Timeout when the answer takes too long as a whole, RequestException when
        there is no thread to see to that."""
        is_over = False

        def cut() -> None:
            nonlocal is_over
            is_over = True
            for connection in list(self._connections):
                _cut(connection.sock)

        timer = Timer(self._timeout_s, cut)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError as error:  # the system may have one again soon
            raise requests.RequestException(str(error)) from None
        try:
            response = super().send(request, **kwargs)
        except (requests.RequestException, OSError) as error:
            if is_over and not isinstance(error, requests.Timeout):
                raise self._too_late() from None
            raise
        finally:
            timer.cancel()
        if is_over:  # a head, or a body of no told length, that was cut looks like a whole one
            response.close()
            raise self._too_late()
        return response

    def _too_late(self) -> requests.Timeout:
        return requests.Timeout(f"the answer has not come as a whole within {self._timeout_s:g} s")


def _pools_told_of(connections: "WeakSet[HTTPConnection]") -> dict[str, type[HTTPConnectionPool]]:
    """Return pools by scheme, which tell `connections` of what they make."""

    class Http(HTTPConnection):
        def connect(self) -> None:
            connections.add(self)
            super().connect()

    class Https(HTTPSConnection):
        def connect(self) -> None:
            connections.add(self)
            super().connect()

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    return {"http": HttpPool, "https": HttpsPool}


def _cut(connection: socket.socket | None) -> None:
    """Have whoever reads `connection`, in another thread, come to its end."""
    if connection is None:
        return
    try:
        # Not by the method of an SSLSocket, which would go on unencrypted.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except (OSError, ValueError):
        pass  # it has ended by itself
