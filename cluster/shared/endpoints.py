"""Where the ZeroMQ sockets of a node are, and what it takes to connect to them.

Where ZeroMQ has Unix sockets they are in the run directory, which nobody else may enter, and all
know their paths. Where it has none, which is Windows, they are on loopback TCP, to which any
user of the machine could connect: there CURVE keeps out who does not know the server's key, and
the gateway leaves that key and the port it was given in the run directory. See
docs/decisions/0008-loopback-curve.md.
"""

from typing import NamedTuple, Protocol

import msgspec
import zmq

from cluster.shared.run_directory import ENDPOINT_FILE, RunDirectory

__all__ = [
    "FIND_INTERVAL_S",
    "Curve",
    "CurveClient",
    "CurveServer",
    "Endpoint",
    "IpcEndpoints",
    "LoopbackEndpoints",
    "NodeEndpoints",
    "choose_endpoints",
]

FIND_INTERVAL_S = 0.02
"""Where its place is not known before, a gateway is looked for so often."""

_LOOPBACK = "tcp://127.0.0.1:*"


class Curve(Protocol):
    """One side's part in keeping strangers out."""

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Set the options of `socket`, before it is bound or connected."""


class CurveServer:
    """The side that binds, with a key pair of its own for each life of a gateway."""

    __slots__ = ("_secret_key", "public_key")

    def __init__(self) -> None:
        self.public_key, self._secret_key = zmq.curve_keypair()

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Let `socket` take only connections of those who know the public key."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._secret_key)


class CurveClient:
    """The side that connects, knowing the server's key. Its own key pair proves nothing."""

    __slots__ = ("_public_key", "_secret_key", "_server_key")

    def __init__(self, server_key: bytes) -> None:
        self._server_key = server_key
        self._public_key, self._secret_key = zmq.curve_keypair()

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Let `socket` connect to who has the secret to the server's key, and to nobody else."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self._server_key)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._public_key)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._secret_key)


class Endpoint(NamedTuple):
    """An address of ZeroMQ, and what a socket needs to be bound or connected there."""

    address: str
    curve: Curve | None = None


class NodeEndpoints(Protocol):
    """How the processes of one node find each other."""

    def open(self) -> tuple[Endpoint, Endpoint]:
        """Return where a new gateway binds its control plane and its lanes."""
        ...

    def publish(self, control_address: str) -> None:
        """Tell that the control plane of `open` is bound there; raises RunDirectoryError."""

    def find_control(self) -> Endpoint | None:
        """Return where to connect to the control plane, None if no gateway has told yet.

        The lanes take the same `curve`. Raises RunDirectoryError.
        """
        ...

    def forget(self) -> None:
        """Have nobody find a gateway that has ended. Only for whoever knows that it has."""


class IpcEndpoints:
    """Unix sockets in the run directory."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory

    def open(self) -> tuple[Endpoint, Endpoint]:
        sockets = self._directory.sockets
        return Endpoint(sockets.control_endpoint()), Endpoint(sockets.lane_endpoint())

    def publish(self, control_address: str) -> None:
        """Do nothing: the path is known."""

    def find_control(self) -> Endpoint:
        return Endpoint(self._directory.sockets.control_endpoint())

    def forget(self) -> None:
        """Do nothing: `NodeSockets.remove_stale` does."""


class LoopbackEndpoints:
    """Loopback TCP with CURVE, on ports that the system chooses."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._server: CurveServer | None = None

    def open(self) -> tuple[Endpoint, Endpoint]:
        self.forget()
        self._server = CurveServer()
        return Endpoint(_LOOPBACK, self._server), Endpoint(_LOOPBACK, self._server)

    def publish(self, control_address: str) -> None:
        assert self._server is not None, "published before opened"
        published = _Published(control_address, self._server.public_key.decode("ascii"))
        self._directory.write_json(ENDPOINT_FILE, published)

    def find_control(self) -> Endpoint | None:
        published = self._directory.read_json(ENDPOINT_FILE, _Published)
        if published is None:
            return None
        return Endpoint(published.control, CurveClient(published.server_key.encode("ascii")))

    def forget(self) -> None:
        self._directory.remove(ENDPOINT_FILE)


class _Published(msgspec.Struct, frozen=True):
    control: str
    server_key: str


def choose_endpoints(directory: RunDirectory) -> NodeEndpoints:
    """Return how processes meet on this system; the one place that decides it."""
    if zmq.has("ipc"):
        return IpcEndpoints(directory)
    return LoopbackEndpoints(directory)
