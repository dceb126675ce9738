"""What goes between nodes, sorted by topic.

A record of a link begins with one byte that says what it is, its kind; each kind belongs to one
topic, which carries it out and settles it.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import NamedTuple

from cluster.gateway.counters import Counters
from cluster.gateway.links.link_user import Delivery, Life
from cluster.gateway.links.links import Links

__all__ = ["Members", "NodeTraffic", "Topic"]

_KIND = itemgetter(0)


class Members(NamedTuple):
    """The nodes that own the keys of the cluster, and its users, as this node knows them."""

    version: int
    """Raised with each change in this life of the gateway; 0 before the first."""
    nodes: tuple[int, ...]
    """The ids of those whose shards own keys, in order; none while this node has no lease."""
    others: tuple[int, ...] = ()
    """The nodes that there are and that own no keys."""
    user_owners: tuple[int, ...] = ()
    """Those that own users: the owners of keys by the last list, with a lease or without."""


class Topic:
    """Answers for records of some kinds. Payloads begin with the kind; no call may raise.

    What becomes of them and of other nodes is nothing to it, unless it says so by a method.
    """

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Take a record, once and in order; `NodeTraffic.settle` it when its effect is for good."""

    def settled(self, node: int, payload: bytes) -> None:
        """`node` has settled this record of ours."""

    def undelivered(self, node: int, count: int) -> None:
        """`node` began another life: nobody knows whether `count` records of ours had effects."""

    def linked(self, node: int, is_new_life: bool) -> None:
        """A connection to `node` stands; with `is_new_life` it remembers nothing of before.

        Comes before the first record of that connection is taken or sent.
        """

    def lost(self, node: int) -> None:
        """The connection to `node` is gone; records for it wait until it is back."""

    def removed(self, node: int) -> None:
        """`node` has left the cluster for good, and what it held is gone with it.

        Comes behind `lost` and `undelivered`; nothing of its old life comes any more.
        """


class NodeTraffic:
    """Gives the records of the topics to the links, and those of other nodes to the topics.

    For the dispatching thread. Bounded by the senders: what a node has not settled waits in the
    log of whoever sent it.
    """

    def __init__(self, node: int, counters: Counters) -> None:
        self.node = node
        """This node's id."""
        self.links: Links | None = None
        """Where records go; None while this node stands alone."""
        self.members = Members(0, (node,), (), (node,))
        """Who owns keys and users."""
        self.gives_keys_away = False
        """Whether this node is to own none, as soon as the store has heard of that."""
        self._counters = counters
        self._topics: dict[int, Topic] = {}
        self._members_listeners: list[Callable[[Members], object]] = []

    def register(self, kinds: Iterable[int], topic: Topic) -> None:
        """Have `topic` answer for records that begin with one of `kinds`, each 0 to 255."""
        for kind in kinds:
            assert kind not in self._topics
            self._topics[kind] = topic

    # -- who owns keys and users -------------------------------------------------------------------

    def on_members(self, listener: Callable[[Members], object]) -> None:
        """Have `listener` told of each change of `members`: with a link to each, and to those that
        have left."""
        self._members_listeners.append(listener)

    def change_members(
        self,
        nodes: Iterable[int],
        others: Iterable[int] = (),
        user_owners: Iterable[int] | None = None,
    ) -> None:
        """Keys are owned by `nodes` from now on, and not by `others`; no change is no news.

        Users are owned by `user_owners`, by `nodes` if that is None.
        """
        owners = tuple(sorted(nodes))
        of_users = owners if user_owners is None else tuple(sorted(user_owners))
        changed = owners, tuple(sorted(others)), of_users
        if changed != self.members[1:]:
            self.members = Members(self.members.version + 1, *changed)
            for listener in self._members_listeners:
                listener(self.members)

    # -- to other nodes ----------------------------------------------------------------------------

    @property
    def nodes(self) -> list[int]:
        """The ids of the other nodes of the cluster, linked or not, in order."""
        return [] if self.links is None else self.links.nodes

    def is_linked(self, node: int) -> bool:
        """Whether a connection to `node` stands."""
        return self.links is not None and self.links.is_linked(node)

    def life_of(self, node: int) -> Life | None:
        """Return which life of `node` gets what is sent now; None if it is not in the list."""
        return None if self.links is None else self.links.life_of(node)

    def send(self, node: int, payload: bytes) -> bool:
        """Have another node be given `payload`, as `Links.send`; False when its log is full."""
        return self.links is not None and self.links.send(node, payload)

    def send_all(self, payload: bytes) -> None:
        """Have every other node be given `payload`; what finds a log full is counted."""
        if self.links is not None:
            self.links.send_all(payload)

    def settle(self, delivery: Delivery) -> None:
        """What was delivered has had its effect, for good."""
        if self.links is not None:
            self.links.settle(delivery)

    @property
    def untold_count(self) -> int:
        """Records that the nodes that can be reached have not settled."""
        return 0 if self.links is None else self.links.untold_count

    # -- from other nodes (`LinkUser`) -------------------------------------------------------------

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Take a record; one that nobody here knows is counted, and gone."""
        topic = self._topics.get(payload[0]) if payload else None
        if topic is None:
            self._counters.add("links_unknown_records")
            self.settle(delivery)
        else:
            topic.delivered(delivery, payload)

    def settled(self, node: int, payloads: list[bytes]) -> None:
        """Tell the topics."""
        for payload in payloads:
            self._topics[payload[0]].settled(node, payload)

    def undelivered(self, node: int, payloads: list[bytes]) -> None:
        """Tell each topic how many of its records these are."""
        # They may be as many as a link keeps, and everybody waits for this.
        for kind, count in Counter(map(_KIND, payloads)).items():
            self._topics[kind].undelivered(node, count)

    def linked(self, node: int, is_new_life: bool) -> None:
        """Tell each topic once."""
        for topic in dict.fromkeys(self._topics.values()):
            topic.linked(node, is_new_life)

    def lost(self, node: int) -> None:
        """Tell each topic once."""
        for topic in dict.fromkeys(self._topics.values()):
            topic.lost(node)

    def removed(self, node: int) -> None:
        """Tell each topic once."""
        for topic in dict.fromkeys(self._topics.values()):
            topic.removed(node)
