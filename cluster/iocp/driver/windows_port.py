"""The completion port of Windows itself: association, waking, and taking completions in batches.

`_overlapped` of the standard library starts operations, but takes completions one at a time, so
GetQueuedCompletionStatusEx is called through ctypes. An operation is known by the address of its
OVERLAPPED, which nothing else has while its object lives: whoever starts one keeps the object
until `wait` has brought that address.
"""

import _overlapped  # type: ignore[import-not-found]  # typeshed has no stub of it
import _winapi
import ctypes
import struct
from contextlib import suppress
from ctypes import wintypes
from threading import Lock
from typing import Protocol, cast

from cluster.iocp.iocp_event import Buffer

__all__ = ["BATCH_MAX", "CompletionPort", "Overlapped", "new_overlapped"]

BATCH_MAX = 256
"""Completions that one system call takes at most."""

_WAKE_ADDRESS = 1
"""Stands for no operation: an OVERLAPPED never has an odd address."""

_WAIT_TIMEOUT = 258
_NO_EVENT = 0

_ENTRY = struct.Struct("PPPI0P")
"""OVERLAPPED_ENTRY: key, address of the OVERLAPPED, a reserved word, bytes moved."""

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_get_completions = _kernel32.GetQueuedCompletionStatusEx
_get_completions.argtypes = [
    wintypes.HANDLE,
    ctypes.c_void_p,
    wintypes.ULONG,
    ctypes.c_void_p,
    wintypes.DWORD,
    wintypes.BOOL,
]
_get_completions.restype = wintypes.BOOL


class Overlapped(Protocol):
    """`_overlapped.Overlapped`: one operation. Starting raises OSError when it fails at once.

    What was started keeps its buffer until the object goes.
    """

    @property
    def address(self) -> int:
        """The address that the completion port gives back."""
        ...

    def AcceptEx(self, listener: int, accepted: int, /) -> None:
        """Accept a client of `listener` into the unbound socket `accepted`."""

    def ConnectEx(self, handle: int, address: tuple[object, ...], /) -> None:
        """Connect a bound socket to a numeric address."""

    def DisconnectEx(self, handle: int, flags: int, /) -> None:
        """Disconnect, and with TF_REUSE_SOCKET make the socket fit for another connection."""

    def WSARecv(self, handle: int, size: int, flags: int, /) -> None:
        """Receive up to `size` bytes; 0 waits until there are any and takes none."""

    def WSASend(self, handle: int, data: Buffer, flags: int, /) -> None:
        """Send `data`."""

    def cancel(self) -> None:
        """Ask for the end of the operation; nothing happens when it is over."""

    def getresult(self, wait: bool = False, /) -> bytes | int:
        """Return what was received or how much was moved; raises OSError when it failed."""
        ...


def new_overlapped() -> Overlapped:
    """Return an operation that is to be started once, and completes by a port only."""
    return cast(Overlapped, _overlapped.Overlapped(_NO_EVENT))


class CompletionPort:
    """A completion port. `associate` and `wake` may come from any thread, `wait` from one."""

    __slots__ = (
        "_count",
        "_count_address",
        "_entries",
        "_entries_address",
        "_is_closed",
        "_lock",
        "_port",
        "_view",
    )

    def __init__(self, threads: int) -> None:
        """Make a port for `threads` dispatching threads; raises OSError."""
        self._port: int = _overlapped.CreateIoCompletionPort(
            _overlapped.INVALID_HANDLE_VALUE, 0, 0, threads
        )
        self._entries = ctypes.create_string_buffer(BATCH_MAX * _ENTRY.size)
        self._entries_address = ctypes.addressof(self._entries)
        self._view = memoryview(self._entries)
        self._count = wintypes.ULONG()
        self._count_address = ctypes.addressof(self._count)
        self._is_closed = False
        self._lock = Lock()  # or a wake-up could be for what has got the number of the handle

    def associate(self, socket_handle: int) -> None:
        """Have all operations of a socket complete here, until it is closed; raises OSError."""
        _overlapped.CreateIoCompletionPort(socket_handle, self._port, 0, 0)

    def wake(self) -> None:
        """End the current `wait`, or the next one; a no-op once the port is closed.

        Where the system has no memory for that it does nothing: who waits must not rely on it for
        ever.
        """
        with self._lock:
            if not self._is_closed:
                with suppress(OSError):
                    _overlapped.PostQueuedCompletionStatus(self._port, 0, 0, _WAKE_ADDRESS)

    def wait(self, timeout_ms: int, limit: int) -> list[tuple[int, int]]:
        """Wait and return up to `limit` completions: address and bytes moved, wake-ups left out.

        Raises OSError when the port itself fails.
        """
        if not _get_completions(
            self._port,
            self._entries_address,
            min(limit, BATCH_MAX),
            self._count_address,
            timeout_ms,
            False,
        ):
            error = ctypes.get_last_error()
            if error == _WAIT_TIMEOUT:
                return []
            raise ctypes.WinError(error)
        entries = self._view[: self._count.value * _ENTRY.size]
        return [
            (address, num_bytes)
            for _, address, _, num_bytes in _ENTRY.iter_unpack(entries)
            if address != _WAKE_ADDRESS
        ]

    def close(self) -> None:
        """Give the port back. Not while anybody waits. Idempotent."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                _winapi.CloseHandle(self._port)
