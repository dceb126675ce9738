"""Faults of the in-process network: repeatable from the seed, and each of them does occur."""

from collections import Counter
from dataclasses import replace

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.driver.memory import Faults, ManualClock, MemoryNetwork
from cluster.iocp.iocp_event import AcceptEvent, IocpEvent, RecvEvent, SendEvent
from tests.contract.driver_harness import Outcome, Owner, Port, pattern
from tests.simulation.conftest import MakePort

ALL_FAULTS = Faults(
    partial_send=0.3,
    partial_recv=0.3,
    reset=0.02,
    late=0.3,
    refuse_connect=0.2,
    accept_error=0.3,
)


# -- a run that is decided by its seed -------------------------------------------------------------

CLIENTS = 20


class Exchange:
    """Clients that connect and talk to servers, all on one port, some of them in vain."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.listener = port.listen()
        self.history: list[tuple[float, str, int, Cause | None, int]] = []
        """Every completion: when, of what, how many bytes, and what went wrong."""

    def run(self, clients: int, num_bytes: int) -> None:
        for _ in range(clients):
            pair = self._connect()
            if pair is not None:
                self._talk(*pair, num_bytes)

    def _connect(self) -> tuple[Owner, Owner] | None:
        client, connect = self.port.start_connect(self.listener)
        self._wait(connect)
        accept = AcceptEvent()
        while connect.error is None:
            self._wait(self.port.submit(self.listener, accept))
            if accept.accepted is not None:
                return client, Owner(accept.accepted)
            if accept.error is Cause.RESET:
                break
        return None

    def _talk(self, client: Owner, server: Owner, num_bytes: int) -> None:
        send, recv = SendEvent([pattern(0, num_bytes)]), RecvEvent()
        received = 0
        while received < num_bytes:
            for owner, event in ((client, send), (server, recv)):
                if event not in self.port.expected and (event is recv or send.send_buffers):
                    self.port.submit(owner, event)
            for outcome in self._turn():
                if outcome.error is Cause.RESET:
                    num_bytes = 0
                elif outcome.event is send:
                    send.advance(outcome.num_bytes)
                elif outcome.data is not None:
                    assert outcome.data == pattern(received, outcome.num_bytes)
                    received += outcome.num_bytes
        self.port.cancel_all()
        client.close()
        server.close()

    def _wait(self, event: IocpEvent) -> None:
        while event in self.port.expected:
            self._turn()

    def _turn(self) -> list[Outcome]:
        outcomes = self.port.turn(1.0)
        now = self.port.driver.now()
        for event, num_bytes, error, raw_error, _ in outcomes:
            self.history.append((now, event.event_type.name, num_bytes, error, raw_error))
        return outcomes


def history_of(make_port: MakePort, seed: int, faults: Faults = ALL_FAULTS) -> list[object]:
    network = MemoryNetwork(seed=seed, faults=faults, clock=ManualClock(), buffer_bytes=4096)
    exchange = Exchange(make_port(network))
    exchange.run(clients=CLIENTS, num_bytes=20_000)
    return [*exchange.history, network.now()]


def test_the_same_seed_gives_the_same_history(make_port: MakePort, seed: int) -> None:
    first = history_of(make_port, seed)
    assert len(first) > CLIENTS, f"seed {seed}"  # each has at least tried to connect
    assert history_of(make_port, seed) == first, f"seed {seed}"


def test_another_seed_gives_another_history(make_port: MakePort, seed: int) -> None:
    assert history_of(make_port, seed) != history_of(make_port, seed + 1), f"seed {seed}"


def test_without_faults_the_seed_decides_nothing(make_port: MakePort, seed: int) -> None:
    without = history_of(make_port, seed, Faults())
    assert without == history_of(make_port, seed + 1, Faults())


def test_a_network_tells_the_seed_it_chose() -> None:
    seeds = {MemoryNetwork().seed for _ in range(10)}
    assert len(seeds) > 1
    assert MemoryNetwork(seed=7).seed == 7


# -- every fault is really seen --------------------------------------------------------------------


def outcomes_of(make_port: MakePort, seed: int, faults: Faults) -> Counter[tuple[str, object]]:
    """Count (operation, error) over an exchange with `faults`."""
    history = history_of(make_port, seed, faults)[:-1]
    return Counter((entry[1], entry[3]) for entry in history)  # type: ignore[index]


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        pytest.param(Faults(reset=0.1), ("RECV", Cause.RESET), id="reset-recv"),
        pytest.param(Faults(reset=0.1), ("SEND", Cause.RESET), id="reset-send"),
        pytest.param(Faults(refuse_connect=0.5), ("CONNECT", Cause.REFUSED), id="refuse_connect"),
        pytest.param(Faults(accept_error=0.5), ("ACCEPT", Cause.OS_ERROR), id="accept-exhausted"),
        pytest.param(Faults(accept_error=0.5), ("ACCEPT", Cause.RESET), id="accept-aborted"),
    ],
)
def test_a_fault_that_ends_an_operation_is_seen(
    make_port: MakePort, seed: int, faults: Faults, expected: tuple[str, Cause]
) -> None:
    seen: Counter[tuple[str, object]] = Counter()
    for offset in range(10):
        seen += outcomes_of(make_port, seed + offset, faults)
    assert seen[expected], f"seed {seed}: {seen}"
    assert seen[expected[0], None], f"seed {seed}: nothing succeeded any more: {seen}"


def test_without_faults_nothing_fails(make_port: MakePort, seed: int) -> None:
    assert {error for _, error in outcomes_of(make_port, seed, Faults())} == {None}


@pytest.mark.parametrize(
    ("faults", "kind"),
    [(Faults(partial_send=0.5), SendEvent), (Faults(partial_recv=0.5), RecvEvent)],
    ids=["partial_send", "partial_recv"],
)
def test_partial_transfers_are_seen_and_lose_nothing(
    make_port: MakePort, seed: int, faults: Faults, kind: type[SendEvent | RecvEvent]
) -> None:
    port = make_port(MemoryNetwork(seed=seed, faults=faults, clock=ManualClock()))
    client, server = port.pair()
    data = pattern(0, 60_000)  # which one operation could move
    for _ in range(30):
        assert port.transfer(client, server, [data]) == data, f"seed {seed}"
    operations = Counter(type(o.event) for o in client.outcomes + server.outcomes)
    assert operations[kind] > 30, f"seed {seed}: {operations}"


def test_late_completions_are_seen_and_keep_their_bound(make_port: MakePort, seed: int) -> None:
    faults = Faults(late=0.5, late_s_max=2.0)
    port = make_port(MemoryNetwork(seed=seed, faults=faults, clock=ManualClock()))
    client, server = port.pair()
    waits = []
    for _ in range(100):
        began = port.driver.now()
        port.do(client, SendEvent([b"x"]))
        waits.append(port.driver.now() - began)
    assert 0.0 in waits, f"seed {seed}"
    assert 0.1 < max(waits) <= 2.0 + 1e-6, f"seed {seed}"
    assert port.recv(server, 100) == b"x" * 100


def test_a_failed_accept_loses_its_client_only_if_that_is_gone(
    make_port: MakePort, seed: int
) -> None:
    network = MemoryNetwork(seed=seed, faults=Faults(accept_error=0.5), clock=ManualClock())
    port = make_port(network)
    listener = port.listen()
    fates: Counter[str] = Counter()
    for _ in range(100):
        client, connect = port.start_connect(listener)
        recv = None
        while True:
            accept = AcceptEvent()
            port.do(listener, accept)
            assert connect.error is None
            recv = recv or port.submit(client, RecvEvent())
            if accept.error is None:
                fates["accepted"] += 1
                assert accept.address == client.socket.local_address
                break
            assert accept.accepted is None
            if accept.error is Cause.RESET:
                fates["aborted"] += 1
                assert port.wait(recv).error is Cause.RESET
                break
            assert accept.error is Cause.OS_ERROR
            fates["exhausted"] += 1
        port.cancel_all()
    assert set(fates) == {"accepted", "aborted", "exhausted"}, f"seed {seed}: {fates}"


def test_a_reset_strikes_both_ends_and_destroys_what_was_not_read(make_port: MakePort) -> None:
    network = MemoryNetwork(seed=1, clock=ManualClock())
    port = make_port(network)
    client, server = port.pair()
    port.send(client, b"not read yet")
    waiting = port.submit(client, RecvEvent())
    network.faults = Faults(reset=1.0)
    assert port.do(server, RecvEvent()).error is Cause.RESET
    assert port.wait(waiting).error is Cause.RESET


@pytest.mark.parametrize("name", ["partial_send", "reset", "late", "accept_error", "late_s_max"])
def test_a_probability_that_is_none_is_refused(name: str) -> None:
    for value in (-0.1, float("nan")) if name == "late_s_max" else (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=name):
            replace(Faults(), **{name: value})


# -- late completions and the rest of the contract -------------------------------------------------


def test_what_is_done_but_late_cannot_be_cancelled(make_port: MakePort) -> None:
    network = MemoryNetwork(seed=1, clock=ManualClock())
    port = make_port(network)
    client, server = port.pair()
    network.faults = Faults(late=1.0, late_s_max=5.0)
    send = port.submit(client, SendEvent([b"done"]))
    assert port.turn(0) == []
    assert port.cancel(send).error is None
    network.faults = Faults()
    assert port.recv(server, 4) == b"done"


def test_late_completions_are_forgotten_when_the_driver_closes(make_port: MakePort) -> None:
    network = MemoryNetwork(seed=1, clock=ManualClock())
    port = make_port(network)
    client, _ = port.pair()
    network.faults = Faults(late=1.0)
    send = port.submit(client, SendEvent([b"x"]))
    port.driver.close()
    assert not send.in_flight
    assert send.owner is None


def test_late_completions_come_by_themselves_on_the_system_s_clock(make_port: MakePort) -> None:
    network = MemoryNetwork(seed=1, faults=Faults(late=1.0, late_s_max=0.02))
    port = make_port(network)
    client, server = port.pair()
    send = port.submit(client, SendEvent([b"x"]))
    assert port.wait(send, turn_timeout=None).num_bytes == 1
    assert port.recv(server, 1) == b"x"
