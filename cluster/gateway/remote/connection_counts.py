"""Counts who connects and who is refused, as far as ZeroMQ tells.

It tells of connections that were accepted, let in, or failed in their handshake. One that sends
what is no ZeroMQ at all is among the accepted, and only there.
"""

from struct import Struct

import zmq

from cluster.gateway.control import ZmqWatch
from cluster.gateway.counters import Counters
from cluster.iocp import IocpCore

__all__ = ["ConnectionCounts"]

_EVENT = Struct("<HI")
_EVENTS_PER_TURN = 256

_COUNTERS = {
    int(zmq.EVENT_ACCEPTED): "remote_connections",
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): "remote_let_in",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "remote_refused_key",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "remote_refused_protocol",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "remote_refused_gone",
}
"""By event: a key that is not known; no CURVE, or another gateway's key; left or silent."""


class ConnectionCounts:
    """Watches one socket. For the dispatching thread."""

    def __init__(self, core: IocpCore, socket: "zmq.Socket[bytes]", counters: Counters) -> None:
        """Count in `counters` from now on; before the socket is bound nothing can be missed."""
        self._counters = counters
        self._watched = socket
        self._monitor = socket.get_monitor_socket(sum(_COUNTERS))
        self._watch = ZmqWatch(core, int(self._monitor.getsockopt(zmq.FD)), self._take)

    def close(self) -> None:
        """Count no more."""
        self._watch.close()
        if not self._watched.closed:
            self._watched.monitor(None, 0)
        self._monitor.close(linger=0)

    def _take(self) -> bool:
        for _ in range(_EVENTS_PER_TURN):
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._counters.add(_COUNTERS[_EVENT.unpack(frames[0])[0]])
        return True
