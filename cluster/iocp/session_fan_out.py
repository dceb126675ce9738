"""Bytes for many sessions at once: what `Session.send_now` does, done for all of them.

Most are connected with nothing in their queues. For those the driver makes the sends in one go, and
the work for each is little beside the system call.
"""

from collections.abc import Sequence
from itertools import repeat

from cluster.iocp.driver.contract import Handle
from cluster.iocp.iocp_event import Buffer
from cluster.iocp.session import Session
from cluster.iocp.session_state import SessionState

__all__ = ["send_now_each_its_own", "send_now_to_each"]

_CONNECTED = SessionState.CONNECTED


def send_now_to_each(sessions: Sequence[Session], data: bytes) -> int:
    """Send `data` to each of `sessions`, of one core; return how many of them have taken it.

    To each it is sent as by `send_now`: by one attempt that cannot wait, or queued, without a copy;
    one that is not connected takes nothing, one whose queue overflows is aborted. No session may be
    there twice. For the thread that dispatches, the only one, outside the callbacks of these
    sessions, and while no other thread sends to them or ends them: no lock is taken for those that
    can send at once.
    """
    taken, ready = 0, sessions
    handles = _ready_handles(sessions)
    if len(handles) < len(sessions):
        others = _cannot_send_at_once(sessions)
        taken = sum(session.send_now(data) for session in others)
        ready = [session for session in sessions if session not in others]
        handles = _handles(ready)
    if ready:
        counts = ready[0]._driver.send_now_to_each(handles, repeat(data))
        taken += len(ready)
        size = len(data)
        if counts.count(size) == len(counts):
            for session in ready:
                session._sent_bytes += size
        else:
            for session, count in zip(ready, counts, strict=True):
                taken -= not _has_taken(session, data, count)
    return taken


def send_now_each_its_own(
    sessions: Sequence[Session], buffers: Sequence[Buffer]
) -> tuple[int, int]:
    """Send to each of `sessions` its one of `buffers`, as `send_now_to_each` sends the same to all.

    Returns how many of them have taken it, and how many bytes these were. The buffers are the
    caller's again on return: what is queued of one is copied unless it is bytes.
    """
    sizes = list(map(len, buffers))
    taken, num_bytes = len(sizes), sum(sizes)
    handles = _ready_handles(sessions)
    if len(handles) < len(sessions):
        others = _cannot_send_at_once(sessions)
        ready = []
        for session, data in zip(sessions, buffers, strict=True):
            if session not in others:
                ready.append((session, data))
            elif not session.send_now(data):
                taken -= 1
                num_bytes -= len(data)
        sessions, buffers = [pair[0] for pair in ready], [pair[1] for pair in ready]
        sizes = list(map(len, buffers))
        handles = _handles(sessions)
    if not handles:
        return taken, num_bytes
    counts = sessions[0]._driver.send_now_to_each(handles, buffers)
    if counts == sizes:
        for session, size in zip(sessions, sizes, strict=True):
            session._sent_bytes += size
    else:
        for session, data, count in zip(sessions, buffers, counts, strict=True):
            if not _has_taken(session, data, count):
                taken -= 1
                num_bytes -= len(data)
    return taken, num_bytes


def _ready_handles(sessions: Sequence[Session]) -> list[Handle]:
    """Return the handles of those of `sessions` that are connected with nothing queued."""
    return [
        session.handle  # type: ignore[misc]  # who is connected has one
        for session in sessions
        if not session._send_registered and session._state is _CONNECTED
    ]


def _handles(sessions: Sequence[Session]) -> list[Handle]:
    """Return the handle of each of `sessions`, whatever has become of it meanwhile.

    Who was ready is not asked again: with one handle fewer, others would get what is not theirs.
    """
    return [session.handle for session in sessions]  # type: ignore[misc]  # it was connected


def _cannot_send_at_once(sessions: Sequence[Session]) -> dict[Session, None]:
    """Return those of `sessions` that are not connected or have something queued, in order."""
    return {
        session: None
        for session in sessions
        if session._send_registered or session._state is not _CONNECTED
    }


def _has_taken(session: Session, data: Buffer, count: int) -> bool:
    """Count what the system took of `data` and queue the rest; False, and the session is ended, if
    that is too much for its queue."""
    session._sent_bytes += count
    return count == len(data) or session._queue_rest(data, count)
