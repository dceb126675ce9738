"""Memory that the kernel reads while an operation is in flight: gathers and addresses.

The object is the pin: whoever drops it before the completion was reaped lets the kernel read
freed memory, so the driver's table of operations holds it.
"""

import ctypes
import socket
from collections.abc import Sequence
from struct import Struct

from cluster.iocp.iocp_event import Buffer
from cluster.iocp.net_address import PARTS_OF_IPV6, NetAddress

__all__ = ["Gather", "SocketAddress"]

_IOVEC = Struct("<QQ")
_MSGHDR = Struct("<QI4xQQQQi4x")
"""name, its length, iovecs, their number, control, its length, flags"""

_PYBUF_SIMPLE = 0


class _PyBuffer(ctypes.Structure):
    """Py_buffer, whose layout is part of the stable ABI since Python 3.11."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)
_release_buffer.restype = None


class Gather:
    """Buffers of any kind as one msghdr at `address`, not copied, and kept until `release`."""

    __slots__ = ("_exports", "_iovecs", "_msghdr", "address")

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._exports: list[_PyBuffer] = []
        self._iovecs = ctypes.create_string_buffer(_IOVEC.size * len(buffers))
        for index, buffer in enumerate(buffers):
            export = _PyBuffer()
            _get_buffer(buffer, ctypes.byref(export), _PYBUF_SIMPLE)
            self._exports.append(export)
            _IOVEC.pack_into(self._iovecs, index * _IOVEC.size, export.buf or 0, export.len)
        iovecs = ctypes.addressof(self._iovecs)
        self._msghdr = ctypes.create_string_buffer(
            _MSGHDR.pack(0, 0, iovecs, len(buffers), 0, 0, 0), _MSGHDR.size
        )
        self.address = ctypes.addressof(self._msghdr)

    def release(self) -> None:
        """Give the buffers back to their owners. Idempotent."""
        for export in self._exports:
            _release_buffer(ctypes.byref(export))
        self._exports.clear()


class SocketAddress:
    """A struct sockaddr of `size` bytes at `address`."""

    __slots__ = ("_data", "address", "size")

    def __init__(self, net_address: NetAddress) -> None:
        """Raises OSError for a host that is not numeric, and an interface that there is not."""
        family = net_address.family
        head = int(family).to_bytes(2, "little") + net_address.port.to_bytes(2, "big")
        sockaddr = net_address.sockaddr
        host = socket.inet_pton(family, sockaddr[0])
        if family == socket.AF_INET6:
            scope = sockaddr[3] if len(sockaddr) == PARTS_OF_IPV6 else 0
            data = head + bytes(4) + host + scope.to_bytes(4, "little")
        else:
            data = head + host + bytes(8)
        self.size = len(data)
        self._data = ctypes.create_string_buffer(data, self.size)
        self.address = ctypes.addressof(self._data)

    def release(self) -> None:
        """Nothing is pinned but this object."""
