"""The name of a shard in the whole cluster."""

from typing import NamedTuple

__all__ = ["SHARDS_MAX", "ShardId"]

SHARDS_MAX = 256
"""Shards of one node."""


class ShardId(NamedTuple):
    """One shard: the id of its node, and its index there, from 0."""

    node: int
    shard: int

    def __str__(self) -> str:
        return f"shard {self.shard} of node {self.node}"
