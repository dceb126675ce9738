"""What a process that is no part of the node asks the gateway, and its answer."""

import time
from collections.abc import Callable
from typing import TypeVar

import zmq

from cluster.shared.descriptor_limit import check_descriptors
from cluster.shared.endpoints import choose_endpoints
from cluster.shared.messages import ControlMessage, decode_message, encode_message
from cluster.shared.run_directory import RunDirectory

__all__ = ["ask_gateway"]

_Answer = TypeVar("_Answer")

_RECONNECT_MS = 20

_LOOK_S = 0.5
"""How often is looked whether it is worth waiting on."""

DESCRIPTORS = 24
"""Open files of a process that only asks: 11."""


def ask_gateway(
    run_directory: RunDirectory,
    question: ControlMessage,
    answer_type: type[_Answer],
    timeout_s: float,
    is_worth_waiting: Callable[[], bool] = lambda: True,
) -> _Answer | None:
    """Return what the gateway of the node in `run_directory` answers to `question`.

    None if nothing comes within `timeout_s` seconds, if it is not `is_worth_waiting` any more, and
    if no gateway has begun to listen. Raises RunDirectoryError when the directory cannot be used,
    TooFewDescriptorsError when this process may open too few files to ask, ProtocolVersionError
    when the node is of another version.
    """
    endpoint = choose_endpoints(run_directory).find_control()
    if endpoint is None:
        return None
    deadline = time.monotonic() + timeout_s
    check_descriptors("a question to the gateway", DESCRIPTORS)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        if endpoint.curve is not None:
            endpoint.curve.apply(socket)
        socket.connect(endpoint.address)
        socket.send(encode_message(question))
        while (left_s := deadline - time.monotonic()) > 0 and is_worth_waiting():
            if socket.poll(int(min(left_s, _LOOK_S) * 1_000) + 1):
                message = decode_message(socket.recv())
                if isinstance(message, answer_type):
                    return message
    return None
