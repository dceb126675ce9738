"""Where workers of other machines come in: their control plane and their lanes, over TCP."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import zmq

from cluster.gateway.counters import Counters
from cluster.gateway.remote.connection_counts import UNPROVED_MAX, ConnectionCounts
from cluster.gateway.remote.key_check import KeyCheck
from cluster.gateway.remote.remote_control import RemoteControl, RemotePeer
from cluster.iocp import IocpCore, NetAddress
from cluster.shared.batch_bytes import accepted_batch_bytes
from cluster.shared.config import Config
from cluster.shared.endpoints import Curve
from cluster.shared.key_files import KeyPair, KnownWorkers
from cluster.shared.messages import Hello, WorkerHeartbeat
from cluster.shared.remote_endpoints import RemoteServer, address_of
from cluster.shared.zmq_lane import ZmqLaneHub

__all__ = ["RemoteDoor", "RemoteKeys"]

CONTROL_BYTES_MAX = 1 << 20
"""Several times the longest hello."""

PER_SHARD = 2
"""Connections at one port: that of a worker, and that of its predecessor."""

FRAME_BYTES = 1_024
"""What headers and encryption add to a batch."""


class RemoteKeys(NamedTuple):
    """The gateway's own pair, and the workers that it knows."""

    own: KeyPair
    workers: KnownWorkers


class _CountedCurve:
    """A `Curve` that also has the connections of each of its sockets counted."""

    def __init__(self, curve: Curve, watch: Callable[["zmq.Socket[bytes]"], None]) -> None:
        self._curve = curve
        self._watch = watch

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        self._curve.apply(socket)
        self._watch(socket)  # before it is bound, so that nothing is missed


class RemoteDoor:
    """The sockets of one gateway for workers on other machines. For the dispatching thread."""

    def __init__(
        self,
        config: Config,
        keys: RemoteKeys,
        core: IocpCore,
        counters: Counters,
        on_hello: Callable[[bytes, Hello, RemotePeer], None],
        on_heartbeat: Callable[[bytes, WorkerHeartbeat], None],
    ) -> None:
        """Bind `remote.listen` and the port behind it. `core` stays the caller's.

        Raises OSError, which zmq.ZMQError is not, when an address cannot be had.
        """
        assert config.remote.listen is not None
        address = NetAddress.parse(config.remote.listen).resolve()
        self._core = core
        self._counters = counters
        self._counts: list[ConnectionCounts] = []
        self._connections_max = UNPROVED_MAX + PER_SHARD * len(config.remote.shards)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with ExitStack() as opened:
            opened.callback(self._context.term)
            key_check = KeyCheck(self._context, core, keys.workers)
            opened.callback(key_check.close)
            opened.callback(self._stop_counting)
            is_ipv6 = ":" in address.host
            batch_bytes_max = accepted_batch_bytes(config.lane.max_batch_bytes) + FRAME_BYTES
            control_curve, lane_curve = (
                _CountedCurve(
                    RemoteServer(
                        keys.own, bytes_max, config.workers.worker_timeout_s, is_ipv6=is_ipv6
                    ),
                    self._count,
                )
                for bytes_max in (CONTROL_BYTES_MAX, batch_bytes_max)
            )
            try:
                self.control = RemoteControl(
                    self._context, address_of(address), core, on_hello, on_heartbeat, control_curve
                )
                opened.callback(self.control.close)
                self.hub = ZmqLaneHub(self._context, address_of(address, 1), lane_curve)
            except zmq.ZMQError as error:
                raise OSError(error.errno, error.strerror) from None
            opened.callback(self.hub.close)
            self._opened = opened.pop_all()
        self.listen = self.control.endpoint.removeprefix("tcp://")
        """Where workers connect, as HOST:PORT."""

    def _count(self, socket: "zmq.Socket[bytes]") -> None:
        self._counts.append(
            ConnectionCounts(self._core, socket, self._counters, self._connections_max)
        )

    def _stop_counting(self) -> None:
        for counts in self._counts:
            counts.close()

    def close(self, linger_ms: int) -> None:
        """Close all, giving what was sent last `linger_ms` to leave. Idempotent."""
        self.control.close(linger_ms)
        self._opened.close()
