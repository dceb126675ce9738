"""The status of a node, for people."""

from rich.console import Console
from rich.table import Table

from cluster.shared.node_status import (
    CommitWaits,
    InHand,
    MembershipStatus,
    NodeStatus,
    WorkerStatus,
)

__all__ = ["print_table"]


def print_table(node: NodeStatus) -> None:
    """Print the status of a node for people."""
    gateway = node.gateway
    console = Console(highlight=False, markup=False, emoji=False)  # addresses have brackets
    console.print(f"node {node.node}, epoch {node.epoch}")
    has = f"{gateway.sessions} sessions" if node.is_of_gateway else "does not answer: as last known"
    console.print(f"gateway pid {_shown(gateway.pid)}, {gateway.driver}, {has}")
    if gateway.remote_listen:
        console.print(f"workers on other machines connect at tcp://{gateway.remote_listen}")
    table = Table("shard", "pid", "state", "restarts", "lane", "waits, worst", "in hand")
    for worker in node.workers:
        row = (worker.shard, _where(worker), worker.state, worker.restarts, worker.lane)
        table.add_row(*map(str, row), _waits(worker.waits), _in_hand(worker.in_hand))
    console.print(table)
    for worker in node.workers:
        if worker.awaiting is not None:
            longest = _in_hand(worker.awaiting)
            console.print(f"shard {worker.shard} awaits longest: {longest}", soft_wrap=True)
    console.print(f"spares {', '.join(str(spare.pid) for spare in node.spares) or '-'}")
    if node.membership is not None:
        console.print(_membership_line(node.membership), soft_wrap=True)
    for link in node.links:
        waiting = f", {link.waiting_records} records wait" if link.waiting_records else ""
        why = f": {link.reason}" if link.reason else ""
        console.print(
            f"link to node {link.node} at {link.address}: {link.state}{waiting}{why}",
            soft_wrap=True,
        )
    for name, number in sorted(node.counters.items()):
        console.print(f"{name} {number}")


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
