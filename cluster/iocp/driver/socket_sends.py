"""Sends that cannot wait, on the system's sockets: what drivers that use these have in common."""

import socket
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any

from cluster.iocp.driver.contract import Handle
from cluster.iocp.iocp_event import Buffer

__all__ = ["SocketSends"]

_send = socket.socket.send


class SocketSends:
    """The part of `Driver` that sends at once, for handles that are a `SocketHandle`.

    A failure is kept as the handle's `broken`.
    """

    __slots__ = ()

    def send_now(self, handle: Handle, data: Buffer) -> int:
        try:
            return handle.sock.send(data)  # type: ignore[attr-defined, no-any-return]
        except BlockingIOError:
            return 0
        except OSError as error:
            handle.broken = error.errno or 0  # type: ignore[attr-defined]
            return 0
        except AttributeError:  # the handle is closed
            return 0

    def send_now_to_each(self, handles: Sequence[Handle], buffers: Iterable[Buffer]) -> list[int]:
        socks: list[Any] = [handle.sock for handle in handles]  # type: ignore[attr-defined]
        if not all(socks):
            pairs = [*compress(zip(handles, buffers, strict=False), socks)]
            taken = iter(
                self.send_now_to_each([pair[0] for pair in pairs], [pair[1] for pair in pairs])
            )
            return [0 if sock is None else next(taken) for sock in socks]
        counts: list[int] = []
        # The loop is that of `extend`, in C. A send that raises ends it, with all before it in
        # `counts`, and the next round goes on behind it.
        sends = map(_send, socks, buffers)
        while len(counts) < len(socks):
            try:
                counts.extend(sends)
            except BlockingIOError:
                counts.append(0)
            except OSError as error:
                handles[len(counts)].broken = error.errno or 0  # type: ignore[attr-defined]
                counts.append(0)
        return counts
