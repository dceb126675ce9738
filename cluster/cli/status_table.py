"""The status of a node, for people."""

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.shared.node_status import (
    MOMENTARY_COUNTERS,
    CommitWaits,
    InHand,
    MembershipStatus,
    NodeStatus,
    WorkerStatus,
)

__all__ = ["counts_of", "make_console", "print_parts", "rates_of", "screen_of", "status_parts"]


def make_console() -> Console:
    """Return a console that prints a status as it is: addresses have brackets."""
    return Console(highlight=False, markup=False, emoji=False)


def print_parts(console: Console, parts: Iterator[str | Table]) -> None:
    """Print the parts of a status, however long their lines are."""
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def screen_of(parts: Iterator[str | Table]) -> Group:
    """Return the parts of a status for a screen, which cuts what is too long for it."""
    shown: list[RenderableType] = []
    for part in parts:
        if isinstance(part, str):
            shown.append(Text(part, no_wrap=True, overflow="ellipsis"))
        else:
            shown.append(part)
    return Group(*shown)


def counts_of(node: NodeStatus) -> Iterator[str]:
    """Return all counters, a line each."""
    return (f"{name} {number}" for name, number in sorted(node.counters.items()))


def rates_of(node: NodeStatus, before: NodeStatus, seconds: float) -> Iterator[str]:
    """Return what has grown since `before`, by the second, and how much there is of the rest.

    Nothing is said of counters that have not changed, nor of those of a gateway that has died.
    """
    last = before.counters if before.epoch == node.epoch else node.counters
    for name, number in sorted(node.counters.items()):
        if name in MOMENTARY_COUNTERS:
            if number:
                yield f"{name} {number:,} now"
        elif grown := number - last.get(name, 0):
            yield f"{name} {grown / seconds:,.1f}/s"


def status_parts(node: NodeStatus, counters: Iterator[str]) -> Iterator[str | Table]:
    """Return the status of a node for people: lines and tables, with `counters` at the end."""
    gateway = node.gateway
    yield f"node {node.node}, epoch {node.epoch}"
    has = f"{gateway.sessions} sessions" if node.is_of_gateway else "does not answer: as last known"
    yield f"gateway pid {_shown(gateway.pid)}, {gateway.driver}, {has}"
    if gateway.remote_listen:
        yield f"workers on other machines connect at tcp://{gateway.remote_listen}"
    table = Table("shard", "pid", "state", "restarts", "lane", "waits, worst", "in hand")
    for worker in node.workers:
        row = (worker.shard, _where(worker), worker.state, worker.restarts, worker.lane)
        table.add_row(*map(str, row), _waits(worker.waits), _in_hand(worker.in_hand))
    yield table
    for worker in node.workers:
        if worker.awaiting is not None:
            yield f"shard {worker.shard} awaits longest: {_in_hand(worker.awaiting)}"
    yield f"spares {', '.join(str(spare.pid) for spare in node.spares) or '-'}"
    if node.membership is not None:
        yield _membership_line(node.membership)
    for link in node.links:
        waiting = f", {link.waiting_records} records wait" if link.waiting_records else ""
        why = f": {link.reason}" if link.reason else ""
        yield f"link to node {link.node} at {link.address}: {link.state}{waiting}{why}"
    yield from counters


def _membership_line(membership: MembershipStatus) -> str:
    line = f"membership {membership.source}: {membership.state}"
    if membership.lease_left_s is not None:
        line += f", {membership.lease_left_s:.1f} s of its lease left"
    if membership.heard_s_ago is not None:
        line += f", heard from the store {membership.heard_s_ago:.1f} s ago"
    members = ", ".join(map(str, membership.members)) or "-"
    why = f": {membership.reason}" if membership.reason else ""
    return f"{line}; members {members}{why}"


def _shown(pid: int | None) -> str:
    return "-" if pid is None else str(pid)


def _where(worker: WorkerStatus) -> str:
    remote = worker.remote
    if not remote:
        return _shown(worker.pid)
    where = "elsewhere" if remote.key is None else f"{remote.key} at {remote.address}"
    return f"{_shown(worker.pid)} ({where})"


def _waits(waits: CommitWaits | None) -> str:
    if waits is None or waits.median_s is None or waits.worst_s is None:
        return "-"
    return f"{_milliseconds(waits.median_s)}, {_milliseconds(waits.worst_s)} ms"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def _in_hand(in_hand: InHand | None) -> str:
    if in_hand is None:
        return "-"
    if not in_hand.session:
        return f"a message of a shard for {in_hand.for_s:.1f} s"
    what = "an event" if in_hand.sequence is None else f"packet {in_hand.sequence}"
    which = "" if in_hand.packet_id is None else f" (id {in_hand.packet_id})"
    return f"{what}{which} of {in_hand.session:#x} for {in_hand.for_s:.1f} s"
