"""How the workers of a node come to run the latest version, step by step. No I/O, no clock.

The rule that it keeps: a worker that serves is asked to end only when a process waits that has
imported the latest version; and of all workers only one, until its successor has started. So a
version that does not import costs nothing, and one that does not start costs one handover, to a
spare of the version before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.supervisor.shard import ShardPlace
from cluster.supervisor.spare import Spare
from cluster.supervisor.versions import Verdict, Versions

__all__ = ["CANDIDATES_MAX", "ReplaceWorker", "Retire", "StartCandidate", "Step", "next_steps"]

CANDIDATES_MAX = 4
"""Processes beside the spares that wait to replace workers. More would import the application
at the same time than most machines have processors for."""


@dataclass(frozen=True, slots=True)
class StartCandidate:
    """Start one more process with the latest version, which waits beside the spares."""


@dataclass(frozen=True, slots=True)
class Retire:
    """End a process that waits; it is to have no shard any more."""

    spare: Spare


@dataclass(frozen=True, slots=True)
class ReplaceWorker:
    """Have a worker end in good order; somebody waits to succeed it."""

    shard: ShardPlace


Step = StartCandidate | Retire | ReplaceWorker


def next_steps(
    versions: Versions,
    shards: Sequence[ShardPlace],
    spares: Sequence[Spare],
    candidates: Sequence[Spare],
) -> list[Step]:
    """Return what is to be done now, for a node that was ready; asked again it is not repeated.

    `spares` are the places for those that always wait, `candidates` the processes beside them.
    """
    needy = [shard for shard in shards if shard.child is None or shard.is_ending]
    stale = [shard for shard in shards if _is_stale(shard, versions)]
    stale.sort(key=lambda shard: shard.state == "ready")  # who serves nobody has nothing to lose
    retired = [spare for spare in spares if spare.child and _is_of_no_use(spare, versions)]
    for candidate in candidates:
        is_latest = candidate.version in (None, versions.latest)
        is_needed = needy or (stale and is_latest)
        if not candidate.is_retired and (not is_needed or _is_of_no_use(candidate, versions)):
            retired.append(candidate)
    fresh = [
        spare
        for spare in (*spares, *candidates)
        if spare.version == versions.latest and not spare.is_retired and spare not in retired
    ]
    steps: list[Step] = [Retire(spare) for spare in retired]
    wanted = _wanted(versions, shards, stale) - _coming(versions, spares, candidates, fresh)
    steps += [StartCandidate() for _ in range(min(wanted, CANDIDATES_MAX - len(candidates)))]
    free = sum(spare.is_ready for spare in fresh) - len(needy)
    steps += [ReplaceWorker(shard) for shard in _turns(versions, shards, stale, free)]
    return steps


def _is_stale(shard: ShardPlace, versions: Versions) -> bool:
    """Whether a worker runs an earlier version, and was not asked to end yet.

    Also one that has not started: a version that waits in `on_start` for ever has to be left."""
    return (
        shard.version is not None
        and shard.version < versions.latest
        and shard.state in ("ready", "starting")
        and not shard.is_ending
    )


def _is_of_no_use(spare: Spare, versions: Versions) -> bool:
    if spare.is_retired:
        return False
    if spare.version in (None, versions.latest):
        return versions.verdict is Verdict.FAILS
    # One that was importing as the files changed may have something of both versions.
    return not spare.is_ready or versions.verdict is Verdict.SERVES


def _wanted(versions: Versions, shards: Sequence[ShardPlace], stale: Sequence[ShardPlace]) -> int:
    """Return how many processes of the latest version are to wait or be on their way."""
    match versions.verdict:
        case Verdict.FAILS:
            return 0
        case Verdict.SERVES:
            return len(stale) + sum(shard.is_ending for shard in shards)
        case _:
            return 1 if stale else 0


def _coming(
    versions: Versions,
    spares: Sequence[Spare],
    candidates: Sequence[Spare],
    fresh: Sequence[Spare],
) -> int:
    """Return how many of those there are, or will be without a step."""
    due = sum(spare.child is None for spare in candidates)
    if versions.verdict is not Verdict.SERVES:
        return len(fresh) + due  # until it serves, a place that a spare left stays empty
    return len(spares) + sum(spare not in spares for spare in fresh) + due


def _turns(
    versions: Versions, shards: Sequence[ShardPlace], stale: Sequence[ShardPlace], free: int
) -> Sequence[ShardPlace]:
    """Return whose turn it is, of those that are `stale`, where `free` processes wait."""
    if versions.verdict is Verdict.SERVES:
        return stale[: max(0, free)]
    if versions.verdict is Verdict.IMPORTS and free > 0:
        # The first worker shows whether the others may follow.
        is_tried = any(shard.is_ending or shard.version == versions.latest for shard in shards)
        return stale[: 0 if is_tried else 1]
    return []
