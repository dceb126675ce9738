"""Of a plain number Winsock takes 200 at most for a backlog; the driver asks for more."""

import ctypes
import errno
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from cluster.iocp import NetAddress
from cluster.iocp.driver import windows_listen
from cluster.iocp.driver.windows import WindowsDriver

CROWD = 260
LOOPBACK = NetAddress("127.0.0.1", 0)


def test_more_clients_than_a_plain_number_takes_can_wait_to_be_accepted() -> None:
    driver = WindowsDriver()
    address = driver.open_listener(LOOPBACK, 4_096).local_address
    with ExitStack() as clients:
        for _ in range(CROWD):
            client = socket.create_connection((address.host, address.port), timeout=10)
            clients.enter_context(client)
    driver.close()


@pytest.mark.parametrize(("backlog", "told"), [(4_096, -4_096), (0, -1), (1 << 20, -65_535)])
def test_winsock_is_told_a_backlog_as_a_hint(
    backlog: int, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_told = []
    listen: Callable[[int, int], int] = windows_listen._listen

    def note(handle: int, number: int) -> int:
        was_told.append(number)
        return listen(handle, number)

    monkeypatch.setattr(windows_listen, "_listen", note)
    driver = WindowsDriver()
    driver.open_listener(LOOPBACK, backlog).close()
    driver.close()
    assert was_told == [told]


def test_what_winsock_refuses_is_an_error_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, number: int) -> int:
        ctypes.set_last_error(errno.WSAEADDRINUSE)
        return -1

    monkeypatch.setattr(windows_listen, "_listen", refuse)
    with pytest.raises(OSError) as raised:
        windows_listen.open_listener(LOOPBACK, 16, False)
    assert raised.value.errno == errno.EADDRINUSE
