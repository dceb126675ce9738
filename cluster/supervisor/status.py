"""What `cluster status` shows: asked of the gateway, else what the supervisor left on record."""

import time

import zmq

from cluster.shared.descriptor_limit import check_descriptors
from cluster.shared.endpoints import Endpoint, choose_endpoints
from cluster.shared.messages import StatusReply, StatusRequest, decode_message, encode_message
from cluster.shared.node_status import GatewayStatus, NodeStatus
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.node_record import read_node_record

__all__ = ["ANSWER_TIMEOUT_S", "read_status"]

ANSWER_TIMEOUT_S = 2.0
"""A gateway answers between two batches of completions, within milliseconds if it works."""

_RECONNECT_MS = 20

DESCRIPTORS = 24
"""Open files of a process that only asks: 11."""


def read_status(
    run_directory: RunDirectory, timeout_s: float = ANSWER_TIMEOUT_S
) -> NodeStatus | None:
    """Return the status of the node in `run_directory`, None when nothing runs there yet.

    The gateway is asked, and given `timeout_s` seconds. If it does not answer but the node has a
    supervisor, the status is what that one knows, with the counters empty. Raises
    RunDirectoryError when the directory is there and cannot be used, TooFewDescriptorsError when
    this process may open too few files to ask, ProtocolVersionError when the node is of another
    version.
    """
    if not run_directory.exists():
        return None
    if run_directory.holder("gateway") is not None:
        endpoint = choose_endpoints(run_directory).find_control()
        status = None if endpoint is None else _ask_gateway(endpoint, timeout_s)
        if status is not None:
            return status
    supervisor_pid = run_directory.holder("supervisor")
    gateway_pid = run_directory.holder("gateway")
    if supervisor_pid is None and gateway_pid is None:
        return None
    record = read_node_record(run_directory) if supervisor_pid is not None else None
    if record is None and not run_directory.has_config:
        return None  # its first process has only begun to start
    return record or _bare_status(run_directory, gateway_pid)


def _ask_gateway(endpoint: Endpoint, timeout_s: float) -> NodeStatus | None:
    deadline = time.monotonic() + timeout_s
    check_descriptors("a look at the status", DESCRIPTORS)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        if endpoint.curve is not None:
            endpoint.curve.apply(socket)
        socket.connect(endpoint.address)
        socket.send(encode_message(StatusRequest()))
        while (left_s := deadline - time.monotonic()) > 0:
            if not socket.poll(int(left_s * 1_000) + 1):
                break
            message = decode_message(socket.recv())
            if isinstance(message, StatusReply):
                return message.status
    return None


def _bare_status(run_directory: RunDirectory, gateway_pid: int | None) -> NodeStatus:
    """Return what the configuration tells of a node that has left no record yet."""
    config = run_directory.read_config()
    return NodeStatus(
        node=config.node.id,
        epoch=0,
        gateway=GatewayStatus(pid=gateway_pid, driver=config.gateway.driver, sessions=0),
        workers=[],
        spares=[],
        links=[],
        counters={},
    )
