"""Ctrl-C ends a program that waits for completions without end, and soon."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from cluster.iocp import IocpCore
from cluster.iocp.driver import choose_driver


@pytest.fixture
def core() -> Iterator[IocpCore]:
    made = IocpCore(driver=choose_driver("iocp"))
    yield made
    made.close()


def test_ctrl_c_ends_a_wait_without_end(core: IocpCore) -> None:
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        while True:
            core.dispatch(None)
    assert time.monotonic() - began < 5
    timer.join()
