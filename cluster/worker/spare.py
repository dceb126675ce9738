"""How a process comes to a shard: it asks for one by number, or waits as a spare for any.

A spare has done everything that takes long, the import of the application above all. It ends as
a worker does: when the gateway says so, or is not heard for `worker_timeout_s`.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Sequence

import zmq

from cluster.shared.collector import set_imports_aside
from cluster.shared.liveness import Liveness
from cluster.shared.messages import (
    GatewayAlive,
    Grant,
    Hello,
    Refuse,
    SpareAlive,
    SpareHello,
    Stop,
    decode_message,
    encode_message,
)
from cluster.shared.process import process_identity
from cluster.shared.takeover import PastCall
from cluster.worker.app import App
from cluster.worker.gateway_contact import GatewayLostError

__all__ = ["QUIET_WAIT_S", "ask_for_shard", "wait_for_shard"]

logger = logging.getLogger("cluster.worker")

CHECK_INTERVAL_S = 0.2

QUIET_WAIT_S = 1.0
"""Who waits longer for a gateway says so, once: a person may have started this by hand."""


def ask_for_shard(
    control: "zmq.Socket[bytes]",
    shard: int,
    timeout_s: float,
    where: str,
    app: App,
    past: Sequence[PastCall] = (),
    check: Callable[[], None] | None = None,
) -> Grant | Refuse | None:
    """Ask for `shard` and wait for the answer; None when the gateway says stop.

    The gateway goes by what `app` declares; `past` is what earlier lives had in hand. The gateway
    may not be there yet: raises GatewayLostError after `timeout_s` seconds without a word from it.
    `where` it is waited for is logged before that. `check` is called a few times a second
    meanwhile, and may end the waiting by an error.
    """
    pid, create_time = process_identity(os.getpid())
    hello = Hello(
        shard=shard,
        pid=pid,
        create_time=create_time,
        public_ids=sorted(app.public_ids),
        keeps_sessions=app.keeps_sessions,
        past=list(past),
    )
    _say(control, encode_message(hello))
    began = time.monotonic()
    set_imports_aside()  # while the gateway answers
    quiet_s = min(QUIET_WAIT_S, timeout_s)
    if not control.poll(math.ceil(quiet_s * 1000), zmq.POLLIN):
        logger.info(
            "shard %d: waiting for the answer of a gateway in %s, at most %g s",
            shard,
            where,
            timeout_s,
        )
    return _wait_for_answer(control, timeout_s, None, began, check)


def wait_for_shard(
    control: "zmq.Socket[bytes]", timeout_s: float, app: App
) -> Grant | Refuse | None:
    """Wait until a shard falls vacant that is given to this process; None when told to stop.

    The gateway goes by what `app` declares. Raises GatewayLostError when the gateway has said
    nothing for `timeout_s` seconds.
    """
    set_imports_aside()
    pid, create_time = process_identity(os.getpid())
    hello = SpareHello(
        pid=pid,
        create_time=create_time,
        public_ids=sorted(app.public_ids),
        keeps_sessions=app.keeps_sessions,
    )
    _say(control, encode_message(hello))
    return _wait_for_answer(control, timeout_s, encode_message(SpareAlive()), time.monotonic())


def _wait_for_answer(
    control: "zmq.Socket[bytes]",
    timeout_s: float,
    sign_of_life: bytes | None,
    began: float,
    check: Callable[[], None] | None = None,
) -> Grant | Refuse | None:
    liveness = Liveness(timeout_s, began)
    interval_s = timeout_s / 4 if check is None else min(CHECK_INTERVAL_S, timeout_s / 4)
    while True:
        if check is not None:
            check()
        if not control.poll(math.ceil(interval_s * 1000), zmq.POLLIN):
            if liveness.verdict(time.monotonic()) is not None:
                raise GatewayLostError(f"the gateway has not answered for {timeout_s:g} s")
            continue
        message = decode_message(control.recv())
        if isinstance(message, Grant | Refuse):
            return message
        if isinstance(message, Stop):
            return None
        if isinstance(message, GatewayAlive):
            liveness.heard(time.monotonic(), (), is_behind=False)
            if sign_of_life is not None:
                _say(control, sign_of_life)


def _say(control: "zmq.Socket[bytes]", message: bytes) -> None:
    """Send `message`, or drop it where nothing is taken: a gateway that has refused this side's key
    already is not connected to again, and a send that waits would never end. Its silence decides.
    """
    try:
        control.send(message, zmq.NOBLOCK)
    except zmq.Again:
        return
