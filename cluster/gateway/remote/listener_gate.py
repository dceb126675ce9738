"""Shuts a listening TCP socket for a while that belongs to somebody else, which ZeroMQ's does.

ZeroMQ accepts whoever comes, and to unbind would end the connections that it has. So on Linux the
kernel is told to drop what arrives for the listening socket itself, by a filter (socket(7),
`SO_ATTACH_FILTER`): connections that were accepted do not notice, and who wants to make one tries
again, as TCP does.
"""

import ctypes
import logging
import os
import socket
import sys
from struct import Struct

__all__ = ["ListenerGate"]

logger = logging.getLogger("cluster.gateway")

_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27

_INSTRUCTION = Struct("=HBBI")
_PROGRAM = Struct("HP")
_DROP = _INSTRUCTION.pack(0x06, 0, 0, 0)
"""`BPF_RET | BPF_K`: of each packet nothing is kept."""


class ListenerGate:
    """Open at first; elsewhere than on Linux always. For one thread."""

    __slots__ = ("_listener", "is_shut")

    def __init__(self, listener_fd: int) -> None:
        """Keep a descriptor of the socket that has `listener_fd`, until `close`."""
        self.is_shut = False
        self._listener = (
            socket.socket(fileno=os.dup(listener_fd)) if sys.platform == "linux" else None
        )

    def shut(self) -> bool:
        """Have nobody connect; whether that was possible."""
        if self._listener is None:
            return False
        code = ctypes.create_string_buffer(_DROP, len(_DROP))
        program = _PROGRAM.pack(1, ctypes.addressof(code))
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        except OSError as error:  # a kernel that has no filters, as those of some sandboxes
            logger.warning("the connections of workers elsewhere have no bound here: %s", error)
            self.close()
            return False
        self.is_shut = True
        return True

    def open(self) -> None:
        """Let them connect again. Idempotent."""
        if self._listener is not None and self.is_shut:
            self._listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            self.is_shut = False

    def close(self) -> None:
        """Leave the socket to its owner: it listens until both have closed it. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
