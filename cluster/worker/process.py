"""Runs a worker in this process: application, handshake, signals, exit code."""

import logging
import os
import signal
import sys
import time
import traceback
from types import FrameType

import msgspec
import zmq

from cluster.shared.config import Config, ConfigError
from cluster.shared.endpoints import Endpoint, choose_endpoints
from cluster.shared.lane import LaneViolation, WorkerLane
from cluster.shared.lane_choice import LaneUnavailableError, open_worker_lane
from cluster.shared.logs import change_role
from cluster.shared.messages import ProtocolError, Refuse
from cluster.shared.note import NoteWriter, open_note
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.shared.start_failure import StartFailure, write_start_failure
from cluster.shared.stop_requests import StopRequests
from cluster.shared.zmq_sockets import open_control_socket
from cluster.worker.app import App
from cluster.worker.gateway_link import ZmqGatewayLink
from cluster.worker.loader import ApplicationError, load_application
from cluster.worker.spare import QUIET_WAIT_S, ask_for_shard, wait_for_shard
from cluster.worker.worker import (
    GatewayLostError,
    StartHandlerError,
    Worker,
    WorkerRefusedError,
)

__all__ = ["run_worker"]

logger = logging.getLogger("cluster.worker")

CONFIG_WAIT_S = 10.0
"""Time that the node's configuration may take to appear in the run directory."""

FIND_INTERVAL_S = 0.02
"""Where its place is not known before, the gateway is looked for so often."""

LOST_GATEWAY = 1
TRY_AGAIN = 75


class _ShardRefused(Exception):
    """The gateway grants no shard to this process; the message says why."""


class _StopRequested(Exception):
    """A signal came before there was a worker to stop."""


def run_worker(
    directory: RunDirectory,
    shard: int | None,
    *,
    is_supervised: bool = False,
    spare_number: int = 0,
) -> int:
    """Work on `shard` until told to stop; return the exit code of the process.

    Without a shard it is spare `spare_number`, and works on the shard that it is given one day.

    0 when the gateway or a signal said stop, 1 when the gateway was lost or fenced this
    worker, 2 when it cannot start: no configuration, an application that cannot be imported or
    whose `on_start` raised, a shard that is held or does not exist; 75 when the gateway has no
    memory or descriptors for its lane now. Why is one line on stderr, after a traceback if the
    application raised; a worker that `is_supervised` leaves both for its supervisor to tell. Main
    thread only.
    """
    role = _role(shard, spare_number)
    stop = _StopSignal()
    try:
        config = _wait_for_config(directory)
        app = load_application(config.node.app)
        return _work(directory, config, shard, app, stop)
    except (
        ApplicationError,
        ConfigError,
        RunDirectoryError,
        ProtocolError,
        StartHandlerError,
        _ShardRefused,
    ) as error:
        _tell_failure(directory, role, error, is_supervised)
        return 2
    except _StopRequested:
        return 0


def _role(shard: int | None, spare_number: int = 0) -> str:
    return f"spare-{spare_number}" if shard is None else f"worker-{shard}"


def _name(shard: int | None) -> str:
    return "a spare" if shard is None else f"shard {shard}"


def _tell_failure(
    directory: RunDirectory, role: str, error: Exception, is_supervised: bool
) -> None:
    failure = StartFailure(os.getpid(), f"cluster worker: {error}", summary=str(error))
    cause = error.__cause__
    if isinstance(error, ApplicationError | StartHandlerError) and cause is not None:
        failure = msgspec.structs.replace(
            failure,
            traceback="".join(traceback.format_exception(cause)),
            summary=_what_and_where(cause),
        )
    if is_supervised:
        try:
            write_start_failure(directory, role, failure)
            return
        except RunDirectoryError as unwritten:
            logger.warning("%s", unwritten)
    sys.stderr.write(failure.text)


def _what_and_where(error: BaseException) -> str:
    """Return in one line what was raised, and in which line of which file."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen ")
    ]
    return f"{what} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else what


class _StopSignal:
    """SIGTERM and SIGINT end the worker after what it has in hand; a second one at once."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._requests = StopRequests()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._requests.add(time.monotonic()):
            return
        if self._requests.count > 1:
            raise SystemExit(128 + number)
        if self._worker is None:
            raise _StopRequested
        self._worker.request_stop()

    def stops(self, worker: Worker) -> None:
        """From now on a signal stops `worker`."""
        self._worker = worker


def _wait_for_config(directory: RunDirectory) -> Config:
    began = time.monotonic()
    has_told = False
    while True:
        try:
            return directory.read_config()
        except RunDirectoryError:
            waited_s = time.monotonic() - began
            if waited_s > CONFIG_WAIT_S:
                raise
            if waited_s > QUIET_WAIT_S and not has_told:
                has_told = True
                logger.info(
                    "waiting for a gateway to start in %s, at most %g s",
                    directory.path,
                    CONFIG_WAIT_S,
                )
            time.sleep(0.05)


def _wait_for_gateway(directory: RunDirectory, timeout_s: float) -> Endpoint:
    """Wait until it is known where the gateway is; it need not be there yet."""
    endpoints = choose_endpoints(directory)
    deadline = time.monotonic() + timeout_s
    while (endpoint := endpoints.find_control()) is None:
        if time.monotonic() > deadline:
            raise GatewayLostError(f"no gateway has told for {timeout_s:g} s where it is")
        time.sleep(FIND_INTERVAL_S)
    return endpoint


def _work(
    directory: RunDirectory, config: Config, shard: int | None, app: App, stop: _StopSignal
) -> int:
    try:
        endpoint = _wait_for_gateway(directory, config.workers.worker_timeout_s)
    except GatewayLostError as error:
        logger.error("%s: %s", _name(shard), error)
        return LOST_GATEWAY
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    control = open_control_socket(context, zmq.DEALER, endpoint.curve)
    control.connect(endpoint.address)
    lane: WorkerLane | None = None
    try:
        timeout_s = config.workers.worker_timeout_s
        if shard is None:
            grant = wait_for_shard(control, timeout_s, app.public_ids)
        else:
            grant = ask_for_shard(control, shard, timeout_s, str(directory.path), app.public_ids)
        if isinstance(grant, Refuse) and grant.is_temporary:
            logger.warning("%s: %s", _name(shard), grant.reason)
            return TRY_AGAIN
        if isinstance(grant, Refuse):
            raise _ShardRefused(grant.reason)
        if grant is None:
            return 0
        if shard is None:
            shard = grant.shard
            change_role(_role(shard))
        lane = open_worker_lane(grant, context, endpoint.curve)
        logger.info("shard %d: incarnation %d", shard, grant.incarnation)
        link = ZmqGatewayLink(control, lane.fileno())
        worker = Worker(app, grant, lane, link, _open_note(directory, grant.note))
        stop.stops(worker)
        worker.run()
    except (GatewayLostError, LaneUnavailableError, LaneViolation, WorkerRefusedError) as error:
        logger.error("%s: %s", _name(shard), error)
        return LOST_GATEWAY
    finally:
        if lane is not None:
            lane.close()
        control.close(linger=0)
        context.term()
    return 0


def _open_note(directory: RunDirectory, name: str | None) -> NoteWriter | None:
    """Map the note that the gateway made; without it this worker works, and cannot be blamed."""
    if name is None:
        return None
    try:
        return open_note(directory.path / name)
    except OSError as error:
        logger.warning("what is in hand will not be seen: no note %s (%s)", name, error)
        return None
