"""An application: its handlers, and what they may do in a running worker beside their sessions.

Handlers run in one thread, one at a time.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    TypeVarTuple,
    get_origin,
    overload,
)

import msgspec

from cluster.iocp.packet_framing import make_packet
from cluster.shared.codec import Codec, CodecName, Message
from cluster.shared.names import encode_name
from cluster.shared.shard_ids import ShardId
from cluster.shared.user_records import SecondLogin
from cluster.worker.app_timers import TimerHandle
from cluster.worker.decode_errors import DecodeErrorPolicy, DecodeErrors
from cluster.worker.handler_shape import check_function
from cluster.worker.handlers import Handlers
from cluster.worker.message_handlers import encode_message, is_message_type
from cluster.worker.names_elsewhere import OF_APP, tell_names_elsewhere
from cluster.worker.questions import decode_answer
from cluster.worker.runtime import Runtime
from cluster.worker.session import Session
from cluster.worker.tells import Receiver, Telling, Tells

if TYPE_CHECKING:
    from cluster.shared.rendezvous import Key

__all__ = ["App"]

_Reply = TypeVar("_Reply", bound=msgspec.Struct)
_Arguments = TypeVarTuple("_Arguments")

ANSWER_TYPES_MAX = 256
"""Types of answers whose decoders are kept."""

POSTED_MAX = 65_536
"""Functions that may wait to be run on the loop."""


class App(Handlers):
    """An application. Make one in a module and run it with `cluster up --app MODULE:NAME`."""

    def __init__(
        self,
        *,
        codec: CodecName = "msgpack",
        decode_error: DecodeErrorPolicy = "disconnect",
        second_login: Literal["replace", "reject"] = "replace",
        coroutines_max: int = 1_000,
        coroutines_waiting_max: int = 10_000,
    ) -> None:
        """Make an application without handlers.

        `codec` is how structs look on the wire. `decode_error` says what becomes of a packet whose
        payload is not what its handler's annotation asks for: its session is ended with the cause
        `decode_error`, or the packet is dropped and the session kept. Both are counted
        (`decode_errors`) and logged.
        `second_login` says what becomes of a `session.bind` to a user that another session is
        bound to: that one is ended with the cause `replaced`, or this bind is rejected.
        At most `coroutines_max` coroutines of sessions are in progress in a worker, and as many of
        messages. Further ones wait for their turn, while everything else goes on; once
        `coroutines_waiting_max` wait, the worker takes nothing more from its clients before one of
        them is done. Raises ValueError for anything else.
        """
        if second_login not in ("replace", "reject"):
            raise ValueError(f"second_login={second_login!r}; choose one of replace, reject")
        if coroutines_max < 1:
            raise ValueError(f"coroutines_max={coroutines_max!r}; give 1 or more")
        if coroutines_waiting_max < 0:
            raise ValueError(f"coroutines_waiting_max={coroutines_waiting_max!r}; give 0 or more")
        super().__init__(Codec(codec), DecodeErrors(decode_error))
        self.second_login = SecondLogin[second_login.upper()]
        self.coroutines_max = coroutines_max
        self.coroutines_waiting_max = coroutines_waiting_max
        self._runtime: Runtime | None = None
        self.posted: deque[Callable[[], Any]] = deque()
        """What waits to be run on the loop; taken out by `_take_posted` only."""
        self._posted_lock = threading.Lock()
        # To make one takes a hundred times as long as to decode an answer.
        self._answer_decoder = lru_cache(ANSWER_TYPES_MAX)(self.codec.decoder)

    @property
    def is_running(self) -> bool:
        return self._runtime is not None

    def broadcast(self, packet_id: int, message: Message = b"") -> None:
        """Send one packet to every session of the node and of those that it is linked with.

        It is written once, whatever the number of receivers. For handlers and the loop's
        thread. The message is what `Session.send` takes; raises what that raises.
        """
        runtime = self._running("broadcast")
        runtime.broadcast(make_packet(packet_id, self.codec.encode(message)))

    def send_to(self, user_id: str, packet_id: int, message: Message = b"") -> None:
        """Send one packet to the session that is bound to `user_id`, wherever in the cluster.

        It goes out with what this handler call commits; what one shard sends to one user arrives in
        order. A user whom no session is bound to gets nothing, which is counted
        (`sends_to_absent_users`); so is what is lost with a node or finds the log of its link full
        (`sends_to_users_lost`). For handlers and the loop's thread. The message is what
        `Session.send` takes; raises what that raises, and TypeError and ValueError for what is no
        user id.
        """
        runtime = self._running("send_to")
        packet = make_packet(packet_id, self.codec.encode(message))
        runtime.send_to(encode_name(user_id, "user id"), packet)

    def kick_user(self, user_id: str, packet_id: int, message: Message = b"") -> None:
        """Tell a user by one last packet, and end its session, wherever in the cluster that is.

        The session ends with the cause `kicked`, as by `Session.kick`, behind what was sent to the
        user before. A user whom no session is bound to is counted (`kicks_of_absent_users`).
        Otherwise as `send_to`.
        """
        runtime = self._running("kick_user")
        packet = make_packet(packet_id, self.codec.encode(message))
        runtime.kick_user(encode_name(user_id, "user id"), packet)

    def call_later(
        self, seconds: float, function: Callable[[*_Arguments], Any], *args: *_Arguments
    ) -> TimerHandle:
        """Call `function(*args)` on the loop once `seconds` seconds have passed.

        The handle that is returned can cancel it. It is part of this worker: it is forgotten when
        the worker ends. What the call sends goes out with no packet's commit; if it raises, that is
        logged, and what it sent is not sent. For handlers and the loop's thread. Raises ValueError
        for a negative number, TypeError for what is no number or no function, RuntimeError when
        100,000 calls wait already, in another thread, or in no worker.
        """
        if not hasattr(seconds, "__float__"):
            raise TypeError(f"call_later takes seconds and a function, not {seconds!r}")
        check_function(function, "call_later")
        if not 0 <= seconds < math.inf:
            raise ValueError(f"call_later in {seconds!r} seconds: give 0 or more")
        return self._running("call_later").call_later(seconds, function, args)

    def publish(
        self,
        name: str,
        packet_id: int,
        message: Message = b"",
        *,
        exclude: Session | None = None,
    ) -> None:
        """Send one packet to every session that is in the group `name`, whichever node has it.

        It is written once, whatever the number of receivers, and reaches those who are members at
        its place in what this handler call commits, the session that is being handled included,
        but for `exclude`; at another node those who are members when it arrives. A group that
        nobody is in gets nothing. For handlers and the loop's thread. The message is what
        `Session.send` takes; raises what that raises, and TypeError and ValueError for what is no
        name.
        """
        runtime = self._running("publish")
        if exclude is not None and not isinstance(exclude, Session):
            raise TypeError(f"publish excludes a session, not {exclude!r}")
        left_out = 0 if exclude is None else exclude.id
        packet = make_packet(packet_id, self.codec.encode(message))
        runtime.send_group(encode_name(name, "group name"), packet, left_out)

    @property
    def saved(self) -> Mapping[str, bytes]:
        """What `save` was given for this shard and `forget` has not taken, by names. Only to look.

        Of this worker and, with their commits, of those before it: complete from `on_start` on. It
        changes with each `save`, so go over a copy where you save meanwhile. RuntimeError
        outside of a running worker.
        """
        return self._running("saved").saved_state.blobs

    def save(self, name: str, blob: bytes | bytearray | memoryview) -> None:
        """Have the worker that takes this shard over know `blob`, as `app.saved[name]`.

        It replaces what was saved under that name before, and counts together with what this
        handler call commits: with the packet, or the message of another shard, that the call is
        for, either both are done or neither. A call that raises takes it back. The gateway keeps it
        in memory as long as it runs, whatever becomes of sessions; `Session.save` keeps what goes
        with one of them. At most 65,536 bytes under one name, and `workers.saved_bytes_max` in all,
        at 128 bytes more for each name. For handlers and the loop's thread.

        Raises ValueError for more, TypeError for what is not bytes, both for what is no name (1 to
        255 bytes of UTF-8), OutputTooLarge like `Session.send`.
        """
        saved_state = self._running("save").saved_state
        if not isinstance(blob, bytes | bytearray | memoryview):
            raise TypeError(f"save takes bytes, not {type(blob).__name__}; encode it first")
        saved_state.save(encode_name(name, "name"), bytes(blob))

    def forget(self, name: str) -> None:
        """Have nothing saved under `name` any more, as of this call's commit; else as `save`.

        A name under which nothing is saved is none to worry about.
        """
        self._running("forget").saved_state.forget(encode_name(name, "name"))

    @property
    def shard(self) -> ShardId:
        """The shard that runs here; RuntimeError outside of a running worker."""
        return self._tells("shard").name

    @property
    def nodes(self) -> tuple[int, ...]:
        """The ids of all nodes of the cluster, this one too; RuntimeError as for `shard`."""
        return self._tells("nodes").nodes

    @property
    def sessions(self) -> Mapping[int, Session]:
        """The sessions of this shard by their ids, as they are at each moment. Only to look.

        A session is among them from its `on_connected` or `on_resumed` on, at the latest, until its
        `on_disconnected`, in which it is no more. One that was ended and has not had that yet is:
        `Session.is_open` tells. RuntimeError as for `shard`.
        """
        return self._running("sessions").sessions

    @property
    def now(self) -> float:
        """Seconds, by the clock that timers go by: it never goes back, and says no time of day.

        All workers of one machine read the same one, until it is started anew, so a worker may save
        a moment for its successor. In `cluster.testing` it is the clock that the test turns.
        RuntimeError as for `shard`.
        """
        return self._running("now").now()

    def owns(self, key: "Key") -> bool:
        """Whether this shard owns `key`: whether `tell_key` of it comes here. As of this handler.

        Raises what `tell_key` raises for what is no key, RuntimeError as for `shard`.
        """
        return self._tells("owns").owns(key)

    def owner_of(self, key: "Key") -> int:
        """Return the id of the node that owns `key`: where `tell_key` of it goes. As of this call.

        It promises nothing beyond: keys move as nodes join, leave and drain, and other nodes may
        hear of that a moment earlier or later. Which of that node's shards it is, only that node
        knows; of this node's own, `owns` says whether it is this one. Raises what `tell_key` raises
        for what is no key, `NoOwner` while no node may own keys, RuntimeError as for `shard`.
        """
        return self._tells("owner_of").owner_of(key)

    def tell(self, shard: ShardId | int, message: msgspec.Struct) -> Telling:
        """Tell a shard a message: its `on_message` handler is called with it, once and in order.

        `shard` is a `ShardId`, or the index of a shard of this node; it may be this one. The
        message goes out with what this handler call commits, and waits for a node that cannot be
        reached, for as long as it takes; see `on_undelivered`. Each shard may have so much on its
        way to each node: 1 MiB, or a quarter of `links.retained_bytes_max` divided by
        `workers.count` if that is less. Beyond that a plain handler's call raises `Full`; in a
        coroutine write `await app.tell(...)`, which waits.

        Raises ValueError for a shard that there is not and for a message that is too long (65,536
        bytes with the name of its type, or half of the above), TypeError for what is no struct,
        OutputTooLarge like `Session.send`. For handlers and the loop's thread.
        """
        return self._tells("tell").tell(shard, encode_message(message, self.codec))

    def tell_key(self, key: "Key", message: msgspec.Struct) -> Telling:
        """Tell the shard that owns `key`, a str, bytes or an int, a message; else as `tell`.

        Which one that is, all shards agree on: rendezvous hashing over the nodes, and then over the
        shards of the node. 7, "7" and b"7" are one key. If the key moves before the message is
        there, that goes on to the new owner, and may come behind what was told the key later; it is
        given to no shard that does not own the key. Raises `NoOwner` while no node may own keys;
        see `on_keys`.
        """
        return self._tells("tell_key").tell_key(key, encode_message(message, self.codec))

    @overload
    async def ask(
        self,
        to: Receiver,
        message: msgspec.Struct,
        reply_type: type[_Reply],
        *,
        timeout_s: float = ...,
    ) -> _Reply: ...

    @overload
    async def ask(
        self, to: Receiver, message: msgspec.Struct, *, timeout_s: float = ...
    ) -> None: ...

    async def ask(
        self,
        to: Receiver,
        message: msgspec.Struct,
        reply_type: type[msgspec.Struct] | None = None,
        *,
        timeout_s: float = 5.0,
    ) -> msgspec.Struct | None:
        """Tell a shard, or the owner of a key, a message, and wait for what its handler returns.

        `to` is as for `tell`, so that an int is a shard; or it is a str or bytes that is a key. For
        keys that may be ints there is `ask_key`. The answer is a `reply_type`;
        without one it is only waited for. Not in `on_start` and `on_stop`, when nothing comes.

        Raises TimeoutError when there is no answer within `timeout_s` seconds, the time without
        credit included; `Undelivered` when the node that was asked is gone or has begun anew: both
        leave open whether the message was handled. `AskFailed` when there is no answer:
        the handler raised or was cancelled, or there is none, or the answer is of another type.
        What `tell` raises, but for `Full`, and TypeError for a `reply_type` that is no struct, or
        that msgspec does not decode; then nothing was told.
        If the worker that asks dies, the handler call begins again in its
        successor, and asks again: then the message may be handled twice.
        """
        decode, content = self._prepare_question(message, reply_type)
        answer = await self._tells("ask").ask(to, content, timeout_s)
        return None if reply_type is None else decode_answer(answer, reply_type, decode)

    @overload
    async def ask_key(
        self,
        key: "Key",
        message: msgspec.Struct,
        reply_type: type[_Reply],
        *,
        timeout_s: float = ...,
    ) -> _Reply: ...

    @overload
    async def ask_key(
        self, key: "Key", message: msgspec.Struct, *, timeout_s: float = ...
    ) -> None: ...

    async def ask_key(
        self,
        key: "Key",
        message: msgspec.Struct,
        reply_type: type[msgspec.Struct] | None = None,
        *,
        timeout_s: float = 5.0,
    ) -> msgspec.Struct | None:
        """Tell the shard that owns `key`, as `tell_key` does, and wait for the answer, as `ask`.

        Raises what `ask` raises, and what `tell_key` raises for what is no key.
        """
        decode, content = self._prepare_question(message, reply_type)
        answer = await self._tells("ask_key").ask_key(key, content, timeout_s)
        return None if reply_type is None else decode_answer(answer, reply_type, decode)

    def _prepare_question(
        self, message: msgspec.Struct, reply_type: type[msgspec.Struct] | None
    ) -> tuple[Callable[[bytes], Any], bytes]:
        """Return what decodes the answer, and the content of the message; raises TypeError."""
        if reply_type is not None and not is_message_type(get_origin(reply_type) or reply_type):
            raise TypeError(
                f"reply_type is the msgspec.Struct that the answer is, not {reply_type!r}; leave "
                "it out to wait for the end of the handler only"
            )
        decode = bytes if reply_type is None else self._answer_decoder(reply_type)
        return decode, encode_message(message, self.codec)

    def _tells(self, what: str) -> Tells:
        return self._running(what).tells

    def _running(self, what: str) -> Runtime:
        if self._runtime is None:
            raise RuntimeError(
                f"{what} works in a running worker only; call it in on_start or in a handler"
            )
        return self._runtime

    def post(self, function: Callable[[], Any]) -> None:
        """Run `function()` soon on the loop's thread, where it may use sessions. Any thread.

        Raises RuntimeError when 65,536 functions wait already, TypeError for what is no function.
        """
        check_function(function, "post")
        with self._posted_lock:
            if len(self.posted) >= POSTED_MAX:
                raise RuntimeError(f"{POSTED_MAX} posted functions wait already; post less")
            self.posted.append(function)
        if self._runtime is not None:
            self._runtime.wake()

    def _attach(self, runtime: Runtime) -> None:
        """Run in `runtime` from now on; done by the worker."""
        self._runtime = runtime

    def _detach(self, runtime: Runtime) -> None:
        """Run in `runtime` no more; what was posted to it and did not run is dropped."""
        if self._runtime is runtime:
            self._runtime = None
            self._take_posted()

    def _take_posted(self) -> list[Callable[[], Any]]:
        """Return what was posted since the last call; done by the worker."""
        if not self.posted:
            return []
        with self._posted_lock:
            posted = list(self.posted)
            self.posted.clear()
        return posted


tell_names_elsewhere(App, OF_APP)
