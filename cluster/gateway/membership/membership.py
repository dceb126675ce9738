"""This node among the members of the cluster, as the store has them. For the dispatching thread.

`Lease` decides what to ask; the thread asks; what comes of it is told here. Between two answers of
the store the last list stands, however long that takes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from cluster.gateway.membership.entries import Entry, NodeTakenError, StoredEntry
from cluster.gateway.membership.etcd_store import EtcdStore, Joined, StoreError, StoreGoneError
from cluster.gateway.membership.lease import Lease, Step
from cluster.gateway.membership.store_thread import StoreThread, StoreWatch
from cluster.iocp import IocpCore, NetAddress
from cluster.iocp.timers import Timer
from cluster.shared.config import LinksConfig
from cluster.shared.node_status import MembershipStatus

__all__ = ["Member", "Membership", "MembershipUser", "store_timeout_s"]

logger = logging.getLogger("cluster.gateway")

CLOSE_TIMEOUT_S = 1.0
"""For the store to take the lease back; without that it ends by itself."""

_CALL_TIMEOUT_MIN_S = 0.5
_CALL_TIMEOUT_MAX_S = 5.0


def store_timeout_s(lease_s: float) -> float:
    """Return how long a request to the store may take, in seconds, for a lease of `lease_s`."""
    return min(_CALL_TIMEOUT_MAX_S, max(_CALL_TIMEOUT_MIN_S, lease_s / 4))


@dataclass(frozen=True, slots=True)
class Member:
    """A node of the cluster."""

    node: int
    address: NetAddress
    life: str
    takes_keys: bool


class MembershipUser:
    """Is told what becomes of the membership. Only `identity_lost` may raise."""

    def members_changed(self) -> None:
        """`Membership.members`, or whether this node is one of them, is not what it was."""

    def begin_life(self, life: int) -> None:
        """The others have seen this node leave: it comes back to them as `life`."""

    def identity_lost(self, reason: str) -> None:
        """Another node has this one's id: this life of the gateway must end."""


