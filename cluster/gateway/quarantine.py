"""Finds the handler calls that kill workers, and has them set aside.

Wires what decides (`DeathCount`) to the notes of the workers, the shards' logs, and the dead
letters. A packet is skipped, and its session ended, by the successor, which commits that; a
session whose `on_resumed` kills is ended here, since no record asks for that call.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from cluster.gateway.counters import Counters
from cluster.gateway.dead_letter_file import DeadLetterFile
from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.invocation import Invocation, find_invocation
from cluster.gateway.note_files import NoteFiles
from cluster.gateway.poison import DeathCount
from cluster.gateway.shard import Shard
from cluster.gateway.shard_tells import TellOwner
from cluster.shared.causes import Cause
from cluster.shared.dead_letters import DeadLetter
from cluster.shared.lane import Commit
from cluster.shared.node_status import InHand
from cluster.shared.note import HandlerCall, NoteReader
from cluster.shared.takeover import PastCall, Suspect

__all__ = ["Quarantine"]

logger = logging.getLogger("cluster.gateway")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Quarantine:
    """The suspects of all shards. For the dispatching thread."""

    __slots__ = (
        "_awaited",
        "_counters",
        "_counts",
        "_files",
        "_letters",
        "_life",
        "_max_redeliveries",
        "_notes",
        "_remote_lives",
        "_wall_clock",
    )

    def __init__(
        self,
        life: GatewayLife,
        shard_count: int,
        max_redeliveries: int,
        files: NoteFiles,
        letters: DeadLetterFile,
        counters: Counters,
        wall_clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        """Set aside what was in hand at `max_redeliveries` deaths in a row."""
        self._life = life
        self._max_redeliveries = max_redeliveries
        self._files = files
        self._letters = letters
        self._counters = counters
        self._wall_clock = wall_clock
        self._counts = [DeathCount(max_redeliveries) for _ in range(shard_count)]
        self._notes: list[tuple[str, NoteReader] | None] = [None] * shard_count
        self._remote_lives: dict[int, int] = {}
        """By shard the incarnation that is on another machine, where its note is."""
        self._awaited: list[int | None] = [None] * shard_count
        """By shard the incarnation on another machine that has ended, and how is not known yet."""

    def begin_life(self, shard: Shard, incarnation: int, *, has_note: bool = True) -> str | None:
        """Make the note of a life that is to be granted; return its name, None without one.

        One that is not to have a note here is on another machine, and has one there.
        """
        if not has_note:
            self._remote_lives[shard.index] = incarnation
            return None
        note = self._files.create(shard.index, incarnation)
        if note is None:
            self._counters.add("notes_missing")
            return None
        self._notes[shard.index] = note
        return note[0]

    def suspects(self, shard: Shard, commit: Commit) -> list[Suspect]:
        """Return what a life that goes on at `commit` has to be careful with."""
        return [
            Suspect(position=call.position, index=call.packet_index, is_set_aside=is_set_aside)
            for call, is_set_aside in self._counts[shard.index].suspects(
                commit, shard.succession.deferred
            )
        ]

    def end_life(self, shard: Shard, was_replaced: bool) -> bool:
        """Count the end of a life, whose batches are all applied, and let go of its note.

        True if it led to something being set aside. An end in good order has nothing in hand;
        that of a life that `was_replaced` says nothing about what it had.
        """
        remote_life = self._remote_lives.pop(shard.index, None)
        if remote_life is not None:
            self._awaited[shard.index] = remote_life
            return False
        in_hand = self._read(shard)
        note, self._notes[shard.index] = self._notes[shard.index], None
        if note is not None:
            self._files.remove(*note)
        if was_replaced:
            return False
        return self._died(shard, in_hand)

    def told(self, shard: Shard, past: Sequence[PastCall]) -> None:
        """A worker on another machine that is to have `shard` tells of the lives before it.

        If the last life is not among them, because it ended in good order or was elsewhere,
        nobody knows what it had in hand, and nothing is blamed.
        """
        incarnation, self._awaited[shard.index] = self._awaited[shard.index], None
        if incarnation is None:
            return
        in_hand = None
        for note in past:
            if (note.nonce, note.incarnation) == (self._life.nonce, incarnation):
                call = HandlerCall(note.position, note.index, note.session)
                invocation = find_invocation(shard, call)
                in_hand = None if invocation is None else (call, invocation, 0.0)
        self._died(shard, in_hand)

    def _died(self, shard: Shard, in_hand: tuple[HandlerCall, Invocation, float] | None) -> bool:
        call = None if in_hand is None else in_hand[0]
        is_poison = self._counts[shard.index].died(call)
        if in_hand is not None:
            _, invocation, for_s = in_hand
            if is_poison:
                self._set_aside(shard, invocation)
            else:
                logger.warning(
                    "shard %d: its worker has ended with %s in hand%s",
                    shard.index,
                    _described(invocation),
                    f", for {for_s:.1f} s" if for_s else "",
                )
        return is_poison

    def in_hand(self, shard: Shard) -> InHand | None:
        """Return what the shard's worker works on, without its help."""
        in_hand = self._read(shard)
        if in_hand is None:
            return None
        _, invocation, for_s = in_hand
        return invocation.shown(for_s)

    def close(self) -> None:
        """Remove the notes: the gateway has come to its end, and so have the workers."""
        for index, note in enumerate(self._notes):
            if note is not None:
                self._files.remove(*note)
                self._notes[index] = None

    def _read(self, shard: Shard) -> tuple[HandlerCall, Invocation, float] | None:
        note = self._notes[shard.index]
        noted = None if note is None else note[1].read()
        if noted is None:
            return None
        invocation = find_invocation(shard, noted[0])
        return None if invocation is None else (noted[0], invocation, noted[1])

    def _set_aside(self, shard: Shard, invocation: Invocation) -> None:
        session = invocation.session
        logger.error(
            "shard %d: %s is set aside: %d workers in a row died of it",
            shard.index,
            _described(invocation),
            self._max_redeliveries,
        )
        self._counters.add("dead_letters")
        self._letters.append(
            DeadLetter(
                time=self._wall_clock().isoformat(timespec="milliseconds"),
                node=self._life.node,
                epoch=self._life.epoch,
                shard=shard.index,
                session=session.id,
                address=session.address_text,
                kind=invocation.kind,
                packet_id=invocation.packet_id,
                sequence=invocation.sequence,
                payload=invocation.payload,
                deaths=self._max_redeliveries,
            )
        )
        if invocation.kind == "resumed" and not isinstance(session, TellOwner):
            shard.succession.end_now(session.id)  # a successor takes it over as one that closes
            session.disconnect(Cause.POISON)


def _described(invocation: Invocation) -> str:
    """Return for the log what a handler call is about, and whose that is."""
    session = invocation.session
    what: str = invocation.kind
    if invocation.packet_id is not None:
        what = f"packet {invocation.sequence} (id {invocation.packet_id})"
    of = f" of session {session.id:#x}" if session.id else ""
    return f"{what}{of} ({session.address_text})"
