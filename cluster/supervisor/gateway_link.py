"""The supervisor's end of the control plane: one DEALER for each life of the gateway.

A message for one gateway must never reach its successor, so the socket, and what waits in it,
ends with the gateway that it was for.
"""

import logging
from collections.abc import Iterator

import zmq

from cluster.shared.endpoints import Endpoint
from cluster.shared.messages import ControlMessage, ProtocolError, decode_message, encode_message

__all__ = ["GatewayLink", "GatewayNotReading"]

logger = logging.getLogger("cluster.supervisor")

_RECONNECT_MS = 10
"""The gateway binds a fraction of a second after it was started. Each wait is time to ready, so
unlike others the supervisor does not wait longer each time: there is one of it."""

_QUEUE_MESSAGES_MAX = 10_000
"""Far more than a gateway that reads can ever leave."""

_RECEIVE_BATCH_MAX = 1_000


class GatewayNotReading(Exception):
    """The gateway has left so many messages unread that it cannot be working."""


class GatewayLink:
    """Messages to and from one life of the gateway. For the thread that made it."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """Messages are queued; `connect` says where they go."""
        # Unlike elsewhere in a node, messages are queued before the connection is there: the
        # first hello then arrives with it.
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self.socket.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES_MAX)
        self.socket.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES_MAX)
        self.is_connected = False
        """Whether it is known where the gateway is; nothing is to be sent before."""

    def connect(self, endpoint: Endpoint) -> None:
        """Connect to `endpoint`, now or as soon as there is something bound to it."""
        if endpoint.curve is not None:
            endpoint.curve.apply(self.socket)
        self.socket.connect(endpoint.address)
        self.is_connected = True

    def send(self, message: ControlMessage) -> None:
        """Queue `message`, also before the gateway is there. Raises GatewayNotReading."""
        try:
            self.socket.send(encode_message(message), zmq.DONTWAIT)
        except zmq.Again:
            raise GatewayNotReading from None

    def receive(self) -> Iterator[ControlMessage]:
        """Yield what has come, without waiting, a bounded number at a time."""
        for _ in range(_RECEIVE_BATCH_MAX):
            try:
                frame = self.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                yield decode_message(frame)
            except ProtocolError as error:
                logger.error("the gateway sent %s", error)

    def close(self) -> None:
        """Drop what was not sent. Idempotent."""
        self.socket.close()
