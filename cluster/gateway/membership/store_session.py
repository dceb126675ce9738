"""An HTTP session that logs in, and whose requests have a time for the whole answer to come.

The timeouts of `requests` count from one byte to the next, so a server that sends one now and then
would be waited for without end. Here a second thread cuts the connection when the time is up.
Imports the client library of the store; see `EtcdStore`.
"""

import socket
from threading import Lock, Timer
from typing import Any
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from cluster.gateway.membership.store_access import StoreAccess
from cluster.shared.private_files import PrivateFileError

__all__ = ["StoreSession"]

_NO_LOG_IN = "authentication is not enabled"
_LOG_IN_AGAIN = ("user name is empty", "revision of auth store is old")
"""What etcd says, beside 401, to a token from before users were changed, or to none."""


class _Deadline:
    """The time of the request in hand. `cut` is called by the second thread."""

    def __init__(self) -> None:
        self.is_over = False
        self._connections: WeakSet[HTTPConnection] = WeakSet()
        self._lock = Lock()  # a set that grows cannot be gone through

    def connects(self, connection: HTTPConnection) -> None:
        """`connection` is about to be made, and to be cut with the others."""
        with self._lock:
            self._connections.add(connection)

    def cut(self) -> None:
        """The time is up: have whoever waits for an answer come to its end."""
        self.is_over = True
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _cut(connection.sock)

    def check(self) -> None:
        """Raise OSError if the time was up before there was a connection to cut."""
        if self.is_over:
            raise OSError("connected too late")


class StoreSession(requests.Session):
    """Not for two threads at a time. Raises as `requests.Session` does.

    The server at `url` is called itself, whatever the environment says of proxies and whatever
    the server says of others. With a user in `access` the session logs in before each watch, and
    when a request is refused for want of a token that counts.
    """

    def __init__(self, url: str, timeout_s: float, access: StoreAccess) -> None:
        """Let every answer come within `timeout_s` seconds; of one that is streamed its head.

        A connection that is being made is not cut. It has as long for each address of a name, and
        for TLS, and what it takes to resolve the name; then it is too late.
        """
        super().__init__()
        self._url = url
        self._timeout_s = timeout_s
        self._access = access
        self._token = ""
        """Empty: not logged in, which a server may not ask for."""
        self._deadline = _Deadline()
        adapter = HTTPAdapter()
        adapter.poolmanager.pool_classes_by_scheme = _pools_within(self._deadline)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a request; Timeout when the answer takes too long as a whole, RequestException when
        there is no thread to see to that, or when this node is not let in."""
        access = self._access
        kwargs |= {"proxies": {}, "allow_redirects": False}
        if access.ca_file is not None:
            kwargs["verify"] = access.ca_file
        if access.certificate_file is not None:
            kwargs["cert"] = (access.certificate_file, access.key_file or access.certificate_file)
        if access.user is None:
            return self._send(request, **kwargs)
        # A watch with a token of the past is not refused, but ended as one of a forbidden key.
        if kwargs.get("stream"):
            self._log_in(access, kwargs)
            return self._send_with_token(request, **kwargs)
        response = self._send_with_token(request, **kwargs)
        if not _asks_for_log_in(response):
            return response
        response.close()
        self._log_in(access, kwargs)
        return self._send_with_token(request, **kwargs)

    def _log_in(self, access: StoreAccess, kwargs: dict[str, Any]) -> None:
        self._token = ""
        try:
            password = access.read_password()
        except PrivateFileError as error:
            raise requests.RequestException(str(error)) from None
        request = requests.Request(
            "POST",
            f"{self._url}/v3/auth/authenticate",
            json={"name": access.user, "password": password},
        )
        response = self._send(self.prepare_request(request), **{**kwargs, "stream": False})
        if response.ok:
            self._token = str(response.json()["token"])
        elif _NO_LOG_IN not in response.text:
            raise requests.RequestException(
                f"links.etcd_user = {access.user!r} is not let in: {response.text}"
            )

    def _send_with_token(
        self, request: requests.PreparedRequest, **kwargs: Any
    ) -> requests.Response:
        if self._token:
            request.headers["Authorization"] = self._token
        return self._send(request, **kwargs)

    def _send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        deadline = self._deadline
        deadline.is_over = False
        timer = Timer(self._timeout_s, deadline.cut)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError as error:  # the system may have one again soon
            raise requests.RequestException(str(error)) from None
        try:
            response = super().send(request, **kwargs)
        except (requests.RequestException, OSError) as error:
            if deadline.is_over and not isinstance(error, requests.Timeout):
                raise self._too_late() from None
            raise
        finally:
            timer.cancel()
            timer.join()  # it may be at work, and is not to cut the next request
        # A head, or a body of no told length, that was cut looks like a whole one.
        if deadline.is_over:
            response.close()
            raise self._too_late()
        return response

    def _too_late(self) -> requests.Timeout:
        return requests.Timeout(f"the answer has not come as a whole within {self._timeout_s:g} s")


def _asks_for_log_in(response: requests.Response) -> bool:
    if response.status_code == requests.codes.unauthorized:
        return True
    return response.status_code == requests.codes.bad_request and any(
        words in response.text for words in _LOG_IN_AGAIN
    )


def _pools_within(deadline: _Deadline) -> dict[str, type[HTTPConnectionPool]]:
    """Return pools by scheme, which tell `deadline` of what they make."""

    class Http(HTTPConnection):
        def connect(self) -> None:
            deadline.connects(self)
            super().connect()
            deadline.check()

    class Https(HTTPSConnection):
        def connect(self) -> None:
            deadline.connects(self)
            super().connect()
            deadline.check()

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
