"""What an application handles: its functions, by packet id and by event.

They are only collected until a worker runs them, so that a module can be imported anywhere. Each is
checked when it is registered: whether it can be called, and what its annotations ask for. From then
on they stay as they are: what the gateway is told of an application, and how its records are
handled, is settled when a worker begins.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast, overload

import msgspec

from cluster.iocp.packet_framing import make_packet
from cluster.shared.codec import Codec
from cluster.shared.shard_ids import ShardId
from cluster.shared.user_records import BindResult
from cluster.worker.app_timers import INTERVAL_MIN_S, Repeated
from cluster.worker.decode_errors import DecodeErrors
from cluster.worker.handler_shape import (
    check_handler,
    check_handler_of_either,
    is_coroutine_function,
)
from cluster.worker.message_handlers import MessageHandlers
from cluster.worker.packet_stream import Packets
from cluster.worker.payload_annotation import handler_name
from cluster.worker.payload_handlers import adapt_any_handler, adapt_packet_handler
from cluster.worker.session import Session

__all__ = ["Handlers"]

PacketHandler = Callable[[Session, bytes], Any]
AnyHandler = Callable[[Session, int, bytes], Any]
PacketsHandler = Callable[[Session, Packets], Any]
SessionHandler = Callable[[Session], Any]
PlainHandler = Callable[[], Any]
DisconnectedHandler = Callable[[Session, str], Any]
JoinedHandler = Callable[[Session, str], Any]
BoundHandler = Callable[[Session, BindResult], Any]
KeysHandler = Callable[[tuple[int, ...]], Any] | Callable[[tuple[int, ...], tuple[int, ...]], Any]
DrainHandler = Callable[[float], Any]

_Handler = TypeVar("_Handler", bound=Callable[..., Any])
_PlainHandler = TypeVar("_PlainHandler", bound=PlainHandler)
_SessionHandler = TypeVar("_SessionHandler", bound=SessionHandler)
_DisconnectedHandler = TypeVar("_DisconnectedHandler", bound=DisconnectedHandler)
_JoinedHandler = TypeVar("_JoinedHandler", bound=JoinedHandler)
_BoundHandler = TypeVar("_BoundHandler", bound=BoundHandler)
_KeysHandler = TypeVar("_KeysHandler", bound=KeysHandler)
_DrainHandler = TypeVar("_DrainHandler", bound=DrainHandler)
_PacketHandler = TypeVar("_PacketHandler", bound=Callable[[Session, Any], Any])
_AnyHandler = TypeVar("_AnyHandler", bound=Callable[[Session, int, Any], Any])
_PacketsHandler = TypeVar("_PacketsHandler", bound=PacketsHandler)
_MessageHandler = TypeVar(
    "_MessageHandler", bound=Callable[[Any, ShardId], Any] | Callable[[Any, ShardId, Any], Any]
)
_UndeliveredHandler = TypeVar("_UndeliveredHandler", bound=Callable[[Any, ShardId | bytes], Any])

_Decorator = TypeVar("_Decorator", bound=Callable[..., Any])

_ONE_OF_TWO = "on_any and on_packets are two ways to handle the same packets; keep one of them"


def _without_brackets(decorator: _Decorator) -> _Decorator:
    """Return `decorator`, which is given a handler itself; called without one it says how to."""
    name = decorator.__name__

    @functools.wraps(decorator)
    def register(self: Any, *given: Any, **named: Any) -> Any:
        if not given and not named:
            raise TypeError(f"{name} is given no handler; write @app.{name} without brackets")
        return decorator(self, *given, **named)

    return cast("_Decorator", register)


class Handlers:
    """The handlers of one application: one for each packet id, and for each other thing.

    A second one is refused, ValueError, as the first would silently be called no more. In a running
    worker, `on_start` included, all are: RuntimeError.
    """

    def __init__(self, codec: Codec, decode_errors: DecodeErrors) -> None:
        """Have none yet. Payloads are decoded by `codec`; `decode_errors` hears what cannot be."""
        self.codec = codec
        self.decode_errors = decode_errors
        self._names: dict[str, str] = {}
        """What each packet id, or decorator, has been given."""
        self.has_coroutines = False
        """Whether any handler is a coroutine function."""
        self.packet_handlers: dict[int, PacketHandler] = {}
        self.any_handler: AnyHandler | None = None
        self.packets_handler: PacketsHandler | None = None
        """What packets that came together are given to at once."""
        self.start_handler: PlainHandler | None = None
        self.stop_handler: PlainHandler | None = None
        self.connected_handler: SessionHandler | None = None
        self.resumed_handler: SessionHandler | None = None
        self.disconnected_handler: DisconnectedHandler | None = None
        self.bound_handler: BoundHandler | None = None
        self.joined_handler: JoinedHandler | None = None
        self.messages = MessageHandlers(codec)
        """Those of messages that shards tell each other."""
        self.keys_handler: KeysHandler | None = None
        self.keys_handler_takes_anew = False
        self.drain_handler: DrainHandler | None = None
        self.repeated: list[Repeated] = []
        """What `every` was given."""
        self.send_blocked_handler: SessionHandler | None = None
        self.send_ready_handler: SessionHandler | None = None
        self.public_ids: set[int] = set()
        """Packet ids that get through before a session is accepted (`limits.auth_timeout_s`)."""

    @property
    def is_running(self) -> bool:
        """Whether a worker runs this application."""
        return False

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
        what = f"packet id {packet_id}"
        self._check_not_running("on_packet")
        self._check_free(what)

        def register(handler: _PacketHandler) -> _PacketHandler:
            self._check_free(what)
            self.packet_handlers[packet_id] = adapt_packet_handler(
                self._checked("on_packet", handler, "session", "payload"),
                packet_id,
                self.codec,
                self.decode_errors,
            )
            self._names[what] = handler_name(handler)
            if public:
                self.public_ids.add(packet_id)
            return handler

        return register

    @_without_brackets
    def on_any(self, handler: _AnyHandler) -> _AnyHandler:
        """Handle the packets whose id has no handler by `f(session, packet_id, payload)`.

        The annotation of `payload` counts as in `on_packet`. Raises TypeError as that does, and
        ValueError where there is an `on_packets`.
        """
        if "on_packets" in self._names:
            raise ValueError(_ONE_OF_TWO)
        self._check_free("on_any")
        self.any_handler = adapt_any_handler(
            self._checked("on_any", handler, "session", "packet_id", "payload"),
            self.codec,
            self.decode_errors,
        )
        self._names["on_any"] = handler_name(handler)
        return handler

    @_without_brackets
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
        `on_any`.
        """
        if "on_any" in self._names:
            raise ValueError(_ONE_OF_TWO)
        self._only("on_packets", handler, "session", "packets")
        if not is_coroutine_function(handler):
            self.packets_handler = handler
        self.any_handler = lambda session, packet_id, payload: handler(
            session, Packets(make_packet(packet_id, payload), 1)
        )
        return handler

    @_without_brackets
    def on_start(self, handler: _PlainHandler) -> _PlainHandler:
        """Call `f()` once in each worker, when it is given its shard and before anything else.

        Not at the import, and not in a spare that waits: what belongs to the one process that
        works for a shard is begun here, such as threads, timers and connections. It may broadcast
        and post, and has to return within `worker_timeout_s`. If it raises, the worker cannot
        start: nothing that it sent is sent.
        """
        self.start_handler = self._only("on_start", handler)
        return handler

    @_without_brackets
    def on_stop(self, handler: _PlainHandler) -> _PlainHandler:
        """Call `f()` once in a worker that ends in good order: in a drain, or asked to stop.

        It comes after every other handler call; none follows. What it sends, and what it saves for
        sessions that stay (`session.save`, when a worker alone is asked to stop), goes out with the
        worker's last batch, if the lane has room; in a drain its clients have gone by then. It has
        to return within `worker_timeout_s`, and what is left of `drain_timeout_s`. If it raises,
        that is logged, nothing that it sent is sent, and the worker ends as it would have. Not
        called in a worker that is killed, or has lost its gateway, or whose `on_start` raised.
        """
        self.stop_handler = self._only("on_stop", handler)
        return handler

    @_without_brackets
    def on_connected(self, handler: _SessionHandler) -> _SessionHandler:
        """Call `f(session)` when a client has connected."""
        self.connected_handler = self._only("on_connected", handler, "session")
        return handler

    @_without_brackets
    def on_resumed(self, handler: _SessionHandler) -> _SessionHandler:
        """Call `f(session)` for each session that was taken over from a worker that died."""
        self.resumed_handler = self._only("on_resumed", handler, "session")
        return handler

    @_without_brackets
    def on_disconnected(self, handler: _DisconnectedHandler) -> _DisconnectedHandler:
        """Call `f(session, cause)` when a session has ended."""
        self.disconnected_handler = self._only("on_disconnected", handler, "session", "cause")
        return handler

    @_without_brackets
    def on_bound(self, handler: _BoundHandler) -> _BoundHandler:
        """Call `f(session, result)` with the answer to a `session.bind`: a `BindResult`.

        `session.user` is who the session is then. Not called for a session that has ended, or for a
        bind that `session.unbind` has made void.
        """
        self.bound_handler = self._only("on_bound", handler, "session", "result")
        return handler

    @_without_brackets
    def on_joined(self, handler: _JoinedHandler) -> _JoinedHandler:
        """Call `f(session, name)` once every linked node knows that `session` has joined `name`.

        From then on the session misses nothing that is published to the group at any of these
        nodes, also while a link is cut, as far as its log takes it; before, it may get what is
        published at others, or not. A node that cannot be reached is not waited for: what is
        published there is missed until its link stands. It comes at once where the node stands
        alone, or its members are known. Once for each `session.join` that changes something, in any
        order, unless the session has left the group, or has ended, before.
        """
        self.joined_handler = self._only("on_joined", handler, "session", "name")
        return handler

    def every(self, seconds: float) -> Callable[[_PlainHandler], _PlainHandler]:
        """Call `f()` every `seconds` seconds in each worker, until that ends.

        The n-th call is due n intervals after the worker's start, behind `on_start`: it does not
        drift. Calls that are missed while a handler holds the loop, or while a coroutine of the
        call before still awaits, are skipped, not made up for. What a call sends goes out with no
        packet's commit. One that raises is logged, and what it sent is not sent; the next one comes
        all the same. A function may have several intervals. In a running worker use `call_later`.
        Raises ValueError for less than 0.001 s, TypeError for what is no number.
        """
        if not isinstance(seconds, int | float):
            raise TypeError(f"every takes seconds, not {seconds!r}; write @app.every(1.0)")
        if not INTERVAL_MIN_S <= seconds < math.inf:
            raise ValueError(f"every {seconds!r} seconds: give {INTERVAL_MIN_S} or more")
        self._check_not_running("every")

        def register(function: _PlainHandler) -> _PlainHandler:
            self.repeated.append(Repeated(float(seconds), self._checked("every", function)))
            return function

        return register

    @_without_brackets
    def on_send_blocked(self, handler: _SessionHandler) -> _SessionHandler:
        """Call `f(session)` when much waits to be sent to a client: it takes less than it is sent.

        Much is more than `limits.send_blocked_bytes`, half of `gateway.send_queue_bytes_max` by
        default; past all of that the session is ended (`send_overflow`). Send less until
        `on_send_ready`; `session.is_send_blocked` tells in between.
        """
        self.send_blocked_handler = self._only("on_send_blocked", handler, "session")
        return handler

    @_without_brackets
    def on_send_ready(self, handler: _SessionHandler) -> _SessionHandler:
        """Call `f(session)` when little waits again, `limits.send_ready_bytes`, to be sent.

        Once for each `on_send_blocked`, in turn, unless the session ends before.
        """
        self.send_ready_handler = self._only("on_send_ready", handler, "session")
        return handler

    @overload
    def on_message(
        self, what: type[msgspec.Struct]
    ) -> Callable[[_MessageHandler], _MessageHandler]: ...

    @overload
    def on_message(self, what: _MessageHandler) -> _MessageHandler: ...

    @_without_brackets
    def on_message(self, what: Any) -> Any:
        """Call `f(message, sender)` for the messages of one type that shards tell this one.

        The type, a msgspec.Struct, is given, `@app.on_message(Move)`, or the annotation of
        `message` says it, `@app.on_message`; its name is what shards know it by. `sender` is a
        `ShardId`. What the handler returns, a struct or nothing, answers who has asked (`ask`).

        `f(message, sender, key)` takes what is told by key, as the bytes that the key is, or as a
        str or int if `key` is annotated so. What is told this shard itself is then taken by
        `f(message, sender)` of that type, if there is one. Where there is no handler with a key,
        that takes both.

        Messages of one shard are handled once and in order, and again, as packets are, after a
        worker's death without their commit. Those whose handlers await go on beside each other.
        A call that raises is logged and taken back, and nothing else ends by that. Raises TypeError
        and ValueError for what cannot be a handler of messages, or has one.
        """
        given = what if isinstance(what, type) else None

        def register(handler: _Handler) -> _Handler:
            takes_key = self._checked_either("on_message", handler, "key", "message", "sender")
            self.messages.add(handler, given, takes_key=takes_key)
            return handler

        return register if given is not None else register(what)

    @_without_brackets
    def on_undelivered(self, handler: _UndeliveredHandler) -> _UndeliveredHandler:
        """Call `f(message, receiver)` when nobody knows what became of a message.

        The node that it was for has begun another life, or is gone for good, before the message was
        handled for good there; or it has no such shard. It may have been handled. `receiver` is the
        `ShardId` that was told, or the key, as bytes. The call is made in the shard that has
        told it, in a successor of its worker if need be. Types of messages that this application
        does not handle itself are to be in the annotation of `message`, as a union.
        """
        self.messages.set_undelivered(self._only("on_undelivered", handler, "message", "receiver"))
        return handler

    @_without_brackets
    def on_keys(self, handler: _KeysHandler) -> _KeysHandler:
        """Call `f(owners)` when nodes join or leave, and keys are owned anew: by `owners`, ids.

        It comes before any message by a key that is this shard's by the new list only, and `owns`,
        `owner_of` and `tell_key` go by that list from here on. Only the keys of nodes that have
        left move, and those that a new node gets: hand over what is not this shard's any more. A
        node whose lease has ended is not among the owners, which may be none; nor is one that
        drains.

        It is called as well, in the shards of other nodes and before any message of its own, when
        a node has begun anew that owned keys the last time and still does: what that had saved
        (`App.save`) is gone. With a static list that is the only time. `f(owners, anew)` gets the
        ids of such nodes.

        A call that raises is logged and taken back; as any other it comes again after a worker's
        death without its commit.
        """
        self._check_free("on_keys")
        self.keys_handler_takes_anew = self._checked_either("on_keys", handler, "anew", "owners")
        self._names["on_keys"] = handler_name(handler)
        self.keys_handler = handler
        return handler

    @_without_brackets
    def on_drain(self, handler: _DrainHandler) -> _DrainHandler:
        """Call `f(seconds)` when the node drains: sessions are this application's to let go.

        With it a drain ends no session until all of them have ended, or `seconds` have passed,
        which is most of `supervisor.drain_timeout_s`; new ones are not accepted. Until then all
        goes on: packets, timers, messages. So `disconnect` whom nothing keeps, and the others when
        they are done. Then come the ends of those that are left, with the cause `drain`. It is
        called again in each worker that takes the shard over meanwhile, behind `on_resumed`. A call
        that raises is logged and taken back.
        """
        self.drain_handler = self._only("on_drain", handler, "seconds")
        return handler

    @property
    def keeps_sessions(self) -> bool:
        """Whether sessions are this application's to let go when the node drains: `on_drain`."""
        return self.drain_handler is not None

    def _only(self, what: str, handler: _Handler, *parameters: str) -> _Handler:
        """Return `handler`, which is `_checked`, as the only one of `what`."""
        self._check_free(what)
        self._checked(what, handler, *parameters)
        self._names[what] = handler_name(handler)
        return handler

    def _check_free(self, what: str) -> None:
        """Raise ValueError if `what` has a handler: the other one would never be called."""
        if what in self._names:
            raise ValueError(
                f"{what} has the handler {self._names[what]} already; have one that does both"
            )

    def _check_not_running(self, what: str) -> None:
        """Raise RuntimeError in a running worker: some of it is settled, and would not change."""
        if self.is_running:
            remedy = "in a running worker use call_later"
            if what != "every":
                remedy = "have a handler there that calls what is chosen later"
            raise RuntimeError(
                f"{what} is for the import of the application, at the top level of a module, and "
                f"not for a running worker (on_start included); {remedy}"
            )

    def _checked(self, what: str, handler: _Handler, *parameters: str) -> _Handler:
        """Return `handler` of `what` if it can be called with `parameters`; else raise TypeError.

        RuntimeError in a running worker.
        """
        self._check_not_running(what)
        check_handler(handler, *parameters)
        if is_coroutine_function(handler):
            self.has_coroutines = True
        return handler

    def _checked_either(self, what: str, handler: _Handler, last: str, *parameters: str) -> bool:
        """Return whether `handler` has to be called with `last` behind `parameters`.

        Raises as `_checked`, if it can be called neither with that nor without.
        """
        self._check_not_running(what)
        takes_last = check_handler_of_either(handler, last, *parameters)
        self._checked(what, handler, *parameters, *[last] * takes_last)
        return takes_last
