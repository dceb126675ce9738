"""What an application is made of: handlers, by packet id and by event.

An `App` only collects handlers until a worker runs it, so that a module can be imported
anywhere. Handlers run in one thread, one at a time.
"""

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

import msgspec

from cluster.iocp.packet_framing import make_packet
from cluster.shared.names import encode_name
from cluster.shared.shard_ids import ShardId
from cluster.shared.user_records import BindResult, SecondLogin
from cluster.worker.app_timers import INTERVAL_MIN_S, Repeated, TimerHandle
from cluster.worker.codec import Codec, CodecName, Message
from cluster.worker.decode_errors import DecodeErrorPolicy, DecodeErrors
from cluster.worker.handler_shape import check_handler, is_coroutine_function
from cluster.worker.message_handlers import MessageHandlers, encode_message
from cluster.worker.packet_stream import Packets
from cluster.worker.payload_annotation import handler_name
from cluster.worker.payload_handlers import adapt_any_handler, adapt_packet_handler
from cluster.worker.questions import decode_answer
from cluster.worker.session import Session
from cluster.worker.tells import Receiver, Telling, Tells

if TYPE_CHECKING:
    from cluster.shared.rendezvous import Key

__all__ = ["App", "Runtime"]

PacketHandler = Callable[[Session, bytes], Any]
AnyHandler = Callable[[Session, int, bytes], Any]
PacketsHandler = Callable[[Session, Packets], Any]
SessionHandler = Callable[[Session], Any]
StartHandler = Callable[[], Any]
StopHandler = Callable[[], Any]
DisconnectedHandler = Callable[[Session, str], Any]
JoinedHandler = Callable[[Session, str], Any]
BoundHandler = Callable[[Session, BindResult], Any]
KeysHandler = Callable[[tuple[int, ...]], Any]

_Handler = TypeVar("_Handler", bound=Callable[..., Any])
_PlainHandler = TypeVar("_PlainHandler", bound=Callable[[], Any])
_SessionHandler = TypeVar("_SessionHandler", bound=SessionHandler)
_DisconnectedHandler = TypeVar("_DisconnectedHandler", bound=DisconnectedHandler)
_JoinedHandler = TypeVar("_JoinedHandler", bound=JoinedHandler)
_BoundHandler = TypeVar("_BoundHandler", bound=BoundHandler)
_KeysHandler = TypeVar("_KeysHandler", bound=KeysHandler)
_Reply = TypeVar("_Reply", bound=msgspec.Struct)
_PacketHandler = TypeVar("_PacketHandler", bound=Callable[[Session, Any], Any])
_AnyHandler = TypeVar("_AnyHandler", bound=Callable[[Session, int, Any], Any])
_PacketsHandler = TypeVar("_PacketsHandler", bound=PacketsHandler)

_ONE_OF_TWO = "on_any and on_packets are two ways to handle the same packets; keep one of them"

POSTED_MAX = 65_536
"""Functions that may wait to be run on the loop."""


