"""What the supervisor knows of its node, left in the run directory for `cluster status`.

It is read when the gateway cannot be asked: while it starts, restarts, or hangs.
"""

from collections.abc import Iterable

from cluster.shared.config import Config
from cluster.shared.messages import GatewayReady
from cluster.shared.node_status import GatewayStatus, NodeStatus, SpareStatus
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.shard import ShardPlace
from cluster.supervisor.spare import Spare

__all__ = ["make_node_record", "read_node_record", "write_node_record"]

_FILE = "supervisor.json"


def make_node_record(
    config: Config,
    gateway_pid: int | None,
    last_ready: GatewayReady | None,
    shards: Iterable[ShardPlace],
    spares: Iterable[Spare],
) -> NodeStatus:
    """Return the status of the node as far as the supervisor knows it.

    Driver and lane are those of the gateway that was ready last, before that the configured ones.
    """
    driver = last_ready.driver if last_ready else config.gateway.driver
    lane = last_ready.lane if last_ready else config.lane.kind
    return NodeStatus(
        node=last_ready.node if last_ready else config.node.id,
        epoch=last_ready.epoch if last_ready else 0,
        gateway=GatewayStatus(pid=gateway_pid, driver=driver, sessions=0),
        workers=[shard.status(lane) for shard in shards],
        spares=[
            SpareStatus(pid=spare.child.pid)
            for spare in spares
            if spare.child is not None and spare.is_ready
        ],
        links=[],
        counters={},
    )


def write_node_record(run_directory: RunDirectory, record: NodeStatus) -> None:
    """Replace the record; raises RunDirectoryError."""
    run_directory.write_json(_FILE, record)


def read_node_record(run_directory: RunDirectory) -> NodeStatus | None:
    """Return the last record, None when there is none; raises RunDirectoryError."""
    return run_directory.read_json(_FILE, NodeStatus)
