"""The control plane's end in the supervisor, against a socket that a test holds."""

import logging
import tempfile
from collections.abc import Iterator

import pytest
import zmq

from cluster.shared.endpoints import Endpoint
from cluster.shared.messages import (
    ControlMessage,
    Drained,
    SupervisorHello,
    WorkerGone,
    decode_message,
    encode_message,
)
from cluster.supervisor import gateway_link
from cluster.supervisor.gateway_link import GatewayLink, GatewayNotReading
from tests.support import wait_until

TIMEOUT_MS = 10_000


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    with zmq.Context() as made:
        yield made


@pytest.fixture
def router(context: "zmq.Context[zmq.Socket[bytes]]") -> Iterator["zmq.Socket[bytes]"]:
    with context.socket(zmq.ROUTER) as made:
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        yield made


@pytest.fixture
def directory() -> Iterator[str]:
    """Not pytest's, whose path can be too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="link-") as made:
        yield made


def received(link: GatewayLink) -> list[ControlMessage]:
    return wait_until(lambda: list(link.receive()), what="a message")


def test_what_was_sent_before_the_gateway_is_there_arrives_in_order(
    context: "zmq.Context[zmq.Socket[bytes]]", router: "zmq.Socket[bytes]", directory: str
):
    endpoint = f"ipc://{directory}/c"
    messages: list[ControlMessage] = [SupervisorHello(), WorkerGone(shard=0, pid=2)]
    link = GatewayLink(context)
    link.connect(Endpoint(endpoint))
    try:
        for message in messages:
            link.send(message)
        router.bind(endpoint)
        got = [decode_message(router.recv_multipart()[1]) for _ in messages]
        assert got == messages
    finally:
        link.close()


def test_a_frame_that_is_no_message_is_logged_and_the_next_one_taken(
    context: "zmq.Context[zmq.Socket[bytes]]",
    router: "zmq.Socket[bytes]",
    caplog: pytest.LogCaptureFixture,
):
    port = router.bind_to_random_port("tcp://127.0.0.1")
    link = GatewayLink(context)
    link.connect(Endpoint(f"tcp://127.0.0.1:{port}"))
    try:
        link.send(SupervisorHello())
        identity = router.recv_multipart()[0]
        with caplog.at_level(logging.ERROR):
            router.send_multipart([identity, b"nonsense"])
            router.send_multipart([identity, encode_message(Drained())])
            assert received(link) == [Drained()]
        assert "no control frame" in caplog.text
    finally:
        link.close()


def test_a_gateway_that_reads_nothing_is_noticed(
    context: "zmq.Context[zmq.Socket[bytes]]", directory: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gateway_link, "_QUEUE_MESSAGES_MAX", 3)
    link = GatewayLink(context)
    link.connect(Endpoint(f"ipc://{directory}/nobody"))
    try:
        with pytest.raises(GatewayNotReading):
            for number in range(10):
                link.send(WorkerGone(shard=0, pid=number))
    finally:
        link.close()