class Runtime(Protocol):
    """What a running worker gives its application."""

    @property
    def tells(self) -> Tells:
        """What goes to other shards."""
        ...

    def broadcast(self, packet: bytes) -> None:
        """Send one packet to every session of the node."""
        ...

    def send_to(self, user: bytes, packet: bytes) -> None:
        """Send one packet to a user."""
        ...

    def kick_user(self, user: bytes, packet: bytes) -> None:
        """Send one last packet to a user, and end its session."""
        ...

    def call_later(
        self, seconds: float, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> TimerHandle:
        """Call a function of the application on the loop when `seconds` have passed."""
        ...

    def send_group(self, name: bytes, packet: bytes, left_out: int) -> None:
        """Send one packet to every member of a group but the session of that id; 0 for none."""
        ...

    def wake(self) -> None:
        """Make the loop look at what was posted; any thread."""
        ...


class App:
    """An application. Make one in a module and run it with `cluster up --app MODULE:NAME`."""

    def __init__(
        self,
        *,
        codec: CodecName = "msgpack",
        decode_error: DecodeErrorPolicy = "disconnect",
        second_login: Literal["replace", "reject"] = "replace",
        coroutines_max: int = 1_000,
    ) -> None:
        """Make an application without handlers.

        `codec` is how structs look on the wire. `decode_error` says what becomes of a packet whose
        payload is not what its handler's annotation asks for: its session is ended with the cause
        `decode_error`, or the packet is dropped and the session kept. Both are counted
        (`decode_errors`) and logged.
        `second_login` says what becomes of a `session.bind` to a user that another session is
        bound to: that one is ended with the cause `replaced`, or this bind is rejected. Once
        `coroutines_max` coroutines of one worker are in progress it takes nothing more from its
        clients before one of them is done. Raises ValueError for anything else.
        """
        if second_login not in ("replace", "reject"):
            raise ValueError(f"second_login={second_login!r}; choose one of replace, reject")
        if coroutines_max < 1:
            raise ValueError(f"coroutines_max={coroutines_max!r}; give 1 or more")
        self.second_login = SecondLogin[second_login.upper()]
        self.codec = Codec(codec)
        self.decode_errors = DecodeErrors(decode_error)
        self.coroutines_max = coroutines_max
        self.has_coroutines = False
        """Whether any handler is a coroutine function."""
        self.packet_handlers: dict[int, PacketHandler] = {}
        self._packet_handler_names: dict[int, str] = {}
        self.any_handler: AnyHandler | None = None
        self.packets_handler: PacketsHandler | None = None
        """What packets that came together are given to at once."""
        self._has_packets_handler = False
        self.start_handler: StartHandler | None = None
        self.stop_handler: StopHandler | None = None
        self.connected_handler: SessionHandler | None = None
        self.resumed_handler: SessionHandler | None = None
        self.disconnected_handler: DisconnectedHandler | None = None
        self.bound_handler: BoundHandler | None = None
        self.joined_handler: JoinedHandler | None = None
        self.messages = MessageHandlers(self.codec)
        """Those of messages that shards tell each other."""
        self.keys_handler: KeysHandler | None = None
        self.repeated: list[Repeated] = []
        """What `every` was given."""
        self.send_blocked_handler: SessionHandler | None = None
        self.send_ready_handler: SessionHandler | None = None
        self.public_ids: set[int] = set()
        """Packet ids that get through before a session is accepted (`limits.auth_timeout_s`)."""
        self._runtime: Runtime | None = None
        self.posted: deque[Callable[[], Any]] = deque()
        """What waits to be run on the loop; taken out by `take_posted` only."""
        self._posted_lock = threading.Lock()

    # -- handlers ----------------------------------------------------------------------------------

    def on_packet(
        self, packet_id: int, *, public: bool = False
    ) -> Callable[[_PacketHandler], _PacketHandler]:
        """Handle the packets with this id by `f(session, payload)`; one handler an id.

        The annotation of `payload` says what it is: bytes, which it is also without one;
        memoryview, which may be used until the handler returns, and raises ValueError behind
        that; a msgspec.Struct, or anything else that msgspec decodes, by `App(codec=...)`.

        With `limits.auth_timeout_s` above 0 only packets with a `public` id get through until the
        session is accepted (`session.accept`) or bound; others wait in the gateway, in order.
        Otherwise `public` says nothing.

        Raises ValueError for an id that no packet has or that has a handler, TypeError for what is
        no id, a handler that cannot be called so or an annotation that msgspec does not decode.
        """
        if not isinstance(packet_id, int):
            raise TypeError(f"a packet id is an int, not {packet_id!r}; write @app.on_packet(1)")
        if not 0 <= packet_id <= 0xFFFF:
            raise ValueError(f"packet id {packet_id!r} is not between 0 and 65535")
        if packet_id in self.packet_handlers:
            name = self._packet_handler_names[packet_id]
            raise ValueError(f"packet id {packet_id} has the handler {name} already")

        def register(handler: _PacketHandler) -> _PacketHandler:
            self.packet_handlers[packet_id] = adapt_packet_handler(
                self._checked(handler, "session", "payload"),
                packet_id,
                self.codec,
                self.decode_errors,
            )
            self._packet_handler_names[packet_id] = handler_name(handler)
            if public:
                self.public_ids.add(packet_id)
            return handler

        return register

    def on_any(self, handler: _AnyHandler) -> _AnyHandler:
        """Handle the packets whose id has no handler by `f(session, packet_id, payload)`.

        The annotation of `payload` counts as in `on_packet`. Raises TypeError as that does, and
        ValueError where there is an `on_packets`.
        """
        if self._has_packets_handler:
            raise ValueError(_ONE_OF_TWO)
        self.any_handler = adapt_any_handler(
            self._checked(handler, "session", "packet_id", "payload"),
            self.codec,
            self.decode_errors,
        )
        return handler

    def on_packets(self, handler: _PacketsHandler) -> _PacketsHandler:
        """Handle the packets whose id has no handler by `f(session, packets)`, those that came
        together in one call: for clients that send many at a time.

        `packets` is a sequence of ids and payloads (`tuple[int, bytes]`), in order: of one session,
        one or more, as many as a read of its socket happened to bring. They are taken apart when it
        is looked at; `session.send_packets(packets)` sends them on as they are, to this session or
        another. `session.sequence` is the number of the first of them.

        They are one call: what it puts out goes with all of them, within `lane.max_batch_bytes`; if
        it raises, nothing of it is sent and the session is ended; if the worker dies in it, a
        successor gets them one at a time, and so the one that kills is found. A coroutine function
        gets them one at a time always, and so does everybody what came together with a packet that
        has a handler of its own.

        Raises TypeError for a handler that cannot be called so, ValueError where there is an
        `on_any` or another one.
        """
        if self._has_packets_handler:
            raise ValueError("on_packets has a handler already, which takes all of them")
        if self.any_handler is not None:
            raise ValueError(_ONE_OF_TWO)
        self._checked(handler, "session", "packets")
        self._has_packets_handler = True
        if not is_coroutine_function(handler):
            self.packets_handler = handler
        self.any_handler = lambda session, packet_id, payload: handler(
            session, Packets(make_packet(packet_id, payload), 1)
        )
        return handler

    def on_start(self, handler: _PlainHandler) -> _PlainHandler:
        """Call `f()` once in each worker, when it is given its shard and before anything else.

        Not at the import, and not in a spare that waits: what belongs to the one process that
        works for a shard is begun here, such as threads, timers and connections. It may broadcast
        and post, and has to return within `worker_timeout_s`. If it raises, the worker cannot
        start: nothing that it sent is sent.
        """
        self.start_handler = self._checked(handler)
        return handler

    def on_stop(self, handler: _PlainHandler) -> _PlainHandler:
        """Call `f()` once in a worker that ends in good order: in a drain, or asked to stop.

        It comes after every other handler call; none follows. What it sends, and what it saves for
        sessions that stay (`session.save`, when a worker alone is asked to stop), goes out with the
        worker's last batch, if the lane has room; in a drain its clients have gone by then. It has
        to return within `worker_timeout_s`, and what is left of `drain_timeout_s`. If it raises,
        that is logged, nothing that it sent is sent, and the worker ends as it would have. Not
        called in a worker that is killed, or has lost its gateway, or whose `on_start` raised.
        """
        self.stop_handler = self._checked(handler)
        return handler

    def on_connected(self, handler: _SessionHandler) -> _SessionHandler:
        """Call `f(session)` when a client has connected."""
        self.connected_handler = self._checked(handler, "session")
        return handler

    def on_resumed(self, handler: _SessionHandler) -> _SessionHandler:
        """Call `f(session)` for each session that was taken over from a worker that died."""
        self.resumed_handler = self._checked(handler, "session")
        return handler

    def on_disconnected(self, handler: _DisconnectedHandler) -> _DisconnectedHandler:
        """Call `f(session, cause)` when a session has ended."""
        self.disconnected_handler = self._checked(handler, "session", "cause")
        return handler

    def on_bound(self, handler: _BoundHandler) -> _BoundHandler:
        """Call `f(session, result)` with the answer to a `session.bind`: a `BindResult`.

        `session.user` is who the session is then. Not called for a session that has ended, or for a
        bind that `session.unbind` has made void.
        """
        self.bound_handler = self._checked(handler, "session", "result")
        return handler

    def on_joined(self, handler: _JoinedHandler) -> _JoinedHandler:
        """Call `f(session, name)` once every linked node knows that `session` has joined `name`.

        From then on the session misses nothing that is published to the group at any of these
        nodes, also while a link is cut, as far as its log takes it; before, it may get what is
        published at others, or not. A node that cannot be reached is not waited for: what is
        published there is missed until its link stands. It comes at once where the node stands
        alone, or its members are known. Once for each `session.join` that changes something, in any
        order, unless the session has left the group, or has ended, before.
        """
        self.joined_handler = self._checked(handler, "session", "name")
        return handler

    def every(self, seconds: float) -> Callable[[_PlainHandler], _PlainHandler]:
        """Call `f()` every `seconds` seconds in each worker, until that ends.

        The n-th call is due n intervals after the worker's start, behind `on_start`: it does not
        drift. Calls that are missed while a handler holds the loop, or while a coroutine of the
        call before still awaits, are skipped, not made up for. What a call sends goes out with no
        packet's commit. One that raises is logged, and what it sent is not sent; the next one comes
        all the same. A function may have several intervals. To be said at the import: RuntimeError
        in a running worker. Raises ValueError for less than 0.001 s, TypeError for what is no
        number.
        """
        if not isinstance(seconds, int | float):
            raise TypeError(f"every takes seconds, not {seconds!r}; write @app.every(1.0)")
        if not INTERVAL_MIN_S <= seconds < math.inf:
            raise ValueError(f"every {seconds!r} seconds: give {INTERVAL_MIN_S} or more")
        if self._runtime is not None:
            raise RuntimeError("every is for the import; in a running worker use call_later")

        def register(function: _PlainHandler) -> _PlainHandler:
            self.repeated.append(Repeated(float(seconds), self._checked(function)))
            return function

        return register

    def on_send_blocked(self, handler: _SessionHandler) -> _SessionHandler:
        """Call `f(session)` when much waits to be sent to a client: it takes less than it is sent.

        Much is more than `limits.send_blocked_bytes`, half of `gateway.send_queue_bytes_max` by
        default; past all of that the session is ended (`send_overflow`). Send less until
        `on_send_ready`; `session.is_send_blocked` tells in between.
        """
        self.send_blocked_handler = self._checked(handler, "session")
        return handler

    def on_send_ready(self, handler: _SessionHandler) -> _SessionHandler:
        """Call `f(session)` when little waits again, `limits.send_ready_bytes`, to be sent.

        Once for each `on_send_blocked`, in turn, unless the session ends before.
        """
        self.send_ready_handler = self._checked(handler, "session")
        return handler

    @overload
    def on_message(self, what: type[msgspec.Struct]) -> Callable[[_Handler], _Handler]: ...

    @overload
    def on_message(self, what: _Handler) -> _Handler: ...

    def on_message(self, what: Any) -> Any:
        """Call `f(message, sender)` for the messages of one type that shards tell this one.

        The type, a msgspec.Struct, is given, `@app.on_message(Move)`, or the annotation of
        `message` says it, `@app.on_message`; its name is what shards know it by. `sender` is a
        `ShardId`. What the handler returns, a struct or nothing, answers who has asked (`ask`).

        Messages of one shard are handled once and in order, and again, as packets are, after a
        worker's death without their commit. Those whose handlers await go on beside each other.
        A call that raises is logged and taken back, and nothing else ends by that. Raises TypeError
        and ValueError for what cannot be a handler of messages, or has one.
        """
        given = what if isinstance(what, type) else None

        def register(handler: _Handler) -> _Handler:
            self.messages.add(self._checked(handler, "message", "sender"), given)
            return handler

        return register if given is not None else register(what)

    def on_undelivered(self, handler: _Handler) -> _Handler:
        """Call `f(message, receiver)` when nobody knows what became of a message.

        The node that it was for has begun another life, or is gone for good, before the message was
        handled for good there; or it has no such shard. It may have been handled. `receiver` is the
        `ShardId` that was told, or the key, as bytes. The call is made in the shard that has
        told it, in a successor of its worker if need be. Types of messages that this application
        does not handle itself are to be in the annotation of `message`, as a union.
        """
        self.messages.set_undelivered(self._checked(handler, "message", "receiver"))
        return handler

    def on_keys(self, handler: _KeysHandler) -> _KeysHandler:
        """Call `f(owners)` when nodes join or leave, and keys are owned anew: by `owners`, ids.

        It comes before any message that another node tells by the new list, and `owns` and
        `tell_key` go by that list from here on. Only the keys of nodes that have left move, and
        those that a new node gets: hand over what is not this shard's any more. A node whose lease
        has ended is not among the owners, which may be none; nor is one that drains. With a static
        list, nothing ever changes. A call that raises is logged and taken back; as any other it
        comes again after a worker's death without its commit.
        """
        self.keys_handler = self._checked(handler, "owners")
        return handler

    # -- running -----------------------------------------------------------------------------------

    def broadcast(self, packet_id: int, message: Message = b"") -> None:
        """Send one packet to every session of the node and of those that it is linked with.

        It is written once, whatever the number of receivers. For handlers and the loop's
        thread. The message is what `Session.send` takes; raises what that raises.
        """
        if self._runtime is None:
            raise RuntimeError("broadcast works in a running worker only; start one by cluster up")
        self._runtime.broadcast(make_packet(packet_id, self.codec.encode(message)))

    def send_to(self, user_id: str, packet_id: int, message: Message = b"") -> None:
        """Send one packet to the session that is bound to `user_id`, wherever in the cluster.

        It goes out with what this handler call commits; what one shard sends to one user arrives in
        order. A user whom no session is bound to gets nothing, which is counted
        (`sends_to_absent_users`); so is what is lost with a node or finds the log of its link full
        (`sends_to_users_lost`). For handlers and the loop's thread. The message is what
        `Session.send` takes; raises what that raises, and TypeError and ValueError for what is no
        user id.
        """
        if self._runtime is None:
            raise RuntimeError("send_to works in a running worker only; start one by cluster up")
        packet = make_packet(packet_id, self.codec.encode(message))
        self._runtime.send_to(encode_name(user_id, "user id"), packet)

    def kick_user(self, user_id: str, packet_id: int, message: Message = b"") -> None:
        """Tell a user by one last packet, and end its session, wherever in the cluster that is.

        The session ends with the cause `kicked`, as by `Session.kick`, behind what was sent to the
        user before. A user whom no session is bound to is counted (`kicks_of_absent_users`).
        Otherwise as `send_to`.
        """
        if self._runtime is None:
            raise RuntimeError("kick_user works in a running worker only; start one by cluster up")
        packet = make_packet(packet_id, self.codec.encode(message))
        self._runtime.kick_user(encode_name(user_id, "user id"), packet)

    def call_later(self, seconds: float, function: Callable[..., Any], *args: Any) -> TimerHandle:
        """Call `function(*args)` on the loop once `seconds` seconds have passed.

        The handle that is returned can cancel it. It is part of this worker: it is forgotten when
        the worker ends. What the call sends goes out with no packet's commit; if it raises, that is
        logged, and what it sent is not sent. For handlers and the loop's thread. Raises ValueError
        for a negative number, RuntimeError when 100,000 calls wait already, or in no worker.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"call_later in {seconds!r} seconds: give 0 or more")
        if self._runtime is None:
            raise RuntimeError(
                "call_later works in a running worker only; call it in on_start or in a handler"
            )
        return self._runtime.call_later(seconds, function, args)

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
        if self._runtime is None:
            raise RuntimeError("publish works in a running worker only; start one by cluster up")
        left_out = 0 if exclude is None else exclude.id
        packet = make_packet(packet_id, self.codec.encode(message))
        self._runtime.send_group(encode_name(name, "group name"), packet, left_out)

    @property
    def shard(self) -> ShardId:
        """The shard that runs here; RuntimeError outside of a running worker."""
        return self._tells("shard").name

    @property
    def nodes(self) -> tuple[int, ...]:
        """The ids of all nodes of the cluster, this one too; RuntimeError as for `shard`."""
        return self._tells("nodes").nodes

    def owns(self, key: "Key") -> bool:
        """Whether this shard owns `key`: whether `tell_key` of it comes here. As of this handler.

        Raises what `tell_key` raises for what is no key, RuntimeError as for `shard`.
        """
        return self._tells("owns").owns(key)

    def tell(self, shard: ShardId | int, message: msgspec.Struct) -> Telling:
        """Tell a shard a message: its `on_message` handler is called with it, once and in order.

        `shard` is a `ShardId`, or the index of a shard of this node; it may be this one. The
        message goes out with what this handler call commits, and waits for a node that cannot be
        reached, for as long as it takes; see `on_undelivered`. Each shard may have so much on its
        way to each node, 1 MiB or what `links.retained_bytes_max` allows. Beyond that a plain
        handler's call raises `Full`; in a coroutine write `await app.tell(...)`, which waits.

        Raises ValueError for a shard that there is not and for a message that is too long (65,536
        bytes with the name of its type), TypeError for what is no struct, OutputTooLarge like
        `Session.send`. For handlers and the loop's thread.
        """
        return self._tells("tell").tell(shard, encode_message(message, self.codec))

    def tell_key(self, key: "Key", message: msgspec.Struct) -> Telling:
        """Tell the shard that owns `key`, a str, bytes or an int, a message; else as `tell`.

        Which one that is, all shards agree on: rendezvous hashing over the nodes, and then over the
        shards of the node. 7, "7" and b"7" are one key. Raises `NoOwner` while no node may own
        keys; see `on_keys`.
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

        `to` is as for `tell`, or a str or bytes that is a key. The answer is a `reply_type`;
        without one it is only waited for. Not in `on_start` and `on_stop`, when nothing comes.

        Raises TimeoutError when there is no answer within `timeout_s` seconds, the time without
        credit included; `Undelivered` when the node that was asked is gone or has begun anew: both
        leave open whether the message was handled. `AskFailed` when there is no answer:
        the handler raised, or there is none, or the answer is of another type. What `tell` raises,
        but for `Full`. If the worker that asks dies, the handler call begins again in its
        successor, and asks again: then the message may be handled twice.
        """
        content = encode_message(message, self.codec)
        answer = await self._tells("ask").ask(to, content, timeout_s)
        return None if reply_type is None else decode_answer(answer, reply_type, self.codec)

    def _tells(self, what: str) -> Tells:
        if self._runtime is None:
            raise RuntimeError(f"{what} works in a running worker only; start one by cluster up")
        return self._runtime.tells

    def post(self, function: Callable[[], Any]) -> None:
        """Run `function()` soon on the loop's thread, where it may use sessions. Any thread.

        Raises RuntimeError when 65,536 functions wait already.
        """
        with self._posted_lock:
            if len(self.posted) >= POSTED_MAX:
                raise RuntimeError(f"{POSTED_MAX} posted functions wait already; post less")
            self.posted.append(function)
        if self._runtime is not None:
            self._runtime.wake()

    def attach(self, runtime: Runtime) -> None:
        """Run in `runtime` from now on; done by the worker."""
        self._runtime = runtime

    def detach(self, runtime: Runtime) -> None:
        """Run in `runtime` no more; what was posted to it and did not run is dropped."""
        if self._runtime is runtime:
            self._runtime = None
            self.take_posted()

    def take_posted(self) -> list[Callable[[], Any]]:
        """Return what was posted since the last call; done by the worker."""
        if not self.posted:
            return []
        with self._posted_lock:
            posted = list(self.posted)
            self.posted.clear()
        return posted

    def _checked(self, handler: _Handler, *parameters: str) -> _Handler:
        """Return `handler` if it can be called with `parameters`; else raise TypeError."""
        check_handler(handler, *parameters)
        if is_coroutine_function(handler):
            self.has_coroutines = True
        return handler
