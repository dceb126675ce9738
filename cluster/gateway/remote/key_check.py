"""Whose key is it? ZeroMQ asks for each connection, by its own protocol (RFC 27, ZAP).

It asks only after the other side has shown that it knows the gateway's public key and has the
secret of its own; until it is answered the connection can say nothing. A key is let in if it is
among the files of workers' keys. `zmq.auth` has the same, with a thread that polls; here the
gateway's own loop answers.
"""

import logging
from collections.abc import Callable

import zmq
from zmq.utils import z85

from cluster.gateway.watch import ZmqWatch
from cluster.iocp import IocpCore
from cluster.shared.key_files import KnownWorkers
from cluster.shared.limited_log import LimitedLog
from cluster.shared.remote_endpoints import ZAP_DOMAIN

__all__ = ["KeyCheck", "answer"]

logger = logging.getLogger("cluster.gateway")

_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_REQUESTS_PER_TURN = 64


def answer(request: list[bytes], name_of: Callable[[bytes], str | None]) -> list[bytes]:
    """Return the reply to a request of ZAP, both without their envelopes.

    `name_of` tells whose public key it is, or None. It is the `User-Id` of the connection.
    """
    sequence, domain, mechanism, credentials = request[1], request[2], request[5], request[6:]
    name = None
    if domain == ZAP_DOMAIN and mechanism == b"CURVE" and len(credentials) == 1:
        name = name_of(z85.encode(credentials[0]))
    if name is None:
        return [_VERSION, sequence, b"400", b"this key is not known here", b"", b""]
    return [_VERSION, sequence, b"200", b"OK", name.encode(), b""]


class KeyCheck:
    """Answers for one ZeroMQ context. For the dispatching thread."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", core: IocpCore, workers: KnownWorkers
    ) -> None:
        """Let in `workers`. Make this before the sockets that are to ask."""
        self._workers = workers
        self._refused = LimitedLog(logger, core.now)
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ENDPOINT)
        self._watch = ZmqWatch(core, self._socket, self._take)

    def close(self) -> None:
        """Let nobody in any more."""
        self._watch.close()
        self._socket.close(linger=0)

    def _take(self) -> bool:
        for _ in range(_REQUESTS_PER_TURN):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._reply(frames)
        return True

    def _reply(self, frames: list[bytes]) -> None:
        # Two frames of envelope. What follows comes from ZeroMQ itself, in its one format.
        reply = answer(frames[2:], self._workers.name_of)
        if reply[2] != b"200":
            address = frames[5].decode("ascii", "replace")
            self._refused.warn(
                "refused a worker at %s: its key is not in %s", address, self._workers.directory
            )
        self._socket.send_multipart([*frames[:2], *reply], zmq.NOBLOCK)
