"""What `cluster status` shows: asked of the gateway, else what the supervisor left on record."""

from cluster.shared.messages import StatusReply, StatusRequest
from cluster.shared.node_status import GatewayStatus, NodeStatus
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.gateway_question import ask_gateway
from cluster.supervisor.node_record import read_node_record

__all__ = ["ANSWER_TIMEOUT_S", "read_status"]

ANSWER_TIMEOUT_S = 2.0
"""A gateway answers between two batches of completions, within milliseconds if it works."""


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
        reply = ask_gateway(run_directory, StatusRequest(), StatusReply, timeout_s)
        if reply is not None:
            return reply.status
    supervisor_pid = run_directory.holder("supervisor")
    gateway_pid = run_directory.holder("gateway")
    if supervisor_pid is None and gateway_pid is None:
        return None
    record = read_node_record(run_directory) if supervisor_pid is not None else None
    if record is None and not run_directory.has_config:
        return None  # its first process has only begun to start
    return record or _bare_status(run_directory, gateway_pid)


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