class Membership:
    """This node's lease, and the list. `start`, then `announce` once it listens."""

    def __init__(
        self,
        links: LinksConfig,
        core: IocpCore,
        make_store: Callable[[], EtcdStore],
        make_life: Callable[[], int],
        *,
        owner: str,
        node: int,
        last_node: int,
        first_epoch: int,
    ) -> None:
        """Be the node `node`, or, if that is 0, whichever is free; `last_node` if it can be.

        `make_store` gives a store for one thread, and is called for each. `owner` and
        `first_epoch` as for `EtcdStore.join`. Nothing is asked before `start`.
        """
        self.user: MembershipUser = MembershipUser()
        self.node = node
        """0 until an id was taken."""
        self.epoch = 0
        """0 until an id was taken."""
        self.life = make_life()
        """What the other nodes know this one by; another one each time that it comes back."""
        self.members: list[Member] = []
        """All that the store had when it was read last, this node included."""
        self.taken: str = ""
        """Why the id cannot be had at present: another node has it. Else empty."""
        self._links = links
        self._core = core
        self._make_life = make_life
        self._owner = owner
        self._last_node = last_node
        self._first_epoch: int | None = first_epoch
        self._address: str | None = None
        self._takes_keys = True
        self._lease = Lease(links.lease_s)
        self._lease_id = 0
        self._last_told: list[Member] | None = (
            None  # None: tell of the next list, whatever is in it
        )
        self._is_logged_away = self._is_logged_lost = False
        self._heard_at: float | None = None
        self._timer: Timer | None = None
        self._store = make_store()
        self._watched = make_store()
        self._thread: StoreThread | None = None
        self._watch: StoreWatch | None = None

    # -- for who owns it ---------------------------------------------------------------------------

    @property
    def is_member(self) -> bool:
        """Whether this node may take keys: it is in the list, and its lease has time left."""
        return self._lease.state == "member"

    @property
    def has_id(self) -> bool:
        """Whether this node has an id, and an epoch to begin."""
        return self.epoch != 0

    @property
    def reason(self) -> str:
        """Why the last request to the store came to nothing; empty while all is well."""
        return self.taken or self._lease.reason

    def start(self) -> None:
        """Begin to ask the store."""
        self._thread = StoreThread(self._core)
        self._watch = StoreWatch(self._watched, self._core, self._list_changed)
        self._turn()

    def announce(self, address: str, takes_keys: bool = True) -> None:
        """Tell the others that this node is at `address`, and whether keys are its to own."""
        self._address, self._takes_keys = address, takes_keys
        self._lease.announce()
        self._turn()

    def close(self) -> None:
        """Leave the cluster, if the store can be reached, and end the threads."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.close(CLOSE_TIMEOUT_S)
        if self._thread is not None:
            if self._lease.has_lease:
                lease = self._lease_id
                self._thread.ask(lambda: self._store.leave(lease), lambda _: None)
            self._thread.close(CLOSE_TIMEOUT_S)
            self._thread = None
            self._store.close()

    def status(self) -> MembershipStatus:
        """Return what `cluster status` shows."""
        now, lease = self._core.now(), self._lease
        return MembershipStatus(
            source="etcd",
            state=lease.state,
            members=[member.node for member in self.members],
            lease_left_s=round(max(0.0, lease.ends_at - now), 3) if lease.ends_at else None,
            heard_s_ago=None if self._heard_at is None else round(now - self._heard_at, 3),
            failures=lease.failures,
            reason=self.reason,
        )

    # -- steps -------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Ask what is to be asked, and come back when there is more to do."""
        now = self._core.now()
        if self._lease.check(now):
            self._lost()
        if self._thread is None:
            return
        step = self._lease.next_step(now)
        if step is not None:
            self._ask(step, now)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._core.call_later(self._lease.due(now) - now, self._turn)

    def _ask(self, step: Step, now: float) -> None:
        assert self._thread is not None
        store, lease, node, entry = self._store, self._lease_id, self.node, self._entry()
        match step:
            case Step.JOIN:
                lease_s, last, epoch = self._links.lease_s, self._last_node, self._first_epoch
                self._thread.ask(
                    lambda: store.join(lease_s, entry, node, last, epoch),
                    lambda answer: self._told_join(answer, now),
                )
            case Step.ANNOUNCE:
                self._thread.ask(
                    lambda: store.announce(node, lease, entry),
                    lambda answer: self._told_announce(answer, entry),
                )
            case Step.RENEW:
                self._thread.ask(
                    lambda: store.renew(lease), lambda answer: self._told_renew(answer, now)
                )
            case Step.LOOK:
                self._thread.ask(store.read, self._told_look)

    def _entry(self) -> Entry:
        life = f"{self.life:016x}"
        return Entry(
            owner=self._owner, life=life, address=self._address, takes_keys=self._takes_keys
        )

    def _list_changed(self) -> None:
        self._lease.list_changed()
        self._turn()

    def _told_join(self, answer: object, asked_at: float) -> None:
        self.taken = ""
        if isinstance(answer, Joined):
            self._heard_at = self._core.now()
            self._lease_id = answer.lease
            self._lease.joined(asked_at)
            if not self.has_id:
                self.node, self.epoch = answer.node, answer.epoch
                self._first_epoch = None
        elif isinstance(answer, NodeTakenError):
            self.taken = str(answer)
            self._failed(answer)
            if self.has_id:
                self.user.identity_lost(self.taken)
        else:
            self._failed(answer)
        self._turn()

    def _told_announce(self, answer: object, entry: Entry) -> None:
        if not isinstance(answer, list):
            self._failed(answer)
        elif entry != self._entry():  # there is something newer to say
            self._lease.announced()
            self._lease.announce()
        else:
            self._lease.announced()
            self._take_list(answer)
        self._turn()

    def _told_renew(self, answer: object, asked_at: float) -> None:
        if isinstance(answer, tuple) and self._is_in(answer[1]):
            self._lease.renewed(asked_at, answer[0])
            self._take_list(answer[1])
        else:
            self._failed(answer)
        self._turn()

    def _told_look(self, answer: object) -> None:
        if isinstance(answer, list) and self._is_in(answer):
            self._lease.looked()
            self._take_list(answer)
        else:
            self._failed(answer)
        self._turn()

    def _failed(self, answer: object) -> None:
        """An answer that is not the one hoped for: an error, or a list without this node."""
        if isinstance(answer, StoreError | NodeTakenError):
            if self._lease.failures == 0:
                logger.warning("the store of the cluster's members: %s", answer)
                self._is_logged_away = True
            self._lease.failed(self._core.now(), str(answer))
            return
        was_member = self.is_member
        if isinstance(answer, StoreGoneError | list | tuple):
            self._heard_at = self._core.now()
            gone = isinstance(answer, StoreGoneError)
            self._lease.gone(str(answer) if gone else "the store has no entry of this node")
            # To the others the node that comes back is not the one that they have seen leave.
            self.life = self._make_life()
            self.user.begin_life(self.life)
        else:
            assert isinstance(answer, Exception)
            logger.error("asking the store failed", exc_info=answer)
            self._lease.failed(self._core.now(), f"{type(answer).__name__}: {answer}")
        if was_member and not self.is_member:
            self._lost()

    def _lost(self) -> None:
        self._last_told = None
        logger.error(
            "node %d has lost its lease and takes no keys: %s", self.node, self._lease.reason
        )
        self._is_logged_lost = True
        self.user.members_changed()

    # -- the list ----------------------------------------------------------------------------------

    def _is_in(self, stored: list[StoredEntry]) -> bool:
        """Whether the entry of this life is among `stored`."""
        life = f"{self.life:016x}"
        return any(
            each.node == self.node
            and each.entry is not None
            and each.entry.owner == self._owner
            and each.entry.life == life
            for each in stored
        )

    def _take_list(self, stored: list[StoredEntry]) -> None:
        self._heard_at = self._core.now()
        if self._is_logged_away:
            self._is_logged_away = False
            logger.info("the store of the cluster's members has answered again")
        if not self.is_member:
            return  # the last list stands until this node is in it again
        if self._is_logged_lost:
            self._is_logged_lost = False
            logger.info("node %d has a lease again", self.node)
        members = [member for each in stored if (member := _member(each)) is not None]
        if members != self._last_told:
            self.members = self._last_told = members
            self.user.members_changed()


def _member(stored: StoredEntry) -> Member | None:
    """Return the node that an entry tells of; None for one that cannot be called."""
    entry = stored.entry
    if entry is None or entry.address is None or not entry.address.isprintable():
        return None
    try:
        address = NetAddress.parse(entry.address)
    except ValueError:
        return None
    return Member(stored.node, address, entry.life, entry.takes_keys)
