"""Every outcome is told in the library's words, with the system's own code beside them."""

import errno

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.errors import classify_os_error
from cluster.iocp.iocp_event import ConnectEvent, DisconnectEvent, RecvEvent, SendEvent
from tests.contract.driver_harness import Outcome, Owner, Port


def success(port: Port) -> Outcome:
    return port.do(port.pair()[0], SendEvent([b"x"]))


def orderly_end(port: Port) -> Outcome:
    client, server = port.pair()
    port.do(client, DisconnectEvent())
    return port.do(server, RecvEvent())


def reset_of_a_recv(port: Port) -> Outcome:
    client, server = port.pair()
    recv = port.submit(server, RecvEvent())
    client.socket.reset_on_close()
    client.close()
    return port.wait(recv)


def reset_of_a_send(port: Port) -> Outcome:
    client, _ = port.pair()
    port.do(client, DisconnectEvent())
    return port.do(client, SendEvent([b"x"]))


def refused_connect(port: Port) -> Outcome:
    gone = port.listen()
    client, address = port.open_client(gone), gone.socket.local_address
    gone.close()
    return port.do(client, ConnectEvent(address))


def cancelled_recv(port: Port) -> Outcome:
    return port.cancel(port.submit(port.pair()[0], RecvEvent()))


CASES = {
    success: None,
    orderly_end: Cause.EOF,
    reset_of_a_recv: Cause.RESET,
    reset_of_a_send: Cause.RESET,
    refused_connect: Cause.REFUSED,
    cancelled_recv: Cause.CANCELLED,
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_each_outcome_has_its_cause_and_its_raw_code(port: Port, case) -> None:
    outcome = case(port)
    assert outcome.error is CASES[case]
    assert type(outcome.raw_error) is int
    assert (outcome.raw_error == 0) == (outcome.error in (None, Cause.EOF))
    if outcome.error is not None:
        assert outcome.num_bytes == 0
        assert outcome.data is None
    if outcome.raw_error:
        assert classify_os_error(outcome.raw_error) is outcome.error


def test_an_error_does_not_stick_to_the_event(port: Port) -> None:
    client, server = port.pair()
    recv = RecvEvent()
    assert port.cancel(port.submit(client, recv)).error is Cause.CANCELLED
    port.submit(client, recv)
    port.turn(0)
    assert (recv.error, recv.raw_error, recv.data) == (None, 0, None)
    port.send(server, b"x")
    assert port.wait(recv).error is None


def test_an_unknown_name_cannot_be_listened_on(port: Port) -> None:
    with pytest.raises(OSError):
        port.listen("no-such-host.invalid")


def test_an_address_in_use_is_the_system_s_own_error(port: Port, listener: Owner) -> None:
    with pytest.raises(OSError) as raised:
        port.listen(port=listener.socket.local_address.port)
    assert raised.value.errno == errno.EADDRINUSE
    assert raised.value.strerror


def test_the_driver_says_its_name(port: Port) -> None:
    assert port.driver.name in ("iocp", "io_uring", "readiness", "memory")
