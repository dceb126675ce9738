"""Counts who connects and who is refused, as far as ZeroMQ tells, and bounds how many there are.

It tells of connections that were accepted, let in, or failed in their handshake. One that sends
what is no ZeroMQ at all is among the accepted, and only there. Of each that was accepted it tells
the end, but not which of them were let in: so the bound is one for all.
"""

import logging
from struct import Struct

import zmq

from cluster.gateway.counters import Counters
from cluster.gateway.remote.listener_gate import ListenerGate
from cluster.gateway.watch import ZmqWatch
from cluster.iocp import IocpCore
from cluster.shared.limited_log import LimitedLog

__all__ = ["UNPROVED_MAX", "ConnectionCounts"]

logger = logging.getLogger("cluster.gateway")

UNPROVED_MAX = 64
"""Connections of one port beside those of workers that have a shard."""

_ROOM = 32
"""Whose end opens a port that was shut."""

_EVENT = Struct("<HI")
_EVENTS_PER_TURN = 256
_LINES_INTERVAL_S = 60.0

_COUNTERS = {
    int(zmq.EVENT_ACCEPTED): "remote_connections",
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): "remote_let_in",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "remote_refused_key",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "remote_refused_protocol",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "remote_refused_gone",
}
"""By event: a key that is not known; no CURVE, or another gateway's key; left or silent."""

_LISTENING = int(zmq.EVENT_LISTENING)
_ACCEPTED = int(zmq.EVENT_ACCEPTED)
_DISCONNECTED = int(zmq.EVENT_DISCONNECTED)


class ConnectionCounts:
    """Watches one socket. For the dispatching thread."""

    def __init__(
        self,
        core: IocpCore,
        socket: "zmq.Socket[bytes]",
        counters: Counters,
        connections_max: int,
    ) -> None:
        """Count in `counters` from now on; before the socket is bound nothing can be missed.

        While there are `connections_max`, nobody else can connect (`ListenerGate`). Those that
        ZeroMQ accepts until this thread hears of them come on top.
        """
        self._counters = counters
        self._watched = socket
        self._connections_max = connections_max
        self._connections: set[int] = set()
        """Their descriptors, which are ZeroMQ's."""
        self._gate: ListenerGate | None = None
        self._crowded = LimitedLog(logger, core.now, 1, _LINES_INTERVAL_S)
        self._monitor = socket.get_monitor_socket(sum(_COUNTERS) + _LISTENING + _DISCONNECTED)
        self._watch = ZmqWatch(core, self._monitor, self._take)

    def close(self) -> None:
        """Count no more."""
        self._watch.close()
        if not self._watched.closed:
            self._watched.monitor(None, 0)
        self._monitor.close(linger=0)
        if self._gate is not None:
            self._gate.close()

    def _take(self) -> bool:
        for _ in range(_EVENTS_PER_TURN):
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            event, value = _EVENT.unpack(frames[0])
            if event in _COUNTERS:
                self._counters.add(_COUNTERS[event])
            if event == _ACCEPTED:
                self._connections.add(value)
                self._shut_if_full()
            elif event == _DISCONNECTED:
                self._connections.discard(value)
                self._open_if_room()
            elif event == _LISTENING:
                self._gate = ListenerGate(value)
        return True

    def _shut_if_full(self) -> None:
        gate = self._gate
        if gate is None or gate.is_shut or len(self._connections) < self._connections_max:
            return
        if not gate.shut():
            return
        self._counters.add("remote_crowded")
        self._crowded.warn(
            "%d connections at the port for workers elsewhere, most of which have not proved a "
            "key: nobody else can connect until some have ended; let only workers reach "
            "remote.listen",
            len(self._connections),
        )

    def _open_if_room(self) -> None:
        if self._gate is not None and len(self._connections) <= self._connections_max - _ROOM:
            self._gate.open()
