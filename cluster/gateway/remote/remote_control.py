"""The control plane for workers on other machines: what they may say, and who says it.

A machine with a key may ask for the shards that are for such workers, and show signs of life. Of
all else that the control plane takes, a drain above all, it may say nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import zmq

from cluster.gateway.control import ControlPlane
from cluster.iocp import IocpCore
from cluster.shared.endpoints import Curve
from cluster.shared.messages import ControlMessage, Hello, WorkerHeartbeat

__all__ = ["RemoteControl", "RemotePeer"]

_PREFIX = b"remote:"


class RemotePeer(NamedTuple):
    """Who is at the other end of a connection, as its handshake has shown."""

    key: str
    """The name of the key."""
    address: str
    """Of the machine."""

    def __str__(self) -> str:
        return f"{self.key} at {self.address}"


class RemoteControl(ControlPlane):
    """A control plane over TCP. Its peers' identities differ from those of this machine's."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        core: IocpCore,
        on_hello: Callable[[bytes, Hello, RemotePeer], None],
        on_heartbeat: Callable[[bytes, WorkerHeartbeat], None],
        curve: Curve,
    ) -> None:
        """Bind `endpoint`, under `curve`; raises zmq.ZMQError when it cannot be bound."""
        self._on_hello = on_hello
        self._on_heartbeat = on_heartbeat
        self._peer = RemotePeer("", "")
        super().__init__(context, endpoint, core, self._take_message, curve)

    @staticmethod
    def has(identity: bytes) -> bool:
        """Whether `identity` is one of such a control plane."""
        return identity.startswith(_PREFIX)

    def send(self, identity: bytes, message: ControlMessage) -> bool:
        """Send `message`; False when that peer's connection has ended, or takes nothing."""
        return super().send(identity.removeprefix(_PREFIX), message)

    def _receive(self) -> list[bytes]:
        frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        last = frames[-1]
        self._peer = RemotePeer(str(last.get("User-Id")), str(last.get("Peer-Address")))
        identity, *rest = [frame.bytes for frame in frames]
        return [_PREFIX + identity, *rest]

    def _take_message(self, identity: bytes, message: ControlMessage) -> None:
        match message:
            case WorkerHeartbeat():
                self._on_heartbeat(identity, message)
            case Hello():
                self._on_hello(identity, message, self._peer)
            case _:
                self.refused += 1
