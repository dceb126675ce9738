"""Two nodes on real sockets with a relay between them that does what networks do."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cluster.gateway.counters import Counters
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.links.links import Links
from cluster.iocp import IocpCore, NetAddress
from tests.gateway.conftest import open_driver
from tests.gateway.links.meddler import ATTACKS, Meddler
from tests.gateway.links.relay import Relay
from tests.gateway.links.world import SECRET

TIMEOUT_S = 0.6
ANY = NetAddress("127.0.0.1", 0)


class Node:
    """One end: what it was given, settled at once, and what it has settled."""

    def __init__(
        self,
        core: IocpCore,
        node: int,
        life: int,
        peer: tuple[int, NetAddress],
        timeout_s: float,
    ) -> None:
        self.got: list[bytes] = []
        self.settled_count = 0
        self.undelivered_payloads: list[bytes] = []
        self.counters = Counters()
        self.links = Links(
            LinkIdentity(node, life, "game", SECRET),
            ANY,
            [peer],
            core,
            self.counters,
            self,
            timeout_s=timeout_s,
            retained_bytes_max=4 << 20,
            rng=random.Random(node),
        )
        self.links.start()

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        self.got.append(payload)
        self.links.settle(delivery)

    def settled(self, node: int, payloads: list[bytes]) -> None:
        self.settled_count += len(payloads)

    def undelivered(self, node: int, payloads: list[bytes]) -> None:
        self.undelivered_payloads += payloads

    def linked(self, node: int, is_new_life: bool) -> None:
        pass

    def lost(self, node: int) -> None:
        pass

    def removed(self, node: int) -> None:
        pass

    @property
    def is_linked(self) -> bool:
        (status,) = self.links.status()
        return status.state == "linked"


class Pair:
    """Node 1, which calls node 2 through a relay, on one core."""

    def __init__(self, core: IocpCore, seed: int, timeout_s: float) -> None:
        self.core = core
        self.second = Node(core, 2, 200, (1, ANY), timeout_s)  # it is called, and never calls
        self.relay = Relay(self.second.links.address.port, seed)
        relayed = NetAddress("127.0.0.1", self.relay.port)
        self.first = Node(core, 1, 100, (2, relayed), timeout_s)

    def run(self, until: Callable[[], bool], what: str, within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        while not until():
            assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
            self.core.dispatch(0.01)
            self.first.links.flush()
            self.second.links.flush()

    def run_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.run(lambda: time.monotonic() >= end, "the time", seconds + 10)

    def run_linked(self) -> None:
        self.run(lambda: self.first.is_linked and self.second.is_linked, "the link")

    def check(self, sent: dict[int, list[bytes]], violations: int = 0) -> None:
        """Everything has arrived once and in order, both ways; node 2 has seen `violations`."""
        self.run(
            lambda: len(self.second.got) >= len(sent[1]) and len(self.first.got) >= len(sent[2]),
            "everything",
        )
        assert self.second.got == sent[1]
        assert self.first.got == sent[2]
        for node in (self.first, self.second):
            assert node.undelivered_payloads == []
        counts = [
            node.counters.snapshot().get("links_violations", 0)
            for node in (self.first, self.second)
        ]
        assert counts == [0, violations]


@pytest.fixture
def pair(socket_driver: str, seed: int) -> Iterator[Pair]:
    """Two nodes that soon take each other for lost."""
    with open_pair(socket_driver, seed, TIMEOUT_S) as made:
        yield made


@pytest.fixture
def patient_pair(socket_driver: str, seed: int) -> Iterator[Pair]:
    """Two nodes that do not, on a machine that stands still for a while."""
    with open_pair(socket_driver, seed, 10 * TIMEOUT_S) as made:
        yield made


@contextmanager
def open_pair(socket_driver: str, seed: int, timeout_s: float) -> Iterator[Pair]:
    core = IocpCore(driver=open_driver(socket_driver))
    made = Pair(core, seed, timeout_s)
    yield made
    made.relay.__exit__()
    for node in (made.first, made.second):
        node.links.close()
    for _ in range(20):
        core.dispatch(0)
    core.close()


def send_some(pair: Pair, sent: dict[int, list[bytes]], rng: random.Random, count: int) -> None:
    for node, other, end in ((1, 2, pair.first), (2, 1, pair.second)):
        for _ in range(rng.randrange(count)):
            payload = b"%d." % len(sent[node]) + bytes(rng.randrange(5_000))
            assert end.links.send(other, payload)
            sent[node].append(payload)


def test_connections_that_are_cut_inside_of_records_lose_and_repeat_nothing(
    pair: Pair, seed: int
) -> None:
    rng = random.Random(seed)
    sent: dict[int, list[bytes]] = {1: [], 2: []}
    pair.relay.cut_after = range(100, 40_000)
    while pair.relay.cuts < 12:
        send_some(pair, sent, rng, 12)
        pair.run_for(0.02)
    pair.relay.cut_after = None
    pair.check(sent)


def test_a_stalled_connection_is_given_up_and_another_goes_on_where_it_was(
    pair: Pair, seed: int
) -> None:
    rng = random.Random(seed)
    sent: dict[int, list[bytes]] = {1: [], 2: []}
    pair.run_linked()
    for _ in range(2):
        send_some(pair, sent, rng, 30)
        pair.run_for(0.02)
        pair.relay.is_stalled = True
        send_some(pair, sent, rng, 30)
        pair.run(
            lambda: not pair.first.is_linked and not pair.second.is_linked, "both have noticed"
        )
        pair.relay.is_stalled = False
        pair.run_linked()
    pair.check(sent)


def test_a_slow_and_long_way_delays_and_nothing_more(patient_pair: Pair, seed: int) -> None:
    pair = patient_pair
    rng = random.Random(seed)
    sent: dict[int, list[bytes]] = {1: [], 2: []}
    pair.relay.delay_s = 0.08
    pair.run_linked()
    pair.relay.bytes_per_s = 400_000.0
    for _ in range(5):
        send_some(pair, sent, rng, 10)
        pair.run_for(0.05)
    pair.relay.delay_s = 0.02
    pair.check(sent)
    assert pair.relay.connections == 1


def test_one_direction_that_is_lost_is_noticed_by_both(pair: Pair) -> None:
    """The first reads nothing more, without an end: it hears nobody, gives up and calls again."""

    def stops_reading() -> bool:
        session = pair.first.links._links[2].session
        if session is None or not session.is_resumed:
            return False  # on a machine that stands still for long the link may end by itself
        session.pause_recv()
        return True

    pair.run(stops_reading, "a link to be deaf on")
    connections = pair.relay.connections
    assert pair.second.links.send(1, b"unheard")
    pair.run(lambda: pair.relay.connections > connections, "another call")
    pair.run(lambda: pair.first.got == [b"unheard"], "what was unheard")


@pytest.mark.parametrize("attack", ATTACKS)
def test_whoever_is_on_the_way_can_cut_the_link_and_no_more(
    patient_pair: Pair, seed: int, attack: str
) -> None:
    """He passes the handshake on, and then changes what is said: on two connections."""
    pair = patient_pair
    meddler = pair.relay.change = Meddler(ATTACKS[attack], connections=2)
    rng = random.Random(seed)
    sent: dict[int, list[bytes]] = {1: [], 2: []}
    while pair.relay.connections < 3:
        send_some(pair, sent, rng, 4)
        pair.run_for(0.02)
    pair.run_linked()
    pair.check(sent, violations=2)
    assert meddler.attacks == 2
