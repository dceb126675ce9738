"""Hands the descriptors of a grant to the process that has it, over a Unix socket.

The worker connects, says the name of its incarnation, and gets the descriptors or an end of the
connection. The socket is in the run directory, which nobody else may enter. The gateway never
waits for a peer: whoever has not said its name stays in a list of bounded length.
"""

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

__all__ = ["Handover", "HandoverRefusedError", "receive_descriptors"]

_PENDING_MAX = 64
_NAME_BYTES_MAX = 256
_ACCEPTS_PER_TURN = 16
_PAUSE_S = 0.1
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class HandoverRefusedError(Exception):
    """There are no descriptors for this name, or nobody answered in time."""


class Handover:
    """The gateway's side. For one thread."""

    def __init__(self, path: str, find: Callable[[bytes], Sequence[int]]) -> None:
        """Listen at `path`; `find(name)` returns the descriptors for a name, none if it has none.

        Raises OSError when the path cannot be had.
        """
        self._find = find
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._poller = select.epoll()
        self._pending: dict[int, socket.socket] = {}
        self._paused_until = 0.0
        self.refused = 0
        """Peers that were sent away before they had said a name, to make room or for want of it."""
        try:
            self._listener.bind(path)
            self._listener.listen(_PENDING_MAX)
            self._listener.setblocking(False)
            self._poller.register(self._listener, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable while there is something to `serve`."""
        return self._poller.fileno()

    def serve(self) -> None:
        """Serve everybody who has come and spoken."""
        ready = [fd for fd, _ in self._poller.poll(0)]
        # Who has spoken goes first: nobody has to make room for others before that.
        for fd in ready:
            peer = self._pending.pop(fd, None)
            if peer is not None:
                self._answer(peer)
        if self._listener.fileno() in ready:
            self._accept()

    def go_on(self) -> None:
        """Accept again, if that was put off for want of descriptors and it is time to."""
        if self._paused_until and time.monotonic() >= self._paused_until:
            self._paused_until = 0.0
            self._poller.modify(self._listener, select.EPOLLIN)

    def close(self) -> None:
        """Close everything; the path stays for whoever keeps the directory. Idempotent."""
        self._listener.close()
        for peer in self._pending.values():
            peer.close()
        self._pending.clear()
        self._poller.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    # They stay in the backlog, and would be announced again at once.
                    self._paused_until = time.monotonic() + _PAUSE_S
                    self._poller.modify(self._listener, 0)
                return
            peer.setblocking(False)
            while len(self._pending) >= _PENDING_MAX:
                self._pending.pop(next(iter(self._pending))).close()
                self.refused += 1
            try:
                self._poller.register(peer, select.EPOLLIN)
            except OSError:  # no memory to wait for it; another process of the worker comes
                peer.close()
                self.refused += 1
                continue
            self._pending[peer.fileno()] = peer

    def _answer(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            self._poller.unregister(peer)
            descriptors = self._find(peer.recv(_NAME_BYTES_MAX))
            if descriptors:
                socket.send_fds(peer, [b"\0"], descriptors)


def receive_descriptors(path: str, name: bytes, count: int, timeout_s: float) -> list[int]:
    """Return the `count` descriptors that the gateway at `path` has for `name`.

    They are the caller's. Raises HandoverRefusedError when it has none, or within `timeout_s`
    does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(timeout_s)
        try:
            peer.connect(path)
            peer.send(name)
            _, descriptors, _, _ = socket.recv_fds(peer, 1, count)
        except OSError as error:
            raise HandoverRefusedError(f"the gateway hands over no lane: {error}") from None
    for fd in descriptors:
        os.set_inheritable(fd, False)
    if len(descriptors) != count:
        for fd in descriptors:
            os.close(fd)
        raise HandoverRefusedError(
            f"the gateway has no lane for {name!r}: another incarnation has the shard"
        )
    return descriptors
