"""A client as handlers see it. It lives in the worker; the connection is the gateway's."""

from collections.abc import Callable, Sequence
from itertools import repeat
from struct import Struct
from struct import error as StructError
from threading import get_ident
from typing import Any, Never

from cluster.iocp.packet_framing import HEADER, HEADER_BYTES, bad_packet_id
from cluster.shared.causes import Cause
from cluster.shared.codec import Codec, Message
from cluster.shared.group_records import GROUPS_MAX, pack_join, read_join
from cluster.shared.names import encode_name
from cluster.shared.records import (
    ACCEPT,
    BIND,
    DISCONNECT,
    JOIN,
    LEAVE,
    RECORD,
    RECORD_BYTES,
    SAVE,
    SAVE_BYTES_MAX,
    SEND,
    UNBIND,
)
from cluster.shared.takeover import ReplayedSession
from cluster.shared.user_records import BindResult, SecondLogin, pack_bind, pack_unbind, read_bound
from cluster.worker.binds import Binding, Binds
from cluster.worker.names_elsewhere import OF_SESSION, tell_names_elsewhere
from cluster.worker.outbox import Outbox, not_here
from cluster.worker.packet_stream import Packets, join_packets, too_long

__all__ = ["Session"]

_pack_header = HEADER.pack
_pack_record = RECORD.pack
_pack_send = Struct("<IHHQHH").pack
"""Of a record of one packet, all that stands ahead of the payload."""
_SEND_OVERHEAD = HEADER_BYTES + RECORD_BYTES
_encode_msgpack = Codec().encode


