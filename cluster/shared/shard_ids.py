"""The names of nodes and shards in the whole cluster."""

from typing import NamedTuple

__all__ = ["NODE_ID_MAX", "SHARDS_MAX", "ShardId"]

NODE_ID_MAX = 65_535
"""Ids of nodes are 16 bits of every session id."""

SHARDS_MAX = 256
"""Shards of one node."""


class ShardId(NamedTuple):
    """One shard: the id of its node, and its index there, from 0."""

    node: int
    shard: int

    def __str__(self) -> str:
        return f"shard {self.shard} of node {self.node}"
