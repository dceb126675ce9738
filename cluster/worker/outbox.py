"""What handlers have sent and nobody has published yet: a log of outputs, in order.

Sends to one session that follow one another are one entry of the log, a run. Outputs of one
handler call can be taken back as a whole, because a call that raises must leave nothing behind.
When the log is published, all that follows one another for one session becomes one record, and so
does what follows one another for one group; the order between one session's packets, its end, and
what is for many is kept. Of what was saved for a session, or for the shard under one name, only
the last is written: it counts as of the commit of the batch, wherever in it it stands. So do calls
that are deferred or done, which stand at its end.
"""

import threading
from struct import Struct
from threading import get_ident
from typing import Any

from cluster.shared.records import (
    BIND,
    BROADCAST,
    DEFER,
    DISCONNECT,
    DONE,
    FORGET,
    KEEP,
    KICK_USER,
    PUBLISH,
    RECORD,
    RECORD_BYTES,
    SAVE,
    SEND,
    SEND_TO,
    make_record,
)

__all__ = ["Mark", "Outbox", "OutputTooLarge", "not_here"]

Mark = int
"""How many bytes there were."""

_FOR_OTHERS = frozenset({BROADCAST, PUBLISH, SEND_TO, KICK_USER, BIND})
"""Outputs that reach, or end, sessions which they do not name: all that was sent comes first."""


_Undo = tuple[Any, ...] | None
"""What to call, and with what."""

_Run = bytes | list[bytes] | tuple[int, int, bytes, _Undo]
"""Sends: a record, or a record and the payloads that belong into it too. Else kind, session and
payload of one output, and what undoes it."""

_session_of = Struct("<8xQ").unpack_from
"""Unpack the session of a record."""

PUBLISH_RUN_BYTES_MAX = 16_384
"""Of publishes that are joined; a member whose queue has room for each has room for all."""


class OutputTooLarge(Exception):
    """A handler call put out more than one batch may hold; if it escapes, nothing of it is sent."""


def not_here() -> RuntimeError:
    """Return what to raise in a thread that is not the loop's."""
    return RuntimeError(
        f"thread {threading.current_thread().name} may not send, or do anything else with "
        "sessions and timers; call app.post(function) there: that calls function() where it may"
    )


