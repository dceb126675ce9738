"""The gateway's end of the control plane: one ROUTER socket, watched by the completion port."""

import logging
from collections.abc import Callable

import zmq

from cluster.gateway.watch import ZmqWatch
from cluster.iocp import IocpCore
from cluster.shared.endpoints import Curve
from cluster.shared.messages import (
    ControlMessage,
    ProtocolError,
    Refuse,
    decode_message,
    encode_message,
)
from cluster.shared.zmq_sockets import open_control_socket

__all__ = ["ControlPlane"]

logger = logging.getLogger("cluster.gateway")

MESSAGES_PER_TURN = 64


class ControlPlane:
    """Receives control messages and answers them. For the dispatching thread."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        core: IocpCore,
        handle: Callable[[bytes, ControlMessage], None],
        curve: Curve | None = None,
    ) -> None:
        """Bind `endpoint`, under `curve`; `handle(identity, message)` takes each message.

        Raises zmq.ZMQError when it cannot be bound.
        """
        self._socket = open_control_socket(context, zmq.ROUTER, curve)
        self._handle = handle
        self._has_sent = False
        self.refused = 0
        """Frames that were no messages, or of another protocol version."""
        try:
            self._socket.bind(endpoint)
        except BaseException:
            self._socket.close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        """The address that was bound, with the port that was taken for a free one."""
        self._watch = ZmqWatch(core, self._socket, self._take)

    def send(self, identity: bytes, message: ControlMessage) -> bool:
        """Send `message`; False when that peer has gone or takes nothing."""
        self._has_sent = True
        try:
            self._socket.send_multipart([identity, encode_message(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def check(self) -> bool:
        """Look for messages whose announcement a send may have swallowed, if any was made."""
        has_sent, self._has_sent = self._has_sent, False
        if has_sent:
            self._watch.check()
        return has_sent

    def close(self, linger_ms: int = 0) -> None:
        """Close, giving what was sent last `linger_ms` to leave."""
        self._watch.close()
        self._socket.close(linger=linger_ms)

    def _take(self) -> bool:
        for _ in range(MESSAGES_PER_TURN):
            try:
                frames = self._receive()
            except zmq.Again:
                return False
            self._take_frames(frames)
        return True

    def _receive(self) -> list[bytes]:
        """Return the frames of the next message; raises zmq.Again when there is none."""
        return self._socket.recv_multipart(zmq.NOBLOCK)

    def _take_frames(self, frames: list[bytes]) -> None:
        identity = frames[0]
        try:
            if len(frames) != 2:
                raise ProtocolError(f"a control message of {len(frames) - 1} frames")
            message = decode_message(frames[1])
        except ProtocolError as error:
            self.refused += 1
            logger.warning("refused a control message: %s", error)
            self.send(identity, Refuse(reason=str(error)))
            return
        self._handle(identity, message)
