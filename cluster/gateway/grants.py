"""What a worker is told when it gets a shard, and who may not have it whatever becomes of others.

A grant is all that a successor knows: where the log goes on, everything that is replayed as of the
commit, and what its predecessors died of. It holds for one incarnation, whose number and name in
the lane no other one of this gateway has.
"""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.quarantine import Quarantine
from cluster.gateway.remote.remote_control import RemotePeer
from cluster.gateway.remote.remote_shards import RemoteShards
from cluster.gateway.shard import Shard
from cluster.shared.lane import Commit
from cluster.shared.messages import Grant, Hello, LaneOffer
from cluster.shared.takeover import ReplayedSession

__all__ = ["Grants", "NodeIdentity"]


class NodeIdentity(NamedTuple):
    """What every grant tells of this life of the gateway."""

    life: GatewayLife
    max_packet_bytes: int
    max_batch_bytes: int
    worker_timeout_s: float


class Grants:
    """Those of one gateway. For the dispatching thread."""

    def __init__(
        self,
        identity: NodeIdentity,
        shards: Sequence[Shard],
        lane_endpoint: str,
        quarantine: Quarantine | None = None,
        remote: RemoteShards = RemoteShards(),  # noqa: B008  # which cannot be changed
    ) -> None:
        """Grant `shards`, with lanes at `lane_endpoint`; those that are `remote` at theirs.

        Without a `quarantine` workers note nothing, and nothing is ever set aside.
        """
        self.identity = identity
        self.shards = shards
        self._lane_endpoint = lane_endpoint
        self.quarantine = quarantine
        self._remote = remote
        self._incarnation = 0

    def is_remote(self, shard_index: int) -> bool:
        """Whether the shard is for workers on other machines."""
        return shard_index in self._remote.indices

    def refusal(self, hello: Hello, peer: RemotePeer | None) -> str | None:
        """Return why a process cannot have the shard that it asks for, or None if it can.

        `peer` is who asks from another machine.
        """
        if not 0 <= hello.shard < len(self.shards):
            return (
                f"shard {hello.shard} does not exist; this node has shards 0 to "
                f"{len(self.shards) - 1} (workers.count)"
            )
        if self.is_remote(hello.shard) and peer is None:
            return (
                f"shard {hello.shard} is for a worker on another machine (remote.shards), which "
                "connects with --gateway and --keys"
            )
        if peer is not None and not self.is_remote(hello.shard):
            remote = ", ".join(map(str, sorted(self._remote.indices)))
            return (
                f"shard {hello.shard} is served on the gateway's machine; those for workers on "
                f"others are {remote} (remote.shards)"
            )
        return None

    def next_incarnation(self, shard: Shard) -> tuple[int, bytes]:
        """Return the number of a new incarnation, and its name in the lane."""
        self._incarnation += 1
        identity = f"{self.identity.life.epoch}.{shard.index}.{self._incarnation}".encode()
        if self.is_remote(shard.index):
            # Not to be guessed by a machine that is to have another shard.
            identity += b"." + secrets.token_hex(8).encode()
        return self._incarnation, identity

    def make(
        self,
        shard: Shard,
        incarnation: int,
        lane_identity: bytes,
        commit: Commit,
        sessions: list[ReplayedSession],
    ) -> Grant:
        """Return the grant of an incarnation that goes on with `sessions` at `commit`, and begin
        its note."""
        identity, quarantine = self.identity, self.quarantine
        is_remote = self.is_remote(shard.index)
        keys = shard.keys.replay()
        return Grant(
            node=identity.life.node,
            nonce=identity.life.nonce,
            shard=shard.index,
            incarnation=incarnation,
            lane=LaneOffer(
                kind=shard.lane.kind,
                endpoint=self._remote.lane_endpoint if is_remote else self._lane_endpoint,
                identity=lane_identity,
                capacity_bytes=shard.lane.log.capacity_bytes,
                max_batch_bytes=identity.max_batch_bytes,
            ),
            position=commit.position,
            index=commit.packet_index,
            sessions=sessions,
            deferred=shard.succession.deferred.replay(),
            redelivered_through=shard.log.sent_before,
            max_packet_bytes=identity.max_packet_bytes,
            worker_timeout_s=identity.worker_timeout_s,
            note=(
                quarantine.begin_life(shard, incarnation, has_note=not is_remote)
                if quarantine is not None
                else None
            ),
            suspects=quarantine.suspects(shard, commit) if quarantine is not None else [],
            nodes=list(keys.nodes),
            key_owners=list(keys.owners),
            shard_count=len(self.shards),
            tell_window_bytes=shard.tells.windows.window_bytes,
            tells=shard.tells.replay(),
            saved=shard.succession.saves.replay(),
            saved_bytes_max=shard.succession.saves.max_bytes,
        )
