"""Any interleaving of what can happen to sessions, on an in-process network with seeded faults.

Each connection has a session on one end and a peer on the other, and a model that knows what was
accepted and in which order. After every step: the peer has a prefix of what was accepted, the
session has a prefix of what the peer sent, callbacks come in their order, and nothing of a closed
session is in flight. In the end, when everybody reads and nothing broke the connection, everything
that was accepted has arrived, each `on_connected` has its one `on_disconnected`, and no handle is
left open.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cluster.iocp import Cause, IocpCore, ServerService, Session, SessionSettings, SessionState
from cluster.iocp.driver.memory import Faults, ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.session_fan_out import send_now_to_each
from tests.iocp.peers import Peer
from tests.iocp.world import LOOPBACK, Recorder

CLOSE_TIMEOUT_S = 2.0
STALL_TIMEOUT_S = 5.0
QUEUE_BYTES_MAX = 200_000
SETTLE_S = 0.2
"""Longer than anything is late, and than the listener pauses; far shorter than the timeouts."""

# What a callback does beside noting that it was called.
NOTHING, SENDS, PAUSES, RESUMES, DISCONNECTS, ABORTS, RAISES = range(7)
CALLBACKS = ("connected", "recv", "send", "read_ended")

ORDERLY = {"outside", "over", Cause.EOF, *(f"in {name}" for name in CALLBACKS)}
"""Causes of a disconnect that leaves time to send what was queued."""

acts = st.sampled_from([SENDS, SENDS, SENDS, PAUSES, RESUMES, DISCONNECTS, ABORTS, RAISES])
numbers = st.integers(0, 5)
"""Which of those that are there."""

data_sizes = st.one_of(st.integers(0, 60), st.integers(500, 5_000), st.just(40_000))


probabilities = st.sampled_from([0.0, 0.2, 0.7])
fault_kinds = st.builds(
    Faults,
    partial_send=probabilities,
    partial_recv=probabilities,
    reset=st.sampled_from([0.0, 0.0, 0.05]),
    late=probabilities,
    accept_error=st.sampled_from([0.0, 0.0, 0.3]),
)


class Boom(Exception):
    """What a callback of these tests raises."""


class Subject(Recorder, Session):
    """A session that does in its callbacks what was planned, and tells its connection."""

    def __init__(self, leaves: int, stays_after_eof: bool) -> None:
        super().__init__()
        self.calls = []
        self.received = bytearray()
        self.accepted = bytearray()
        self.plans: dict[str, tuple[int, int]] = {}
        self.leaves = leaves
        """Bytes that `on_recv` does not consume."""
        self.stays_after_eof = stays_after_eof
        self.has_raised = False
        self.was_cut = False
        self.in_callback = False

    def on_connected(self) -> None:
        self.act("connected")

    def on_recv(self, data: bytes | memoryview) -> int:
        taken = max(0, len(data) - self.leaves)
        self.received += data[:taken]
        self.act("recv")
        return taken

    def on_send(self, num_bytes: int) -> None:
        self.act("send")

    def on_read_ended(self) -> None:
        self.act("read_ended")
        if not self.stays_after_eof:
            super().on_read_ended()

    def on_disconnected(self, cause: str) -> None:
        self.calls.append(("disconnected", cause))
        assert not self.in_callback
        assert not self.send(b"too late")

    def on_connect_failed(self, cause: str) -> None:
        raise AssertionError("an accepted session cannot fail to connect")

    def _close_timed_out(self) -> None:
        self.was_cut = True
        super()._close_timed_out()

    def act(self, name: str) -> None:
        assert not self.in_callback, "two callbacks at once"
        assert self.is_connected or name == "send"
        self.in_callback = True
        try:
            self.calls.append((name, None))
            kind, size = self.plans.pop(name, (NOTHING, 0))
            if kind == SENDS:
                for part in (size, 3):
                    self.say(self.send, part)
            elif kind == PAUSES:
                self.pause_recv()
            elif kind == RESUMES:
                self.resume_recv()
            elif kind == DISCONNECTS:
                self.say(self.send, size)
                self.disconnect(f"in {name}")
                assert not self.send(b"after disconnect")
            elif kind == ABORTS:
                self.was_cut = True
                self.abort(f"abort in {name}")
            elif kind == RAISES:
                self.was_cut = self.has_raised = True
                raise Boom
        finally:
            self.in_callback = False

    def say(self, how: Any, size: int) -> None:
        """Send bytes that tell their place in the stream; remember them if they were taken."""
        data = place_bytes(len(self.accepted), size)
        if how(data):
            self.accepted += data


class Connection:
    """One peer, the session that it reached, and what both were told."""

    def __init__(self, peer: Peer) -> None:
        assert peer.handle is not None
        self.peer = peer
        self.port = peer.handle.local_address.port
        self.session: Subject | None = None
        self.told = bytearray()
        self.was_cut = False
        """Whether something was done to it that may destroy what is under way."""


def place_bytes(begin: int, size: int) -> bytes:
    """Return `size` bytes from `begin` on of an endless stream in which every place is told."""
    first, last = begin // 4, (begin + size) // 4 + 1
    return b"".join(n.to_bytes(4, "big") for n in range(first, last))[begin - 4 * first :][:size]


def is_inhabited(machine: "SessionMachine") -> bool:
    """Whether there is anybody to whom something could happen."""
    return bool(living(machine))


def is_connected(machine: "SessionMachine") -> bool:
    return bool(connected(machine))


def living(machine: "SessionMachine") -> list[Connection]:
    """The connections whose peer is still there."""
    return [connection for connection in machine.all if not connection.peer.is_closed]


def connected(machine: "SessionMachine") -> list[Subject]:
    """The sessions that are connected."""
    return [session for session in machine.sessions if session.is_connected]


def is_open(session: Subject) -> bool:
    return session.state not in (SessionState.IDLE, SessionState.CLOSED)


class SessionMachine(RuleBasedStateMachine):
    """Up to six connections of one service."""

    @initialize(
        seed=st.integers(0, 2**32 - 1),
        faults=fault_kinds,
        leaves=st.sampled_from([0, 0, 1, 100]),
        stays=st.booleans(),
    )
    def begin(self, seed: int, faults: Faults, leaves: int, stays: bool) -> None:
        self.leaves, self.stays = leaves, stays
        self.clock = ManualClock()
        self.network = MemoryNetwork(seed=seed, faults=faults, clock=self.clock)
        self.driver = MemoryDriver(self.network)
        self.core = IocpCore(driver=self.driver)
        self.may_break = bool(faults.reset or faults.accept_error)
        self.sessions: list[Subject] = []
        self.all: list[Connection] = []
        self.service = ServerService(
            LOOPBACK,
            self.core,
            self.make_session,
            6,
            SessionSettings(CLOSE_TIMEOUT_S, QUEUE_BYTES_MAX, STALL_TIMEOUT_S),
            accepts_outstanding_max=2,
        )
        assert self.service.start()

    def make_session(self) -> Session:
        session = Subject(self.leaves, self.stays)
        self.sessions.append(session)
        return session

    # -- what the peer does ------------------------------------------------------------------------

    @precondition(lambda self: len(living(self)) < 6)
    @rule(reading=st.booleans())
    def connect(self, reading: bool) -> None:
        peer = Peer(self.core, self.service.listener.local_address, reading=reading)
        self.all.append(Connection(peer))
        for _ in range(3):  # enough to be connected, if nothing is late
            self.core.dispatch(0)

    @precondition(is_inhabited)
    @rule(number=numbers, size=data_sizes)
    def peer_sends(self, number: int, size: int) -> None:
        connection = self.pick(number)
        if not connection.peer.is_shut_down and connection.peer.ended is None:
            data = place_bytes(len(connection.told), size)
            connection.told += data
            connection.peer.send(data)

    @precondition(is_inhabited)
    @rule(number=numbers)
    def peer_reads(self, number: int) -> None:
        self.pick(number).peer.read()

    @precondition(is_inhabited)
    @rule(number=numbers)
    def peer_reads_no_more(self, number: int) -> None:
        self.pick(number).peer.read_no_more()

    @precondition(is_inhabited)
    @rule(number=numbers)
    def peer_shuts_down(self, number: int) -> None:
        peer = self.pick(number).peer
        if peer.is_connected and not peer.is_shut_down and not peer.unsent_bytes:
            peer.shut_down()

    @precondition(is_inhabited)
    @rule(number=numbers, end=st.sampled_from([Peer.close, Peer.reset]))
    def peer_leaves(self, number: int, end: Callable[[Peer], None]) -> None:
        connection = self.pick(number)
        connection.was_cut = True
        end(connection.peer)

    # -- what the application does -----------------------------------------------------------------

    @precondition(is_connected)
    @rule(number=numbers, size=data_sizes)
    def send(self, number: int, size: int) -> None:
        session = self.pick_connected(number)
        session.say(session.send, size)

    @precondition(is_connected)
    @rule(number=numbers, sizes=st.lists(data_sizes, max_size=5))
    def send_many(self, number: int, sizes: list[int]) -> None:
        session = self.pick_connected(number)
        for size in sizes:
            session.say(session.send, size)

    @precondition(is_connected)
    @rule(number=numbers, size=data_sizes)
    def send_now(self, number: int, size: int) -> None:
        session = self.pick_connected(number)
        session.say(session.send_now, size)

    @precondition(is_connected)
    @rule(number=numbers, size=data_sizes)
    def send_now_to_each(self, number: int, size: int) -> None:
        session = self.pick_connected(number)
        session.say(lambda data: send_now_to_each([session], data) == 1, size)

    @precondition(is_connected)
    @rule(
        number=numbers,
        name=st.sampled_from(["recv", "send", "read_ended"]),
        kind=acts,
        size=data_sizes,
    )
    def plan(self, number: int, name: str, kind: int, size: int) -> None:
        self.pick_connected(number).plans[name] = (kind, size)

    @rule(kind=acts, size=data_sizes)
    def plan_a_greeting(self, kind: int, size: int) -> None:
        for session in self.sessions:
            if session.state is SessionState.IDLE:
                session.plans["connected"] = (kind, size)

    @precondition(is_connected)
    @rule(number=numbers)
    def pause(self, number: int) -> None:
        self.pick_connected(number).pause_recv()

    @precondition(is_connected)
    @rule(number=numbers)
    def resume(self, number: int) -> None:
        self.pick_connected(number).resume_recv()

    @precondition(is_connected)
    @rule(number=numbers)
    def disconnect(self, number: int) -> None:
        session = self.pick_connected(number)
        assert session.disconnect("outside")
        assert not session.disconnect("twice")
        assert not session.send(b"late")

    @precondition(lambda self: any(is_open(session) for session in self.sessions))
    @rule(number=numbers)
    def abort(self, number: int) -> None:
        sessions = [session for session in self.sessions if is_open(session)]
        session = sessions[number % len(sessions)]
        session.was_cut = True
        session.abort("abort outside")

    # -- time --------------------------------------------------------------------------------------

    @precondition(is_inhabited)
    @rule()
    def dispatch(self) -> None:
        self.core.dispatch(0)

    @precondition(is_inhabited)
    @rule(turns=st.integers(1, 9))
    def time_passes(self, turns: int) -> None:
        for _ in range(turns):
            self.core.dispatch(0.002)

    @precondition(is_inhabited)
    @rule(seconds=st.sampled_from([1.0, 3.0]))
    def much_time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.core.dispatch(0)

    @precondition(is_inhabited)
    @rule()
    def everybody_reads_until_all_is_quiet(self) -> None:
        self.heal()
        self.run_dry()
        self.check_nothing_is_under_way()

    def check_nothing_is_under_way(self) -> None:
        """Where both sides are still there, each has heard everything."""
        for connection in living(self):
            session, peer = connection.session, connection.peer
            if session is not None and session.is_connected and peer.ended is None:
                assert peer.received == session.accepted, "stranded"
                assert not session.send_registered
                assert session.queued_bytes == 0
                assert len(session.received) + peer.unsent_bytes == len(connection.told)

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def every_session_is_in_order(self) -> None:
        if not hasattr(self, "core"):
            return
        self.match()
        for session in self.sessions:
            session.check_invariants()
            check_calls(session)
            check_queue(session)
            assert not (session.has_raised and session.is_connected)
            if session.state is SessionState.CLOSED:
                check_closed(session)
        for connection in self.all:
            if (reached := connection.session) is not None:
                assert reached.accepted.startswith(connection.peer.received), "not what was sent"
                assert connection.told.startswith(reached.received), "not what the peer sent"
        assert self.service.current_session_count <= 6

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        self.heal()
        self.run_dry()
        self.check_nothing_is_under_way()
        self.service.close_service("over")
        self.run_dry()
        for connection in self.all:
            if not connection.peer.is_closed:
                connection.peer.close()
        self.run_dry()
        self.every_session_is_in_order()
        self.check_the_end()
        self.core.close()

    def check_the_end(self) -> None:
        assert self.service.current_session_count == 0
        assert self.service.listener.handle is None
        for session in self.sessions:
            assert session.state in (SessionState.IDLE, SessionState.CLOSED)
            assert session.count("connected") == session.count("disconnected")
        for connection in self.all:
            if (reached := connection.session) is None:
                continue
            may_be_cut = connection.was_cut or reached.was_cut or self.may_break
            if reached.disconnected_with in ORDERLY and not may_be_cut:
                assert connection.peer.received == reached.accepted, "stranded"
                assert connection.peer.ended is Cause.EOF
        assert not self.driver._owned

    # -- helpers -----------------------------------------------------------------------------------

    def pick(self, number: int) -> "Connection":
        candidates = living(self)
        return candidates[number % len(candidates)]

    def pick_connected(self, number: int) -> "Subject":
        candidates = connected(self)
        return candidates[number % len(candidates)]

    def match(self) -> None:
        """Find the session of each connection by the port of its peer."""
        by_port = {s.address.port: s for s in self.sessions if s.address is not None}
        for connection in self.all:
            if connection.session is None:
                connection.session = by_port.get(connection.port)

    def heal(self) -> None:
        """Let everybody read, and plan no more surprises."""
        for session in self.sessions:
            session.plans.clear()
            session.leaves = 0
            session.pause_recv()
            session.resume_recv()  # what was left comes again
        for connection in self.all:
            connection.peer.read()

    def run_dry(self) -> None:
        """Dispatch until nothing happens any more; peers that see the end close as well."""
        idle_s = 0.0
        while idle_s < SETTLE_S:
            began = self.clock.now()
            if self.core.dispatch(0.02):
                idle_s = 0.0
            else:
                idle_s += self.clock.now() - began
            for connection in self.all:
                if connection.peer.ended is Cause.EOF:
                    connection.peer.close()


def check_calls(session: Subject) -> None:
    """Connected first, disconnected last, the end of reading once and no recv behind it."""
    names = session.names()
    if not names:
        return
    assert names[0] == "connected"
    assert names.count("connected") == 1
    assert names.count("disconnected") <= 1
    assert names.count("read_ended") <= 1
    if "disconnected" in names:
        assert names[-1] == "disconnected"
    assert ("disconnected" in names) is (session.state is SessionState.CLOSED)


def check_queue(session: Subject) -> None:
    """What is counted as queued is what is held, and one registration covers it."""
    if session.state is SessionState.CONNECTED:
        held = sum(map(len, session._send_queue))
        event = session._send_event
        held += 0 if event is None else sum(map(len, event.send_buffers))
        assert session.queued_bytes == held
        assert held == 0 or session.send_registered
        assert session.send_registered is (event is not None and event.owner is session)


def check_closed(session: Subject) -> None:
    assert session.handle is None
    for event in (
        session._recv_event,
        session._send_event,
        session._connect_event,
        session._shut_down_event,
        session._post_event,
    ):
        assert event is None or (event.owner is None and not event.in_flight)


SessionMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
# Most of that time is for making a failure small.
TestSession = pytest.mark.timeout(300)(SessionMachine.TestCase)
