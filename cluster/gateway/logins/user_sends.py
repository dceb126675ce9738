"""Packets for users, and kicks, wherever their sessions are: straight, or by the user's owner.

What one node has for one user arrives in order. A packet that goes by the owner never comes back:
no session of its node was the user when it was sent, and what was sent since may be there already.
So while a session of this node asks for a user, packets wait here to be sent when it is answered.
"""

from collections import deque

from cluster.gateway.counters import Counters
from cluster.gateway.links.link_log import RECORD_COST_BYTES
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.logins.node_logins import NodeLogins
from cluster.gateway.node_traffic import NodeTraffic, Topic
from cluster.gateway.session import GatewaySession
from cluster.gateway.users import UserTable
from cluster.shared.causes import Cause
from cluster.shared.records import KICK_USER, SEND_TO, RecordError
from cluster.shared.user_records import read_send_to

__all__ = ["TO_HOLDER", "TO_OWNER", "WAITING_BYTES_MAX", "UserSends"]

TO_OWNER = 14
"""For the session of a user whom the node owns: u8 lane kind, then the payload of a `send_to`."""
TO_HOLDER = 15
"""The same, for a session of the node."""

WAITING_BYTES_MAX = 4 << 20
"""What may wait here: for the answer to a session that asks, or until the directory is complete.

Each record counts as it does in the log of a link."""

_PREFIX_BYTES = 2


class UserSends(Topic):
    """The way of `send_to` and `kick_user`. For the dispatching thread.

    Bounded by the logs of the links, and by `WAITING_BYTES_MAX`; what finds no room is counted
    (`sends_to_users_lost`), as is what may have been lost with the life of a node.
    """

    def __init__(
        self,
        traffic: NodeTraffic,
        logins: NodeLogins,
        users: UserTable[GatewaySession],
        counters: Counters,
    ) -> None:
        """Find sessions in `users`, and by the directory of `logins`."""
        self._traffic = traffic
        self._logins = logins
        self._asker = logins.asker
        self._users = users
        self._counters = counters
        self._waiting_bytes = 0
        self._held: dict[str, deque[bytes]] = {}  # for users that sessions of this node ask for
        self._early: deque[tuple[int, str, bytes]] = deque()
        traffic.register((TO_OWNER, TO_HOLDER), self)
        logins.owned.on_complete = self._directory_is_complete
        logins.asker.on_decided = self._is_decided

    # -- what workers send -------------------------------------------------------------------------

    def send(self, kind: int, payload: bytes) -> None:
        """Carry out the payload of a SEND_TO or KICK_USER; RecordError if it cannot be one."""
        user, packets = read_send_to(payload)
        if user not in self._held and self._reach(kind, user, packets):
            return
        if self._logins.look_around():
            self._send_on(user, bytes((TO_OWNER, kind)) + payload)
        else:
            self._absent(kind)

    def _send_on(self, user: str, record: bytes) -> None:
        """Give a TO_OWNER record to the owner, once nobody of this node asks for the user."""
        if self._asker.is_asked(user):
            if self._may_wait(record):
                self._held.setdefault(user, deque()).append(record)
            return
        owner = self._logins.owner(user)
        if owner == self._traffic.node:
            self._pass_on(owner, user, record)
        elif not self._traffic.send(owner, record):
            self._counters.add("sends_to_users_lost")

    def _is_decided(self, user: str) -> None:
        """No session of this node asks for `user` any more (`LoginAsker.on_decided`)."""
        for record in self._held.pop(user, ()):
            self._waiting_bytes -= _cost(record)
            _, packets = read_send_to(record[_PREFIX_BYTES:])
            if not self._reach(record[1], user, packets):
                self._send_on(user, record)

    def _reach(self, kind: int, user: str, packets: bytes) -> bool:
        """Give packets to the session of this node that is `user`; False if there is none."""
        session = self._users.find(user)
        is_kick = kind == KICK_USER
        if session is None or (is_kick and not session.is_present):
            return False
        if not session.send_now(packets):
            return False
        self._counters.sends += 1
        self._counters.bytes_sent += len(packets)
        if is_kick:
            session.disconnect(Cause.KICKED)
        return True

    def _absent(self, kind: int) -> None:
        is_send = kind == SEND_TO
        self._counters.add("sends_to_absent_users" if is_send else "kicks_of_absent_users")

    def _may_wait(self, record: bytes) -> bool:
        cost = _cost(record)
        if self._waiting_bytes + cost > WAITING_BYTES_MAX:
            self._counters.add("sends_to_users_lost")
            return False
        self._waiting_bytes += cost
        return True

    # -- as the owner ------------------------------------------------------------------------------

    def _pass_on(self, origin: int, user: str, record: bytes) -> None:
        """Give a TO_OWNER record of the node `origin` to the node that has the user."""
        if self._logins.owned.directory.is_complete:
            self._route(origin, user, record)
        elif self._may_wait(record):
            self._early.append((origin, user, record))

    def _directory_is_complete(self) -> None:
        early, self._early = self._early, deque()
        for origin, user, record in early:
            self._waiting_bytes -= _cost(record)
            self._route(origin, user, record)

    def _route(self, origin: int, user: str, record: bytes) -> None:
        login = self._logins.owned.directory.find(user)
        if login is None or login.node == origin:
            self._absent(record[1])
        elif login.node == self._traffic.node:
            self._deliver(record)
        elif not self._traffic.send(login.node, bytes((TO_HOLDER,)) + record[1:]):
            self._counters.add("sends_to_users_lost")

    def _deliver(self, record: bytes) -> None:
        kind = record[1]
        user, packets = read_send_to(record[_PREFIX_BYTES:])
        if not self._reach(kind, user, packets):
            self._absent(kind)

    # -- links -------------------------------------------------------------------------------------

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Take a record; one that cannot be read is counted, and gone."""
        try:
            if len(payload) < _PREFIX_BYTES or payload[1] not in (SEND_TO, KICK_USER):
                raise RecordError("no packets for a user")
            user, _ = read_send_to(payload[_PREFIX_BYTES:])
        except RecordError:
            self._counters.add("links_unreadable_records")
        else:
            if payload[0] == TO_OWNER:
                self._pass_on(delivery.node, user, payload)
            else:
                self._deliver(payload)
        # The owner does not wait for the holder: a link that is down would fill those that are not.
        self._traffic.settle(delivery)

    def undelivered(self, node: int, count: int) -> None:
        """What went to `node` may have been lost with a life of it."""
        self._counters.add("sends_to_users_lost", count)

    def check_invariants(self) -> None:
        """Raise AssertionError unless what waits has a reason to, and is counted."""
        held = [record for records in self._held.values() for record in records]
        waiting = held + [record for _, _, record in self._early]
        assert self._waiting_bytes == sum(map(_cost, waiting)) <= WAITING_BYTES_MAX
        assert all(records and self._asker.is_asked(user) for user, records in self._held.items())
        assert not self._early or not self._logins.owned.directory.is_complete


def _cost(record: bytes) -> int:
    """Return what a record that waits counts for."""
    return len(record) + RECORD_COST_BYTES