class Session:
    """One client's session. For handlers and the loop's thread; others use `app.post`.

    `id` is never used again in the cluster. `sequence` is the number of the packet that is
    being handled, from 1 (of the first of several, `App.on_packets`), and behind it of the last one
    that was; 0 before the first. `state` is
    any object of the application's; it is lost with the worker. `saved` is not. What begins with an
    underscore is the worker's own.
    """

    __slots__ = (
        "_batch",
        "_binds",
        "_encode",
        "_end_is_known",
        "_has_ended",
        "_hears_joined",
        "_is_busy",
        "_join_request",
        "_max_payload_bytes",
        "_member_of",
        "_outbox",
        "_saved",
        "_second_login",
        "address",
        "id",
        "is_open",
        "is_send_blocked",
        "redelivered",
        "sequence",
        "state",
    )

    def __init__(
        self,
        session_id: int,
        address: str,
        outbox: Outbox,
        max_payload_bytes: int,
        second_login: SecondLogin = SecondLogin.REPLACE,
        encode: Callable[[Message], bytes] = _encode_msgpack,
        hears_joined: bool = False,
    ) -> None:
        self.id = session_id
        self.address = address
        self.is_open = True
        """Whether the client can still be sent to."""
        self._is_busy = False
        """Whether a coroutine of this session is in progress; what comes for it waits."""
        self.is_send_blocked = False
        """Whether much waits to be sent to the client (`on_send_blocked`)."""
        self.sequence = 0
        self.redelivered = False
        """Whether an earlier worker may have handled what this call is for, without its commit.

        True while a handler runs for a packet, or for the opening or end of the session, that
        was given to a predecessor. False in `on_resumed`, which is of this life: it runs once in
        each life that takes the session over.
        """
        self._saved: bytes | None = None
        self.state: Any = None
        self._binds: Binds | None = None
        """Who it is and what of that is not answered yet."""
        self._member_of: dict[str, int] | None = None
        """The groups that it is in, with the numbers of their joins."""
        self._join_request = 0
        """The number of the last join that is to be answered."""
        self._hears_joined = hears_joined
        self._batch = 0
        self._has_ended = False
        self._end_is_known = False
        self._second_login = second_login
        self._encode = encode
        self._outbox = outbox
        self._max_payload_bytes = max_payload_bytes

    def send(self, packet_id: int, message: Message = b"") -> None:
        """Send one packet to the client, with what this handler call commits.

        `packet_id` is 0 to 65535. The message is bytes, which are the payload as they are, or a
        struct, dataclass, attrs class, NamedTuple or dict, which `App(codec=...)` encodes; it may
        be as long as the node allows packets to be (`gateway.max_packet_bytes`, 4 bytes of header
        included). Raises ValueError for either, TypeError for another message, or one with a field
        that cannot be encoded, OutputTooLarge when this handler call has put out more than
        `lane.max_batch_bytes`, RuntimeError, as everything that puts something out, in another
        thread than the handlers'. Sending to a session that has ended does nothing.
        """
        payload = message if type(message) is bytes else self._encode(message)
        size = len(payload)
        if size > self._max_payload_bytes:
            raise too_long(size, self._max_payload_bytes)
        # `Outbox.add`, written out: nearly every packet is answered by one send.
        outbox = self._outbox
        goes_on = outbox.sender is self
        length = size + _SEND_OVERHEAD
        try:
            if goes_on:
                part = _pack_header(size + HEADER_BYTES, packet_id) + payload
            else:
                header = _pack_send(length, SEND, 0, self.id, size + HEADER_BYTES, packet_id)
                part = header + payload
        except StructError:
            raise bad_packet_id(packet_id) from None
        if self.is_open:
            if get_ident() != outbox.thread:
                raise not_here()
            num_bytes = outbox.num_bytes + length
            if num_bytes > outbox.max_batch_bytes:
                outbox.check_call(num_bytes)
            outbox.num_bytes = num_bytes
            if goes_on:
                outbox.go_on(part)
            else:
                outbox.sender = self
                outbox.runs.append(part)
                if self._batch != outbox.batch:
                    self._batch = outbox.batch
                else:
                    outbox.has_repeats = True

    def send_packets(self, packets: Sequence[tuple[int, Message]]) -> None:
        """Send several packets to the client, in order: `send` of each, at less cost for each.

        `packets` is a list of packet ids and messages, or what `App.on_packets` was given, of
        which nothing is even looked at. Raises what `send` raises; then none of them is sent.
        """
        if type(packets) is Packets:
            stream = packets.stream
        else:
            stream = join_packets(packets, self._encode, self._max_payload_bytes)
        if stream and self.is_open:
            # As in `send`.
            outbox = self._outbox
            if get_ident() != outbox.thread:
                raise not_here()
            length = len(stream) + RECORD_BYTES
            num_bytes = outbox.num_bytes + length
            if num_bytes > outbox.max_batch_bytes:
                outbox.check_call(num_bytes)
            outbox.num_bytes = num_bytes
            if outbox.sender is self:
                outbox.go_on(stream)
            else:
                outbox.sender = self
                outbox.runs.append(_pack_record(length, SEND, 0, self.id) + stream)
                if self._batch != outbox.batch:
                    self._batch = outbox.batch
                else:
                    outbox.has_repeats = True

    def disconnect(self, cause: str = Cause.LOCAL) -> None:
        """End the session in good order, after all that was sent to it. Works once.

        `cause` is one of `cluster.shared.causes.Cause` or a string of the application's own, at
        most 255 bytes of UTF-8. `on_disconnected` follows when the connection has closed. Raises
        TypeError and ValueError for what is no cause.
        """
        text = encode_name(cause, "cause")
        if self.is_open:
            self._outbox.add(DISCONNECT, self.id, text, (setattr, self, "is_open", True))
            self.is_open = False

    def kick(self, packet_id: int, message: Message = b"") -> None:
        """Tell the client by one last packet, and end the session with the cause `kicked`.

        Raises what `send` raises; then the session goes on. Nothing happens to one that has ended.
        """
        self.send(packet_id, message)
        self.disconnect(Cause.KICKED)

    def accept(self) -> None:
        """Let packets of every id through from now on, as a `bind` that succeeds does as well.

        Until then, with `limits.auth_timeout_s` above 0, only public ones of this session get
        through (`App.on_packet`). It takes effect with what this handler call commits. Raises
        OutputTooLarge like `send`. Nothing happens to a session that is accepted, or has ended.
        """
        if self.is_open:
            self._outbox.add(ACCEPT, self.id, b"")

    @property
    def user(self) -> str | None:
        """The user that this session is bound to, as of the packet that is being handled.

        It is set when the answer to a `bind` is handled, ahead of `on_bound`, and None at once
        after `unbind`. It stays when another session takes the user over
        (`second_login="replace"`), so that `on_disconnected` knows whose session has ended.
        """
        return None if self._binds is None else self._binds.user

    def bind(self, user_id: str) -> Binding:
        """Ask for this session to be `user_id`, a str of 1 to 255 bytes of UTF-8.

        It takes effect with what this handler call commits, and at its place in it. The answer goes
        to `on_bound`, and to who awaits what is returned: `bound`, also if it was that user
        already; `rejected` if another session is, under `App(second_login="reject")`: then it is
        who it was before. What it was bound to before is free again. Of binds that follow one
        another before there is an answer only the first and the last are sure to have one of their
        own. A session that is ending has no answer but its end; who awaits is `rejected` by that.

        Raises TypeError and ValueError for what is no user id, OutputTooLarge like `send`. With a
        session that has ended it does nothing, and is rejected.
        """
        user = encode_name(user_id, "user id")
        binds = self._binds
        if binds is None:
            binds = self._binds = Binds()
        request = binds.request + 1
        if not self.is_open or self._end_is_known:
            binding = Binding(user_id, request)
            binding.resolve(BindResult.REJECTED)
            return binding
        payload = pack_bind(self._second_login, request, user)
        self._outbox.add(BIND, self.id, payload, (binds.take_back_bind, request))
        return binds.bind(user_id, request)

    def unbind(self) -> None:
        """Be no user any more, and none that was asked for: what `bind` has not got yet is void.

        `user` is None at once; for all others it counts with what this handler call commits.
        Raises OutputTooLarge like `send`. Nothing happens to a session that is nobody or has ended.
        """
        binds = self._binds
        if binds is not None and self.is_open:
            request = binds.request + 1
            undo = binds.take_back_unbind, binds.user, binds.unbind_request
            self._outbox.add(UNBIND, self.id, pack_unbind(request), undo)
            binds.unbind(request)

    @property
    def groups(self) -> frozenset[str]:
        """The groups that this session is in; they stay until its `on_disconnected` has run."""
        return frozenset(self._member_of or ())

    def join(self, name: str) -> None:
        """Be in the group `name`, a str of 1 to 255 bytes of UTF-8, until `leave` or the end.

        It takes effect at its place in what this handler call commits: a client that has what is
        sent behind it gets all that anybody at this node publishes to the group from then on
        (`App.publish`), and at other nodes from `App.on_joined` on. A worker's death changes no
        group. Nothing happens to a session that is in it, or has ended.

        Raises TypeError and ValueError for what is no name, ValueError for more than 1,024 groups,
        OutputTooLarge like `send`.
        """
        data = encode_name(name, "group name")
        groups = self._member_of
        if not self.is_open or (groups is not None and name in groups):
            return
        if groups is not None and len(groups) >= GROUPS_MAX:
            raise ValueError(
                f"the session is in {GROUPS_MAX} groups, which is the most; leave one before "
                f"joining {name!r}"
            )
        request = self._join_request + 1 if self._hears_joined else 0
        groups = {} if groups is None else groups
        self._outbox.add(JOIN, self.id, pack_join(request, data), (groups.pop, name))
        if request:
            self._join_request = request
        groups[name] = request
        self._member_of = groups

    def leave(self, name: str) -> None:
        """Be in the group `name` no more, from this place on. Nothing happens if it is not in it.

        Raises what `join` raises for a name and for too much output.
        """
        data = encode_name(name, "group name")
        groups = self._member_of
        if groups is not None and name in groups and self.is_open:
            self._outbox.add(LEAVE, self.id, data, (groups.__setitem__, name, groups[name]))
            del groups[name]

    @property
    def saved(self) -> bytes | None:
        """What `save` was given last, by this worker or, with its commit, by one before it."""
        return self._saved

    @saved.setter
    def saved(self, blob: Never) -> None:
        raise AttributeError(
            "session.saved only tells what was saved last; call session.save(blob) to save more"
        )

    def save(self, blob: bytes | bytearray | memoryview) -> None:
        """Have the worker that takes this session over know `blob`, as its `session.saved`.

        It replaces what was saved before, and counts together with what this handler call
        commits: a successor that begins behind this packet has it, one that is given this packet
        again does not. A call that raises takes it back. At most 65,536 bytes; the gateway keeps
        the last one of each session, in memory, until the session is closed. It may be saved
        after `disconnect` as well, for `on_disconnected`, which may run in a successor; a session
        that has closed saves nothing.

        Raises ValueError for more, TypeError for what is not bytes, OutputTooLarge like `send`.
        """
        if not isinstance(blob, bytes | bytearray | memoryview):
            raise TypeError(f"save takes bytes, not {type(blob).__name__}; encode it first")
        data = bytes(blob)
        if len(data) > SAVE_BYTES_MAX:
            raise ValueError(
                f"a blob of {len(data)} bytes; a session saves at most {SAVE_BYTES_MAX}. Keep the "
                "rest in a database, under session.id"
            )
        if not self._has_ended:
            self._outbox.add(SAVE, self.id, data, (setattr, self, "_saved", self._saved))
            self._saved = data

    def __repr__(self) -> str:
        return f"<Session {self.id:#x} {self.address}>"

    # -- for the worker ----------------------------------------------------------------------------

    def _resume(self, replayed: ReplayedSession) -> None:
        """Be as the predecessor's commit has left it."""
        self.sequence = replayed.sequence
        self._saved = replayed.saved
        if replayed.bind_request:  # else it is nobody, and never asked to be anyone
            self._binds = Binds(replayed.user, replayed.bind_request, replayed.unbind_request)
        if replayed.groups:
            requests = replayed.group_requests or repeat(0)
            self._member_of = dict(zip(replayed.groups, requests, strict=False))
        self._join_request = replayed.join_request
        self.is_send_blocked = replayed.send_blocked
        self.is_open = not replayed.closing

    def _hear_bound(self, answer: bytes) -> bool:
        """Take the answer to a bind; return whether the application is to hear of it."""
        return self._binds is not None and self._binds.heard(read_bound(answer))

    def _bind_result(self, answer: bytes) -> BindResult | None:
        """Return what the answer to a bind says, unless an unbind has made it void."""
        bound = read_bound(answer)
        counts = self._binds is not None and self._binds.counts(bound)
        return bound.result if counts else None

    def _joined_group(self, answer: bytes) -> str | None:
        """Return the group that the answer to a join is about, if it is in it by that join."""
        request, data = read_join(answer)
        name = data.decode()
        groups = self._member_of
        return name if groups is not None and groups.get(name) == request else None

    def _hear_end(self) -> None:
        """Its connection has ended, though `on_disconnected` has to wait: who awaits an answer to a
        bind, or asks for one from now on, would hold that up."""
        self._end_is_known = True
        if self._binds is not None:
            self._binds.end()

    def _end(self) -> None:
        """Take nothing more: its `on_disconnected` has run."""
        self.is_open = False
        self._has_ended = True
        self._hear_end()


tell_names_elsewhere(Session, OF_SESSION)
