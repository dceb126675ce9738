"""How a worker hears of its gateway and speaks to it beside the lane, and what it sleeps on.

The loop knows this contract only, so that the same loop runs in a process of its own, over
ZeroMQ, and inside the process of its gateway, where an application is tested.
"""

import math
import select
from collections.abc import Sequence
from typing import Any, Protocol

import zmq

from cluster.iocp.wake_pair import WakePair
from cluster.shared.messages import ControlMessage, decode_message, encode_message

__all__ = ["ControlLink", "ZmqControlLink"]


class ControlLink(Protocol):
    """The worker's end of the control plane. For the loop's thread, but for `wake`."""

    def send(self, message: ControlMessage) -> None:
        """Tell the gateway something; dropped when it takes nothing: its silence decides."""
        ...

    def receive(self) -> ControlMessage | None:
        """Return the next message, or None. Raises ProtocolError for what is none."""
        ...

    def wake(self) -> None:
        """End the wait that is going on, or the next one. Any thread."""
        ...

    def sources(self) -> Sequence[int]:
        """Return the descriptors that become readable when there is something to wake for.

        That of the lane is among them.
        """
        ...

    def wait(self, timeout_s: float) -> Sequence[int]:
        """Sleep until a source is readable, at most for `timeout_s`.

        Returns those that are to be attended to; that of the lane may be left out.
        """
        ...

    def wait_for_message(self, timeout_s: float) -> None:
        """Sleep until `receive` may have something, at most for `timeout_s`."""
        ...

    def attend(self, source: int) -> bool:
        """See to a source that is readable; return whether `receive` may have something."""
        ...

    def close(self) -> None:
        """Give back what it has made. Idempotent."""
        ...


class ZmqControlLink:
    """The link over a control socket, which stays the caller's."""

    def __init__(self, control: "zmq.Socket[bytes]", lane_fd: int) -> None:
        """Speak over `control`, and wake up for what `lane_fd` tells too."""
        self._control = control
        self._wake_pair = WakePair()
        self._control_fd = int(control.getsockopt(zmq.FD))
        self._wake_fd = self._wake_pair.fileno()
        self._lane_fd = lane_fd
        self._sources = (lane_fd, self._control_fd, self._wake_fd)
        # The same system call with less around it, where there is one.
        self._poller: Any = select.poll() if hasattr(select, "poll") else zmq.Poller()
        for source in self._sources:
            self._poller.register(source, zmq.POLLIN)

    def send(self, message: ControlMessage) -> None:
        try:
            self._control.send(encode_message(message), zmq.NOBLOCK)
        except zmq.Again:
            return

    def receive(self) -> ControlMessage | None:
        try:
            return decode_message(self._control.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None

    def wake(self) -> None:
        try:
            self._wake_pair.wake()
        except OSError:
            return  # the loop has ended

    def sources(self) -> Sequence[int]:
        return self._sources

    def wait(self, timeout_s: float) -> Sequence[int]:
        # Rounded up: a wait that ends before its time would be followed by many short ones.
        ready = self._poller.poll(math.ceil(timeout_s * 1000))
        if len(ready) == 1 and ready[0][0] == self._lane_fd:
            return ()
        return [source for source, _ in ready]

    def wait_for_message(self, timeout_s: float) -> None:
        self._control.poll(math.ceil(timeout_s * 1000))

    def attend(self, source: int) -> bool:
        if source == self._wake_fd:
            self._wake_pair.drain()
        return source == self._control_fd

    def close(self) -> None:
        self._wake_pair.close()
