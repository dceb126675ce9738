"""Runs a gateway in this process: lock, limits, signals, exit code."""

import errno
import logging
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import msgspec
import zmq

from cluster.gateway.descriptors import cap_sessions
from cluster.gateway.gateway import Gateway
from cluster.gateway.links.secret import read_secret
from cluster.gateway.listen_error import ListenError, check_listens
from cluster.gateway.membership.cluster_members import IdentityLostError
from cluster.gateway.membership.etcd_store import StoreMissingError
from cluster.gateway.membership.join import JoinError, join_cluster
from cluster.gateway.membership.membership import Membership
from cluster.gateway.remote.door import RemoteKeys
from cluster.iocp import DriverUnavailableError, IocpCore, choose_driver
from cluster.shared.collector import set_imports_aside
from cluster.shared.config import Config
from cluster.shared.cpu_latency import CpuLatencyError, cpu_latency
from cluster.shared.cpus import keep_to
from cluster.shared.descriptor_limit import REMEDY, TooFewDescriptorsError
from cluster.shared.exit_codes import CANNOT_START
from cluster.shared.key_files import KeyFileError, KnownWorkers, read_gateway_keys
from cluster.shared.lane_choice import LaneUnavailableError, choose_lane
from cluster.shared.private_files import PrivateFileError
from cluster.shared.run_directory import GATEWAY_GONE_WAIT_S, RunDirectory, RunDirectoryError
from cluster.shared.signal_handling import handle_signal
from cluster.shared.standard_streams import tell
from cluster.shared.stop_requests import StopRequests

__all__ = ["run_gateway"]

logger = logging.getLogger("cluster.gateway")

EXIT_IDENTITY_LOST = 1
"""The supervisor begins another epoch, which is another node."""

EXIT_EPOCH_OVER = 1
"""It has drained, but nobody had asked for that: another epoch is to begin."""


def run_gateway(directory: RunDirectory, config: Config) -> int:
    """Serve until drained; return the exit code of the process.

    0 after a drain, also one whose time was up before all was done; 1 when the next epoch is to
    begin, because this one has used up its session ids or its id belongs to another node now; 2
    with one line on stderr when something that was configured cannot be had. SIGTERM and SIGINT
    drain, a second one stops at once. Main thread only.
    """
    try:
        directory.create()
        with directory.lock("gateway", wait_s=GATEWAY_GONE_WAIT_S):
            keep_to("gateway.cpus", config.gateway.cpus)
            config, told = cap_sessions(config)
            if told is not None:
                logger.warning("%s", told)
            return _serve(directory, config)
    except (RunDirectoryError, TooFewDescriptorsError) as error:
        return _refuse(str(error))


def _serve(directory: RunDirectory, config: Config) -> int:
    try:
        secret = _read_secret(config)
        remote_keys = _read_remote_keys(config)
    except (PrivateFileError, KeyFileError) as error:
        return _refuse(str(error))
    with ExitStack() as stack:
        try:
            core = IocpCore(driver=choose_driver(config.gateway.driver))
        except DriverUnavailableError as error:
            return _refuse(f"gateway.driver: {error}")
        except OSError as error:
            return _refuse(f"gateway.driver: it cannot be had: {_describe(error)}")
        stack.callback(core.close)
        try:
            stack.enter_context(cpu_latency(config.gateway.cpu_latency_us))
        except CpuLatencyError as error:
            return _refuse(f"gateway.cpu_latency_us = {config.gateway.cpu_latency_us}: {error}")
        return _serve_on(core, directory, config, secret, remote_keys)


def _serve_on(
    core: IocpCore,
    directory: RunDirectory,
    config: Config,
    secret: bytes | None,
    remote_keys: RemoteKeys | None,
) -> int:
    try:
        check_listens(config)  # before workers can connect, which would only see that it ends
        lane = choose_lane(config.lane.kind)
    except ListenError as error:
        return _refuse(str(error))
    except LaneUnavailableError as error:
        return _refuse(f"lane.kind: {error}")
    config = msgspec.structs.replace(config, lane=msgspec.structs.replace(config.lane, kind=lane))
    directory.sockets.remove_stale()
    epoch = directory.next_epoch()
    membership: Membership | None = None
    if config.links.membership == "etcd":
        try:
            membership = join_cluster(config, directory, core, epoch)
        except (JoinError, StoreMissingError, PrivateFileError) as error:
            return _refuse(str(error))
        node, epoch = msgspec.structs.replace(config.node, id=membership.node), membership.epoch
        config = msgspec.structs.replace(config, node=node)
        logger.info("node %d of cluster %r, epoch %d", node.id, config.links.cluster, epoch)
    try:
        with ExitStack() as undo:
            if membership is not None:
                undo.callback(membership.close)  # nobody else has the id as long as the lease lasts
            gateway = Gateway(config, directory, core, epoch, secret, membership, remote_keys)
            undo.pop_all()
    except ListenError as error:
        return _refuse(str(error))
    except zmq.ZMQError as error:
        return _refuse(f"cannot bind {directory.sockets.control_endpoint()}: {error}")
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return _refuse(f"lane.kind: {lane!r} cannot be had: {_describe(error)}")
        return _refuse(
            f"cannot reserve memory for {config.workers.count} lanes of 2 x {config.lane.bytes} "
            f"bytes, or their socket: {error.strerror}; lower lane.bytes or workers.count, or "
            "choose lane.kind 'zmq'"
        )
    try:
        gateway.start()
        _drain_on_signals(gateway)
        set_imports_aside()
        gateway.serve()
    except ListenError as error:
        return _refuse(str(error))
    except IdentityLostError as error:
        logger.error("this node has lost its id, and ends: %s", error)
        return EXIT_IDENTITY_LOST
    finally:
        gateway.close()
    logger.info("drained")
    return EXIT_EPOCH_OVER if gateway.has_used_up_ids else 0


def _read_secret(config: Config) -> bytes | None:
    """Return the secret of the cluster, or None for a node that stands alone; PrivateFileError."""
    if config.links.listen is None:
        return None
    assert config.links.secret_file is not None, "the configuration was checked"
    return read_secret(Path(config.links.secret_file))


def _read_remote_keys(config: Config) -> RemoteKeys | None:
    """Return the keys for workers on other machines, None where there are none; KeyFileError."""
    if config.remote.listen is None:
        return None
    assert config.remote.keys_dir is not None, "the configuration was checked"
    directory = Path(config.remote.keys_dir)
    return RemoteKeys(read_gateway_keys(directory), KnownWorkers(directory))


class _SignalHandler:
    """The first signal asks for a drain; a second request ends the process."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._requests = StopRequests()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._requests.add(time.monotonic()):
            return
        if self._requests.count > 1:
            raise SystemExit(128 + number)
        self._gateway.request_drain()


def _drain_on_signals(gateway: Gateway) -> None:
    handler = _SignalHandler(gateway)
    for number in (signal.SIGTERM, signal.SIGINT):
        handle_signal(number, handler)


def _describe(error: OSError) -> str:
    return f"{error.strerror}; {REMEDY}" if error.errno == errno.EMFILE else str(error.strerror)


def _refuse(reason: str) -> int:
    tell(f"cluster gateway: {reason}\n")
    return CANNOT_START
