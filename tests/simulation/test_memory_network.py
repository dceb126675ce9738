"""The in-process network: repeatable from its seed, and every fault it promises does occur."""

import errno
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from cluster.iocp import IocpCore
from cluster.iocp.causes import Cause
from cluster.iocp.driver import RECV_BYTES_MAX
from cluster.iocp.driver.memory import (
    DeadlockError,
    Faults,
    ManualClock,
    MemoryDriver,
    MemoryNetwork,
)
from cluster.iocp.errors import ACCEPT_EXHAUSTED
from cluster.iocp.iocp_event import AcceptEvent, ConnectEvent, IocpEvent, RecvEvent, SendEvent
from cluster.iocp.net_address import NetAddress
from tests.contract.driver_harness import WAIT_S, Outcome, Owner, Port, pattern

MakePort = Callable[..., Port]

ALL_FAULTS = Faults(
    partial_send=0.3,
    partial_recv=0.3,
    reset=0.02,
    late=0.3,
    refuse_connect=0.2,
    accept_error=0.3,
)


@pytest.fixture
def make_port() -> Iterator[MakePort]:
    """Makes ports on the network given, or on a new one with a manual clock."""
    drivers: list[MemoryDriver] = []

    def make(network: MemoryNetwork | None = None) -> Port:
        driver = MemoryDriver(network or MemoryNetwork(clock=ManualClock()))
        drivers.append(driver)
        return Port(driver)

    yield make
    for driver in drivers:
        driver.close()


# -- a run that is decided by its seed -------------------------------------------------------------


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
    exchange.run(clients=20, num_bytes=20_000)
    return [*exchange.history, network.now()]


def test_the_same_seed_gives_the_same_history(make_port: MakePort, seed: int) -> None:
    first = history_of(make_port, seed)
    assert len(first) > 100, f"seed {seed}"
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
            assert accept.raw_error in ACCEPT_EXHAUSTED
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


# -- time ------------------------------------------------------------------------------------------


def test_an_idle_poll_lets_its_timeout_pass_at_once(make_port: MakePort) -> None:
    port = make_port()
    began, before = time.monotonic(), port.driver.now()
    for _ in range(24):
        assert port.turn(3600) == []
    assert port.driver.now() - before == 24 * 3600
    assert time.monotonic() - began < WAIT_S


def test_no_time_passes_while_something_is_ready(make_port: MakePort) -> None:
    port = make_port()
    before = port.driver.now()
    owner = Owner()
    for _ in range(5):
        port.post(owner)
    while port.expected:
        assert len(port.turn(10, limit=1)) == 1
    assert port.turn(0) == []
    assert port.driver.now() == before


def test_no_time_passes_while_another_driver_has_something_ready(make_port: MakePort) -> None:
    network = MemoryNetwork(clock=ManualClock())
    busy, idle = make_port(network), make_port(network)
    posted = busy.post(Owner())
    for _ in range(5):
        assert idle.turn(10) == []
        assert idle.turn(None) == []
    assert network.now() == 0
    busy.wait(posted)
    idle.turn(10)
    assert network.now() == 10


def test_a_poll_that_nothing_can_end_says_so(make_port: MakePort) -> None:
    port = make_port()
    client, _ = port.pair()
    recv = port.submit(client, RecvEvent())
    with pytest.raises(DeadlockError, match="wait for ever"):
        port.turn(None)
    assert port.cancel(recv).error is Cause.CANCELLED


def test_a_poll_without_end_goes_to_the_next_late_completion(make_port: MakePort) -> None:
    network = MemoryNetwork(seed=3, clock=ManualClock())
    port, other = make_port(network), make_port(network)
    client, _ = port.pair()
    network.faults = Faults(late=1.0, late_s_max=100.0)
    send = port.submit(client, SendEvent([b"x"]))
    assert other.turn(None) == []  # time went on to what another driver waits for
    assert network.now() > 0
    assert [outcome.event for outcome in port.turn(0)] == [send]


