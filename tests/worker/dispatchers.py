"""Dispatchers, and what applications run in, without a worker around them."""

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from cluster.shared.lane import START, Commit
from cluster.shared.messages import Grant, LaneOffer
from cluster.shared.note import NoteWriter
from cluster.shared.takeover import Suspect
from cluster.worker import App, careful_dispatcher
from cluster.worker.app_timers import AppTimers
from cluster.worker.coroutines import Coroutines
from cluster.worker.dispatcher import Dispatcher
from cluster.worker.handler_calls import HandlerCalls
from cluster.worker.outbox import Outbox
from cluster.worker.runtime import Runtime
from cluster.worker.saved_state import SavedState
from cluster.worker.tells import granted_tells


def make_grant(commit: Commit = START, **others: Any) -> Grant:
    """Return that of a worker of node 1 of 1 and 2 that goes on at `commit`."""
    offer = LaneOffer(
        kind="local", endpoint="", identity=b"", capacity_bytes=1 << 20, max_batch_bytes=1 << 20
    )
    return Grant(
        node=1,
        nonce=1,
        shard=0,
        incarnation=1,
        lane=offer,
        position=commit.position,
        index=commit.packet_index,
        sessions=[],
        max_packet_bytes=65_535,
        worker_timeout_s=60.0,
        nodes=[1, 2],
        key_owners=[1, 2],
        **others,
    )


def no_coroutines() -> Coroutines:
    raise AssertionError("nothing here runs coroutines")


def make_runtime(outbox: Outbox, saved_state: SavedState | None = None) -> Runtime:
    """Return what an application is to run in that puts out what it does in `outbox`."""
    return Runtime(
        outbox,
        65_535,
        granted_tells(make_grant(), outbox, lambda: False),
        saved_state or SavedState(outbox, {}, 0),
        {},
        AppTimers(),
        monotonic,
        lambda: None,
    )


def make_dispatcher(
    app: App,
    outbox: Outbox,
    commit: Commit = START,
    between_packets: Callable[[], None] = lambda: None,
    *,
    note: NoteWriter | None = None,
    suspects: Iterable[Suspect] = (),
    settle: Callable[[], None] = lambda: None,
    redelivered_through: int = 0,
) -> Dispatcher:
    """Return the dispatcher of a worker that goes on at `commit`.

    Its batch is always old enough, as long as `outbox.publish_at` says nothing else.
    """
    grant = make_grant(commit, redelivered_through=redelivered_through, suspects=list(suspects))
    return careful_dispatcher.make_dispatcher(
        app,
        grant,
        outbox,
        HandlerCalls(app, outbox, monotonic),
        granted_tells(grant, outbox, lambda: False),
        note if note is not None else NoteWriter(),
        monotonic,
        between_packets,
        settle,
        no_coroutines,
    )
