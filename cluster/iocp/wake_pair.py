"""What ends a wait from another thread, wherever a wait is for sockets."""

import socket

__all__ = ["WakePair"]


class WakePair:
    """A connected pair of sockets: one is waited for, the other is written to."""

    __slots__ = ("_reader", "_writer")

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor that is readable from a `wake` until `drain`."""
        return self._reader.fileno()

    def wake_fileno(self) -> int:
        """Return the descriptor by which `signal.set_wakeup_fd` has signals end the wait."""
        return self._writer.fileno()

    def wake(self) -> None:
        """End the wait that goes on now, or else the next. Any thread; OSError after `close`."""
        try:
            self._writer.send(b"\0")
        except BlockingIOError:
            return  # full of wake-ups that nobody has read yet: one is enough

    def drain(self) -> None:
        """Forget the wake-ups there have been, because the wait has ended.

        Of very many some may be on their way yet, and end another wait.
        """
        try:
            while len(self._reader.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give both sockets back. Idempotent."""
        self._reader.close()
        self._writer.close()
