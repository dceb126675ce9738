"""Hundreds of sessions that do nothing: what each one takes, and that it is given back.

The short form of `benchmarks.idle_sessions`, which has the figures for 15,000.
"""

import gc
import socket
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.iocp import IocpCore, IocpEvent, NetAddress, ServerService, Session
from tests.iocp.drivers import SOCKET_DRIVERS, open_driver
from tests.iocp.world import World

SESSIONS = 300
SESSION_BYTES_MAX = 3 * 1024
"""With the client's socket, which is in this process too."""
LEFT_BYTES_MAX = 100 * SESSIONS
"""Tables that have once been larger stay so, in whichever of two sizes they came to last."""


class Recyclable(Session):
    __slots__ = ()

    recyclable = True


@pytest.fixture(params=SOCKET_DRIVERS)
def core(request: pytest.FixtureRequest) -> Iterator[IocpCore]:
    core = IocpCore(driver=open_driver(request.param))
    yield core
    core.close()


def connect_all(stack: ExitStack, core: IocpCore, service: ServerService) -> None:
    local = service.listener.local_address
    for _ in range(SESSIONS):
        stack.enter_context(socket.create_connection((local.host, local.port), timeout=10))
        core.dispatch(0)
    World(core).run_until(lambda: service.current_session_count == SESSIONS)


def open_and_close_all(core: IocpCore, service: ServerService) -> None:
    with ExitStack() as stack:
        connect_all(stack, core, service)
    World(core).run_until(lambda: service.current_session_count == 0)


def descriptor_count() -> int:
    directory = Path("/dev/fd")
    if sys.platform == "win32" or not directory.is_dir():
        return 0
    return sum(1 for _ in directory.iterdir())


def object_counts(*kinds: type) -> list[int]:
    gc.collect()
    return [sum(isinstance(thing, kind) for thing in gc.get_objects()) for kind in kinds]


def traced_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("kind", [Session, Recyclable])
def test_descriptors_and_objects_of_hundreds_of_sessions_come_back(
    core: IocpCore, kind: type[Session]
):
    service = ServerService(NetAddress("127.0.0.1", 0), core, kind, SESSIONS)
    assert service.start()
    open_and_close_all(core, service)
    kinds = (Session, IocpEvent, type(service.listener.handle))
    objects, descriptors = object_counts(*kinds), descriptor_count()
    open_and_close_all(core, service)
    assert object_counts(*kinds) == objects
    assert descriptor_count() <= descriptors
    service.close_service()


def test_an_idle_session_is_small_and_its_memory_comes_back(core: IocpCore):
    service = ServerService(NetAddress("127.0.0.1", 0), core, Session, SESSIONS)
    assert service.start()
    tracemalloc.start()
    try:
        open_and_close_all(core, service)
        before = traced_bytes()
        with ExitStack() as stack:
            connect_all(stack, core, service)
            held = traced_bytes() - before
        World(core).run_until(lambda: service.current_session_count == 0)
        del stack
        left = traced_bytes() - before
    finally:
        tracemalloc.stop()
    service.close_service()
    assert 0 < held < SESSIONS * SESSION_BYTES_MAX
    assert left < LEFT_BYTES_MAX
