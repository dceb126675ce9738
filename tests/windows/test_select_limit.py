"""`select` of Windows takes 512 descriptors; with one more it would serve none of them."""

import errno
import socket
from contextlib import ExitStack

import pytest

from cluster.iocp import choose_driver
from cluster.iocp.causes import Cause
from tests.contract.driver_harness import Owner, Port


@pytest.mark.parametrize("name", ["iocp", "readiness"])
def test_watches_that_are_too_many_fail_and_the_others_go_on(name: str) -> None:
    driver = choose_driver(name)
    port = Port(driver)
    owner = Owner()
    with ExitStack() as sockets:
        pairs = [socket.socketpair() for _ in range(520)]
        for end in (end for pair in pairs for end in pair):
            sockets.enter_context(end)
        for reader, _ in pairs:
            port.watch(owner, reader.fileno())
        port.run_until(lambda: owner.outcomes, "the end of those that are too many")
        for _, writer in pairs:
            writer.send(b"x")
        port.wait_all()
        driver.close()
    told = [(outcome.error, outcome.raw_error) for outcome in owner.outcomes]
    refused = told.count((Cause.OS_ERROR, errno.EMFILE))
    assert 0 < refused < 20
    assert told.count((None, 0)) == len(pairs) - refused