def test_a_clock_can_be_moved_by_hand(make_port: MakePort) -> None:
    clock = ManualClock(start=5.0)
    network = MemoryNetwork(seed=3, clock=clock)
    port = make_port(network)
    client, _ = port.pair()
    network.faults = Faults(late=1.0, late_s_max=100.0)
    send = port.submit(client, SendEvent([b"x"]))
    assert port.turn(0) == []
    clock.advance(100)
    assert [outcome.event for outcome in port.turn(0)] == [send]
    assert port.driver.now() == 105.0
    with pytest.raises(ValueError, match="-1"):
        clock.advance(-1)
    clock.advance_to(0)
    assert clock.now() == 105.0


def test_timers_of_a_core_run_on_the_manual_clock() -> None:
    core = IocpCore(driver=MemoryDriver(MemoryNetwork(clock=ManualClock())))
    fired: list[float] = []
    for delay_s in (86_400, 1, 3_600):
        core.call_later(delay_s, lambda: fired.append(core.now()))
    while len(fired) < 3:
        core.dispatch()
    assert fired == [1, 3_600, 86_400]
    core.close()


def test_a_watched_descriptor_keeps_a_manual_clock_from_a_deadlock(make_port: MakePort) -> None:
    port = make_port()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        event = port.watch(Owner(), ours.fileno())
        assert port.turn(None) == []
        theirs.send(b"x")
        assert port.wait(event, turn_timeout=None).error is None


# -- several drivers -------------------------------------------------------------------------------


def test_drivers_of_several_threads_share_a_network(make_port: MakePort) -> None:
    network = MemoryNetwork()
    server_port, client_port = make_port(network), make_port(network)
    listener = server_port.listen()
    data = pattern(0, 1_000_000)
    received = bytearray()

    def serve() -> None:
        server_port.driver.poll(0, 1)  # this thread dispatches from now on
        server = server_port.accept(listener)
        recv = RecvEvent()
        while True:
            outcome = server_port.wait(server_port.submit(server, recv), turn_timeout=WAIT_S)
            if outcome.data is None:
                return
            received.extend(outcome.data)

    thread = threading.Thread(target=serve)
    thread.start()
    client, connect = client_port.start_connect(listener)
    assert client_port.wait(connect, turn_timeout=WAIT_S).error is None
    client_port.send(client, data)
    client.close()
    thread.join(WAIT_S)
    assert bytes(received) == data


def test_a_driver_that_closes_ends_its_connections_only(make_port: MakePort) -> None:
    network = MemoryNetwork(clock=ManualClock())
    first, second = make_port(network), make_port(network)
    listener = second.listen()
    client, connect = first.start_connect(listener)
    second.accept(listener)
    first.wait(connect)
    recv = first.submit(client, RecvEvent())
    own, other = first.pair()
    second.driver.close()
    assert first.wait(recv).error is Cause.EOF
    first.send(own, b"x")
    assert first.recv(other, 1) == b"x"


# -- addresses and backlog -------------------------------------------------------------------------


def test_a_listener_on_any_address_takes_clients_of_its_family(make_port: MakePort) -> None:
    port = make_port()
    listener = port.listen("0.0.0.0")
    port_number = listener.socket.local_address.port
    for host in ("127.0.0.1", "192.0.2.7"):
        address = NetAddress(host, port_number)
        client = Owner(port.driver.open_socket(address))
        assert port.do(client, ConnectEvent(address)).error is None
        assert port.accept(listener).socket.local_address == address
    address = NetAddress("::1", port_number)
    client = Owner(port.driver.open_socket(address))
    assert port.do(client, ConnectEvent(address)).error is Cause.REFUSED


@pytest.mark.parametrize(
    ("taken", "asked"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("::", "::1")]
)
def test_any_address_and_one_of_them_cannot_both_be_had(
    make_port: MakePort, taken: str, asked: str
) -> None:
    port = make_port()
    number = port.listen(taken).socket.local_address.port
    with pytest.raises(OSError) as raised:
        port.listen(asked, number)
    assert raised.value.errno == errno.EADDRINUSE


def test_hosts_and_families_have_their_own_ports(make_port: MakePort) -> None:
    port = make_port()
    number = port.listen("127.0.0.1").socket.local_address.port
    other_host, other_family = port.listen("127.0.0.2", number), port.listen("::1", number)
    for listener in (other_host, other_family):
        port.pair(listener=listener)


