"""The same bytes for many sessions at once: what `Session.send_now` does, done for all of them.

Most are connected with nothing in their queues. For those the driver makes the sends in one go, and
the work for each is little beside the system call.
"""

from collections.abc import Sequence

from cluster.iocp.session import Session
from cluster.iocp.session_state import SessionState

__all__ = ["send_now_to_each"]

_CONNECTED = SessionState.CONNECTED


def send_now_to_each(sessions: Sequence[Session], data: bytes) -> int:
    """Send `data` to each of `sessions`, of one core; return how many of them have taken it.

    To each it is sent as by `send_now`: by one attempt that cannot wait, or queued, without a copy;
    one that is not connected takes nothing, one whose queue overflows is aborted. No session may be
    there twice. For the thread that dispatches, the only one, outside the callbacks of these
    sessions, and while no other thread sends to them or ends them: no lock is taken for those that
    can send at once.
    """
    ready = [
        session
        for session in sessions
        if not session._send_registered and session._state is _CONNECTED
    ]
    taken = len(ready)
    if taken < len(sessions):
        taken += sum(
            session.send_now(data)
            for session in sessions
            if session._send_registered or session._state is not _CONNECTED
        )
    if ready:
        handles = [session.handle for session in ready]
        counts = ready[0]._driver.send_now_to_each(handles, data)  # type: ignore[arg-type]
        size = len(data)
        if counts.count(size) == len(counts):
            for session in ready:
                session._sent_bytes += size
        else:
            for session, count in zip(ready, counts, strict=True):
                session._sent_bytes += count
                if count != size and not session._queue_rest(data, count):
                    taken -= 1
    return taken