class Outbox:
    """Outputs since the last publish. For the loop's thread; another one may add nothing."""

    __slots__ = (
        "_has_lists",
        "_has_others",
        "batch",
        "call_start",
        "ended",
        "has_repeats",
        "max_batch_bytes",
        "num_bytes",
        "publish_at",
        "runs",
        "sender",
        "thread",
    )

    def __init__(self, max_batch_bytes: int) -> None:
        """Take at most `max_batch_bytes` of one handler call, whatever was put out before it."""
        self.max_batch_bytes = max_batch_bytes
        self.thread = get_ident()
        """The loop's thread; for whoever turns the loop to say."""
        self.runs: list[_Run] = []
        self.sender: object = None
        """Whose sends the last run is of, if it may go on."""
        self.batch = 1
        """Counts the publishes; a session notes in which it has begun a run."""
        self.publish_at = 0.0
        """When the batch is old enough, by the loop's clock; for who publishes to say. 0 is now."""
        self.has_repeats = False
        """Whether any session has begun two."""
        self.num_bytes = 0
        """Of all payloads, and for each the header of a record."""
        self.call_start: Mark = 0
        """How many bytes there were when the handler call that runs now began."""
        self.ended: list[int] = []
        """The sessions that are ended, and maybe some of which that was taken back."""
        self._has_others = False  # whether there is anything but sends
        self._has_lists = False  # whether any run is a list

    @property
    def entries(self) -> list[tuple[int, int, bytes]]:
        """All outputs, one by one: kind, session, payload."""
        entries = []
        for run in self.runs:
            if isinstance(run, tuple):
                entries.append(run[:3])
            else:
                parts = [run] if isinstance(run, bytes) else run
                (session,) = _session_of(parts[0])
                entries += [(SEND, session, payload) for payload in _payloads(parts)]
        return entries

    def add(self, kind: int, session: int, payload: bytes, undo: _Undo = None) -> None:
        """Append one output that is no send; OutputTooLarge, and it is not taken, when it is too
        much.

        `undo` is what to call, and with what, if it is taken back. RuntimeError in another thread
        than the loop's.
        """
        if get_ident() != self.thread:
            raise not_here()
        num_bytes = self.num_bytes + len(payload) + RECORD_BYTES
        if num_bytes > self.max_batch_bytes:
            self.check_call(num_bytes)
        self.num_bytes = num_bytes
        self.sender = None
        self._has_others = True
        self.runs.append((kind, session, payload, undo))
        if kind == DISCONNECT:
            self.ended.append(session)

    def add_commit(self, kind: int, session: int, payload: bytes) -> None:
        """Append what a handler call commits beside its output; a few bytes, always taken."""
        self.num_bytes += len(payload) + RECORD_BYTES
        self.sender = None
        self._has_others = True
        self.runs.append((kind, session, payload, None))

    def go_on(self, payload: bytes) -> None:
        """Let the last run, which is of sends, go on with `payload`."""
        run = self.runs[-1]
        if type(run) is list:
            run.append(payload)
        else:
            assert isinstance(run, bytes)
            self._has_lists = True
            self.runs[-1] = [run, payload]

    def check_call(self, num_bytes: int) -> None:
        """Raise OutputTooLarge if the call has put out too much when `num_bytes` wait in all."""
        call_bytes = num_bytes - self.call_start
        if call_bytes > self.max_batch_bytes:
            raise OutputTooLarge(
                f"{call_bytes} bytes of output in one handler call; lane.max_batch_bytes "
                f"allows {self.max_batch_bytes}. Send less in one handler call, or raise it"
            )

    def mark(self) -> Mark:
        """Begin a handler call; return what `take_back` needs to undo everything from here on."""
        self.call_start = self.num_bytes
        return self.num_bytes

    def take_back(self, mark: Mark) -> None:
        """Drop all that was added since `mark`, the last first, and undo what it has changed."""
        while self.num_bytes > mark:
            run = self.runs.pop()
            if isinstance(run, bytes):
                self.num_bytes -= len(run)
            elif isinstance(run, list):
                self.num_bytes -= len(run.pop()) + RECORD_BYTES
                self.runs.append(run if len(run) > 1 else run[0])
            else:
                _, _, payload, undo = run
                self.num_bytes -= len(payload) + RECORD_BYTES
                if undo is not None:
                    function, *args = undo
                    function(*args)
            self.sender = None

    def records(self) -> list[bytes]:
        """Return the records of everything in the log, which stays as it is."""
        if not (self._has_others or self.has_repeats):
            # One run for each session, as most batches are: there is nothing to join but these.
            if not self._has_lists:
                return self.runs.copy()  # type: ignore[return-value]  # all of them are records
            return [run if type(run) is bytes else _close(run) for run in self.runs]  # type: ignore[arg-type]
        pack = RECORD.pack
        records: list[bytes] = []
        joined: dict[int, list[bytes]] = {}
        saves: dict[int, bytes] = {}
        keeps: dict[bytes, bytes] = {}
        publishes = _PublishRun(records)
        commits: list[bytes] = []
        for run in self.runs:
            if not isinstance(run, tuple):
                publishes.close()
                (session,) = _session_of(run if isinstance(run, bytes) else run[0])
                parts = joined.get(session)
                if parts is None:
                    joined[session] = [run] if isinstance(run, bytes) else [*run]
                elif isinstance(run, bytes):
                    parts.append(run[RECORD_BYTES:])
                else:
                    parts += _payloads(run)
                continue
            kind, session, payload, _ = run
            if kind == PUBLISH:
                _close_all(records, joined)
                publishes.add(session, payload)
                continue
            publishes.close()
            if kind == SAVE:
                saves[session] = payload
                continue
            if kind in (KEEP, FORGET):
                name = payload[1 : 1 + payload[0]] if kind == KEEP else payload
                keeps[name] = make_record(kind, 0, payload)
                continue
            if kind in (DEFER, DONE):
                commits.append(pack(RECORD_BYTES + len(payload), kind, 0, session) + payload)
                continue
            if kind in _FOR_OTHERS:
                _close_all(records, joined)
            elif session in joined:
                records.append(_close(joined.pop(session)))
            records.append(pack(RECORD_BYTES + len(payload), kind, 0, session) + payload)
        publishes.close()
        _close_all(records, joined)
        for session, blob in saves.items():
            records.append(pack(RECORD_BYTES + len(blob), SAVE, 0, session) + blob)
        records += keeps.values()
        records += commits
        return records

    def clear(self) -> None:
        """Forget everything: it has been published."""
        self.runs.clear()
        self.sender = None
        self.ended.clear()
        self.num_bytes = self.call_start = 0
        self.has_repeats = self._has_others = self._has_lists = False
        self.batch += 1


class _PublishRun:
    """Publishes to one group that follow one another: they become one record, and one fan-out."""

    __slots__ = ("_left_out", "_parts", "_prefix", "_records", "_size")

    def __init__(self, records: list[bytes]) -> None:
        self._records = records
        self._prefix = b""
        self._left_out = 0
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, left_out: int, payload: bytes) -> None:
        """Take one more; what it cannot be joined to is closed first."""
        end = 1 + payload[0]
        if (
            left_out != self._left_out
            or payload[:end] != self._prefix
            or self._size + len(payload) > PUBLISH_RUN_BYTES_MAX
        ):
            self.close()
            self._left_out, self._prefix = left_out, payload[:end]
        self._parts.append(payload[end:])
        self._size += len(payload)

    def close(self) -> None:
        """Make a record of what was taken."""
        if self._parts:
            payload = b"".join((self._prefix, *self._parts))
            self._records.append(make_record(PUBLISH, self._left_out, payload))
            self._parts.clear()
            self._prefix = b""
            self._size = 0


def _payloads(parts: list[bytes]) -> list[bytes]:
    """Return what was sent in a run, one by one."""
    return [parts[0][RECORD_BYTES:], *parts[1:]]


def _close(parts: list[bytes]) -> bytes:
    """Return the record of a run."""
    if len(parts) == 1:
        return parts[0]
    joined = b"".join(parts)
    return RECORD.pack(len(joined), SEND, 0, _session_of(joined)[0]) + joined[RECORD_BYTES:]


def _close_all(records: list[bytes], joined: dict[int, list[bytes]]) -> None:
    """Make one record of what was joined for each session."""
    if joined:
        records += [_close(parts) for parts in joined.values()]
        joined.clear()