def test_ports_come_back_and_their_number_is_bounded(make_port: MakePort) -> None:
    port = make_port()
    address = NetAddress("127.0.0.1", 80)
    handles = []
    with pytest.raises(OSError) as raised:
        while True:
            handles.append(port.driver.open_socket(address))
    assert raised.value.errno == errno.EADDRNOTAVAIL
    assert len(handles) == len({handle.local_address for handle in handles}) == 16_384
    handles.pop().close()
    handles.append(port.driver.open_socket(address))
    for handle in handles:
        handle.close()


def test_a_connect_to_a_full_backlog_waits_for_room(make_port: MakePort) -> None:
    port = make_port()
    listener = port.listen(backlog=2)
    clients = [port.start_connect(listener) for _ in range(6)]
    port.turn(0)
    assert [connect.in_flight for _, connect in clients] == [False] * 2 + [True] * 4
    accepted = [port.accept(listener).socket for _ in range(6)]
    port.wait_all()
    assert all(connect.error is None for _, connect in clients)
    assert len(set(accepted)) == 6


def test_a_connect_that_waits_for_room_can_be_cancelled(make_port: MakePort) -> None:
    port = make_port()
    listener = port.listen(backlog=1)
    first, connected = port.start_connect(listener)
    second, waiting = port.start_connect(listener)
    third, last = port.start_connect(listener)
    assert port.cancel(waiting).error is Cause.CANCELLED
    second.close()
    port.accept(listener)
    port.accept(listener)
    port.wait_all()
    assert (connected.error, last.error) == (None, None)


def test_a_closed_listener_refuses_who_waits_and_resets_who_was_not_accepted(
    make_port: MakePort,
) -> None:
    port = make_port()
    listener = port.listen(backlog=1)
    first, connected = port.start_connect(listener)
    second, waiting = port.start_connect(listener)
    port.wait(connected)
    recv = port.submit(first, RecvEvent())
    listener.close()
    assert port.wait(waiting).error is Cause.REFUSED
    assert port.wait(recv).error is Cause.RESET


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_bytes", [1, 7, 4096, 1 << 20])
def test_a_buffer_of_any_size_carries_a_stream(make_port: MakePort, buffer_bytes: int) -> None:
    port = make_port(MemoryNetwork(clock=ManualClock(), buffer_bytes=buffer_bytes))
    client, server = port.pair()
    data = pattern(0, min(300_000, 500 * buffer_bytes))
    assert port.transfer(client, server, [data[:100], data[100:]]) == data


def test_a_buffer_is_never_fuller_than_its_size(make_port: MakePort) -> None:
    port = make_port(MemoryNetwork(clock=ManualClock(), buffer_bytes=1000))
    client, server = port.pair()
    assert port.do(client, SendEvent([bytes(1500)])).num_bytes == 1000
    assert port.driver.send_now(client.socket, b"x") == 0
    pending = port.submit(client, SendEvent([bytes(500)]))
    assert port.turn(0) == []
    assert port.do(server, RecvEvent()).num_bytes == 1000
    assert port.wait(pending).num_bytes == 500


def test_a_recv_brings_at_most_a_buffer_however_much_is_there(make_port: MakePort) -> None:
    port = make_port(MemoryNetwork(clock=ManualClock(), buffer_bytes=1 << 20))
    client, server = port.pair()
    assert port.do(client, SendEvent([bytes(200_000)])).num_bytes == 200_000
    assert port.do(server, RecvEvent()).num_bytes == RECV_BYTES_MAX


def test_an_empty_buffer_size_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer_bytes"):
        MemoryNetwork(buffer_bytes=0)


def test_an_answer_that_was_not_read_is_lost_with_the_reset(make_port: MakePort) -> None:
    """What makes an orderly end necessary: reading until EOF before closing."""
    port = make_port()
    client, server = port.pair()
    port.send(server, b"the answer")
    server.close()
    assert port.do(client, SendEvent([b"one more"])).error is None
    assert port.recv_to_end(client) == (b"", Cause.RESET)
