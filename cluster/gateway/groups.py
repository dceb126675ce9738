"""Which sessions are in which group. A group is there while somebody is in it. No I/O, no clock."""

from collections.abc import Collection, Iterable
from typing import Any, Generic, Protocol, TypeVar

from cluster.shared.group_records import GROUPS_MAX

__all__ = ["GroupTable", "GroupWatcher"]

_Session = TypeVar("_Session")


class GroupWatcher(Protocol):
    """Who looks on as groups come and go."""

    def began(self, name: bytes) -> None:
        """A group has its first member."""

    def ended(self, name: bytes) -> None:
        """A group has lost its last member."""

    def left(self, session: Any, name: bytes) -> None:
        """A session is not in a group any more; comes ahead of `ended`."""


class GroupTable(Generic[_Session]):
    """The groups of a node, of sessions of all its shards. For the dispatching thread.

    Bounded: a session is in at most `GROUPS_MAX` groups. Members are in the order in which they
    joined.
    """

    __slots__ = ("_groups", "_members", "watcher")

    def __init__(self) -> None:
        self._members: dict[bytes, dict[_Session, None]] = {}
        self._groups: dict[_Session, dict[bytes, None]] = {}
        self.watcher: GroupWatcher | None = None

    def __len__(self) -> int:
        return len(self._members)

    def join(self, session: _Session, name: bytes) -> bool:
        """Let `session` be in the group; False, and nothing changes, if it is in too many."""
        groups = self._groups.setdefault(session, {})
        if name not in groups:
            if len(groups) >= GROUPS_MAX:
                return False
            groups[name] = None
            members = self._members.get(name)
            if members is None:
                self._members[name] = {session: None}
                if self.watcher is not None:
                    self.watcher.began(name)
            else:
                members[session] = None
        return True

    def leave(self, session: _Session, name: bytes) -> None:
        """Let `session` be in the group no more; nothing happens if it is not."""
        groups = self._groups.get(session)
        if groups is None or name not in groups:
            return
        del groups[name]
        if not groups:
            del self._groups[session]
        self._forget(session, name)

    def leave_all(self, session: _Session) -> None:
        """Let `session` be in no group."""
        for name in self._groups.pop(session, ()):
            self._forget(session, name)

    def set_groups(self, session: _Session, names: Collection[bytes]) -> None:
        """Let `session` be in these groups, which are not too many, and in no others."""
        for name in list(self._groups.get(session, ())):
            if name not in names:
                self.leave(session, name)
        for name in names:
            self.join(session, name)

    def _forget(self, session: _Session, name: bytes) -> None:
        members = self._members[name]
        del members[session]
        if self.watcher is not None:
            self.watcher.left(session, name)
        if not members:
            del self._members[name]
            if self.watcher is not None:
                self.watcher.ended(name)

    @property
    def names(self) -> Iterable[bytes]:
        """The names of all groups."""
        return self._members.keys()

    def has(self, name: bytes) -> bool:
        """Whether anybody is in the group."""
        return name in self._members

    def members(self, name: bytes) -> list[_Session]:
        """Return who is in the group as of now, in the order of joining."""
        return list(self._members.get(name, ()))

    def check_invariants(self) -> None:
        """Raise AssertionError unless members and groups know each other, and none is empty."""
        pairs = {(session, name) for name, members in self._members.items() for session in members}
        assert pairs == {(s, name) for s, groups in self._groups.items() for name in groups}
        assert all(self._members.values())
        assert all(0 < len(groups) <= GROUPS_MAX for groups in self._groups.values())
