"""Any sequence of operations: one completion each, and only bytes that were sent, in order."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.iocp.causes import Cause
from cluster.iocp.driver import Driver
from cluster.iocp.errors import EventInFlightError
from cluster.iocp.iocp_event import DisconnectEvent, IocpEvent, RecvEvent, SendEvent
from tests.contract.driver_harness import Outcome, Owner, Port, pattern

CAUSES = {None, Cause.EOF, Cause.RESET, Cause.CANCELLED}
MAX_SEND_BYTES = 150_000
CONNECTIONS_MAX = 4


class End(Owner):
    """One end of a connection, which checks what it receives against what the other sent."""

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner.handle)
        self.peer: End = self
        self.sent = 0
        self.received = 0
        self.sending: tuple[SendEvent, int] | None = None
        self.gap = False
        """A send did not say how much of it went: nothing may follow in this stream."""
        self.shut_down = False
        self.in_flight: set[IocpEvent] = set()

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        super().dispatch(event, num_bytes)
        outcome = self.outcomes.pop()
        assert outcome.error in CAUSES, outcome
        self.in_flight.remove(event)
        if isinstance(event, RecvEvent):
            self._take(outcome)
        elif isinstance(event, SendEvent):
            assert self.sending is not None
            size = self.sending[1]
            self.sending = None
            assert num_bytes <= size
            assert (num_bytes > 0) == (outcome.error is None)
            self.sent += num_bytes
            self.gap = outcome.error is not None

    def _take(self, outcome: Outcome) -> None:
        if outcome.data is None:
            assert outcome.error is not None
            return
        assert outcome.data == pattern(self.received, outcome.num_bytes)
        self.received += outcome.num_bytes
        peer = self.peer
        uncertain = peer.sending[1] if peer.sending else MAX_SEND_BYTES if peer.gap else 0
        assert self.received <= peer.sent + uncertain


class Run:
    """Carries out steps of a random sequence; what makes no sense at the moment is left out."""

    def __init__(self, driver: Driver) -> None:
        self.port = Port(driver)
        self.listener = self.port.listen()
        self.ends: list[End] = []
        self.posts = Owner()
        self.posted = 0

    def connect(self, number: int) -> None:
        if len(self.ends) < 2 * CONNECTIONS_MAX:
            client, server = map(End, self.port.pair(listener=self.listener))
            client.peer, server.peer = server, client
            self.ends += [client, server]

    def send(self, number: int) -> None:
        end = self._pick(number)
        if end is None or end.gap or end.shut_down:
            return
        size = 1 + number * 7919 % MAX_SEND_BYTES
        data, half = pattern(end.sent, size), size // 3
        event = SendEvent([data[:half], data[half:]])
        if end.sending is None:
            end.sending = (event, size)
            self._submit(end, event)
        else:
            self._refused(end, event)

    def recv(self, number: int) -> None:
        end = self._pick(number)
        if end is None:
            return
        if any(isinstance(event, RecvEvent) for event in end.in_flight):
            return
        self._submit(end, RecvEvent())

    def shut_down(self, number: int) -> None:
        end = self._pick(number)
        if end is not None and end.sending is None and not end.shut_down:
            end.shut_down = True
            self._submit(end, DisconnectEvent())

    def cancel(self, number: int) -> None:
        flying = list(self.port.expected)
        if flying:
            self.port.driver.cancel(flying[number % len(flying)])

    def close(self, number: int) -> None:
        end = self._pick(number)
        if end is not None and not end.in_flight:
            if number % 3 == 0:
                end.socket.reset_on_close()
            end.close()
            self.ends.remove(end)

    def post(self, number: int) -> None:
        self.port.post(self.posts, self.posted)
        self.posted += 1

    def turn(self, number: int) -> None:
        self.port.turn(0, limit=1 + number % 8)

    def finish(self) -> None:
        """End everything; the port has checked each completion on the way."""
        self.port.cancel_all()
        assert not any(end.in_flight for end in self.ends)
        assert self.port.turn(0) == []
        order = [outcome.num_bytes for outcome in self.posts.outcomes]
        assert order == list(range(self.posted))

    def _pick(self, number: int) -> End | None:
        return self.ends[number % len(self.ends)] if self.ends else None

    def _submit(self, end: End, event: IocpEvent) -> None:
        end.in_flight.add(event)
        self.port.submit(end, event)

    def _refused(self, end: End, event: IocpEvent) -> None:
        """A second send: refused while the first pends, which only the driver knows."""
        assert end.sending is not None
        try:
            self.port.driver.submit(end.sending[0])
        except EventInFlightError:
            return
        raise AssertionError("an event in flight was taken again")


STEPS: list[Callable[[Run, int], Any]] = [
    Run.connect,
    Run.send,
    Run.send,
    Run.recv,
    Run.recv,
    Run.shut_down,
    Run.cancel,
    Run.close,
    Run.post,
    Run.turn,
    Run.turn,
]


@settings(
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 20)), min_size=5, max_size=80
    )
)
def test_each_operation_of_any_sequence_completes_once(
    make_driver: Callable[[], Driver], steps: list[tuple[Callable[[Run, int], Any], int]]
) -> None:
    driver = make_driver()
    try:
        run = Run(driver)
        run.connect(0)
        for step, number in steps:
            step(run, number)
        run.finish()
    finally:
        driver.close()
