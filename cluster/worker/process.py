"""Runs a worker in this process: application, handshake, signals, exit code."""

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import msgspec
import zmq

from cluster.iocp import NetAddress
from cluster.shared.config import ConfigError, WorkersConfig
from cluster.shared.cpus import keep_to
from cluster.shared.descriptor_limit import TooFewDescriptorsError, check_descriptors
from cluster.shared.exit_codes import CANNOT_START, LOST_GATEWAY, TRY_AGAIN
from cluster.shared.key_files import KeyFileError
from cluster.shared.lane import LaneViolation, WorkerLane
from cluster.shared.lane_choice import LaneUnavailableError, open_worker_lane
from cluster.shared.logs import change_role, follow_config
from cluster.shared.messages import Grant, ProtocolError, Refuse
from cluster.shared.process import call_in_forks
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.shared.signal_handling import handle_signal
from cluster.shared.standard_streams import tell
from cluster.shared.start_failure import StartFailure, write_start_failure
from cluster.shared.stop_requests import StopRequests
from cluster.shared.zmq_sockets import open_control_socket
from cluster.worker.app import App
from cluster.worker.gateway_contact import GatewayLostError, WorkerRefusedError
from cluster.worker.last_threads import leave_last_threads
from cluster.worker.loader import ApplicationError, load_application
from cluster.worker.place import KeyRefusedError, LocalPlace, Place, wait_for_config
from cluster.worker.slow_import import told_where
from cluster.worker.spare import ask_for_shard, wait_for_shard
from cluster.worker.worker import StartHandlerError, Worker

__all__ = ["run_remote_worker", "run_worker"]

logger = logging.getLogger("cluster.worker")

DESCRIPTORS = 48
"""Open files of a worker: 17, and what comes and goes. Those of the application come on top."""


class _StoppedAtOnce(SystemExit):
    """The second request to stop."""


class _ShardRefused(Exception):
    """The gateway grants no shard to this process; the message says why."""


class _StopRequested(BaseException):
    """A signal came before there was a worker to stop: no error of the application's."""


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

    def begin() -> tuple[Place, App]:
        config = wait_for_config(directory)
        follow_config(config)
        keep_to("workers.cpus", config.workers.cpus)  # before the application starts threads
        place = LocalPlace(directory, config, is_supervised=is_supervised)
        return place, _load(config.node.app, config.workers)

    role = _role(shard, spare_number)
    return _run_to_end(
        shard, begin, lambda error: _tell_failure(directory, role, error, is_supervised)
    )


def run_remote_worker(
    gateway: NetAddress, keys_dir: Path, shard: int, app: str | None, directory: RunDirectory
) -> int:
    """Work on `shard` of the gateway at `gateway`, on another machine; return the exit code.

    `keys_dir` has the keys that both sides know each other by, `app` is the application, and
    `directory` where notes of what is in hand outlive this process. The codes are those of
    `run_worker`: 2 also for keys that cannot be used or are not known to the gateway, 75 also while
    the shard's last worker may still live. A worker that hangs ends itself with 1. Main thread
    only.
    """

    def begin() -> tuple[Place, App]:
        # The workers of the gateway's machine start without it.
        from cluster.worker.remote_place import RemotePlace

        place = RemotePlace(gateway, keys_dir, shard, directory)
        return place, _load(app, WorkersConfig())  # what is configured, it hears later

    role = _role(shard)
    return _run_to_end(shard, begin, lambda error: _tell_failure(directory, role, error, False))


def _run_to_end(
    shard: int | None,
    begin: Callable[[], tuple[Place, App]],
    tell_failure: Callable[[Exception], None],
) -> int:
    try:
        exit_code = _run(shard, begin, tell_failure)
    except BaseException as error:
        leave_last_threads(error)
        raise
    leave_last_threads(None, exit_code)
    return exit_code


def _run(
    shard: int | None,
    begin: Callable[[], tuple[Place, App]],
    tell_failure: Callable[[Exception], None],
) -> int:
    stop = _StopSignal()
    try:
        place, app = begin()
        return _work(place, shard, app, stop)
    except (
        ApplicationError,
        ConfigError,
        KeyFileError,
        KeyRefusedError,
        RunDirectoryError,
        ProtocolError,
        StartHandlerError,
        TooFewDescriptorsError,
        _ShardRefused,
    ) as error:
        tell_failure(error)
        return CANNOT_START
    except _StopRequested:
        return 0
    except SystemExit as error:
        if not isinstance(error, _StoppedAtOnce):
            # The interpreter, which goes on with it, tells its text at most.
            logger.exception("the application ended its worker: it raised %r", error)
        raise


def _load(spec: str | None, config: WorkersConfig) -> App:
    with told_where(spec, config.slow_start_s):
        return load_application(spec)


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
    tell(failure.text)


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
    """SIGTERM and SIGINT end the worker after what it has in hand; a second one at once.

    A process that the application forks off has them as any Python program: what ends such a
    process by a signal, as multiprocessing does, waits for that.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._requests = StopRequests()
        for number in (signal.SIGTERM, signal.SIGINT):
            handle_signal(number, self)
        call_in_forks(self._was_forked_off)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._requests.add(time.monotonic()):
            return
        if self._requests.count > 1:
            raise _StoppedAtOnce(128 + number)
        if self._worker is None:
            raise _StopRequested
        self._worker.request_stop()

    def stops(self, worker: Worker) -> None:
        """From now on a signal stops `worker`."""
        self._worker = worker

    def _was_forked_off(self) -> None:
        for number, handler in (
            (signal.SIGTERM, signal.SIG_DFL),
            (signal.SIGINT, signal.default_int_handler),
        ):
            if signal.getsignal(number) is self:  # and none of the application's
                signal.signal(number, handler)
        if self._worker is not None:
            self._worker.was_forked_off()


def _work(place: Place, shard: int | None, app: App, stop: _StopSignal) -> int:
    try:
        endpoint = place.find_gateway()
    except GatewayLostError as error:
        logger.error("%s: %s", _name(shard), error)
        return LOST_GATEWAY
    check_descriptors("a worker", DESCRIPTORS)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    control = open_control_socket(context, zmq.DEALER, endpoint.curve)
    place.watch(control)
    control.connect(endpoint.address)
    lane: WorkerLane | None = None
    try:
        grant = _ask(place, control, shard, app)
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
        grant = place.granted(grant)
        lane = open_worker_lane(grant, context, endpoint.curve)
        logger.info("shard %d: incarnation %d", shard, grant.incarnation)
        link = place.make_link(control, lane.fileno(), grant)
        worker = Worker(app, grant, lane, link, place.open_note(grant))
        stop.stops(worker)
        worker.run()
        place.ended()
    except (GatewayLostError, LaneUnavailableError, LaneViolation, WorkerRefusedError) as error:
        logger.error("%s: %s%s", _name(shard), error, place.hint)
        return LOST_GATEWAY
    finally:
        if lane is not None:
            lane.close()
        place.close()
        control.close(linger=0)
        context.term()
    return 0


def _ask(
    place: Place, control: "zmq.Socket[bytes]", shard: int | None, app: App
) -> Grant | Refuse | None:
    if shard is None:
        return wait_for_shard(control, place.timeout_s, app)
    past = place.past_calls()
    return ask_for_shard(control, shard, place.timeout_s, place.where, app, past, place.check)
