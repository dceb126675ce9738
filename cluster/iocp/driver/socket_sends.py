"""One send on each of many sockets, with as little as can be beside the system calls."""

import socket
from collections.abc import Iterable, Sequence

from cluster.iocp.driver.socket_handle import SocketHandle
from cluster.iocp.iocp_event import Buffer

__all__ = ["send_to_each"]

_send = socket.socket.send


def send_to_each(handles: Sequence[SocketHandle], buffers: Iterable[Buffer]) -> list[int]:
    """Send to each of `handles` its one of `buffers`, once and without waiting.

    Returns what was taken of each. 0 stands for nothing, for a handle that is closed, and for a
    failure, which is kept as `broken`.
    """
    socks = [handle.sock for handle in handles]
    if not all(socks):
        pairs = [pair for pair in zip(handles, buffers, strict=False) if pair[0].sock is not None]
        taken = iter(send_to_each([pair[0] for pair in pairs], [pair[1] for pair in pairs]))
        return [0 if sock is None else next(taken) for sock in socks]
    counts: list[int] = []
    # The loop is that of `extend`, in C. A send that raises ends it, with all before it in
    # `counts`, and the next round goes on behind it.
    sends = map(_send, socks, buffers)  # type: ignore[arg-type]  # none of them is None
    while len(counts) < len(socks):
        try:
            counts.extend(sends)
        except BlockingIOError:
            counts.append(0)
        except OSError as error:
            handles[len(counts)].broken = error.errno or 0
            counts.append(0)
    return counts
