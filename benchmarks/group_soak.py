"""300 clients in 30 groups on three nodes talk, while links are cut and workers killed.

Each speaks again half a second after it has heard itself, by turns to its group and through the
shard that owns the group; each must hear everything of its group, once, and in order for each
speaker. Links are reset by relays between the nodes, workers killed by SIGKILL, both at random
instants. Then a whole node is killed with records on the way to it: its clients go elsewhere, it is
started again, and what it had not settled must be told, down to who said it.
Ends with 1, and says who heard what, if anything was lost, repeated or out of order.
"""

import argparse
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.system.cluster_node import ClusterNode
from tests.system.crowd import Crowd
from tests.system.relayed_nodes import relayed_nodes

NODES = 3


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speakers", type=int, default=300)
    parser.add_argument("--rooms", type=int, default=30)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2, help="of each node")
    parser.add_argument("--pause", type=float, default=0.5, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    sys.stdout.write(f"--seed {options.seed}\n")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="iocp-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        processes = stack.enter_context(ExitStack())

        def start(*arguments: str, **how: Any) -> ClusterNode:
            folder = Path(tempfile.mkdtemp(dir=directory))
            node = ClusterNode(folder, arguments, **how)
            processes.callback(node.close)
            return node

        nodes = stack.enter_context(
            relayed_nodes(
                start, directory, NODES, workers=options.workers, spares=1, seed=options.seed
            )
        )
        crowd = Crowd(nodes.ports, options.speakers, options.rooms, options.pause)
        stack.callback(crowd.close)
        try:
            nodes.live_through(crowd, options.cuts, options.kills, random.Random(options.seed))
            crowd.fall_silent()
            nodes.lose_and_restart(NODES, crowd)
            crowd.fall_silent()
        except AssertionError as wrong:
            raise SystemExit(str(wrong)) from None
        told = [nodes.count(node, "links_undelivered") for node in range(1, NODES)]
    said = sum(sum(speaker.said.values()) for speaker in crowd.speakers.values())
    sys.stdout.write(
        f"{options.speakers} clients in {options.rooms} groups on {NODES} nodes, {options.cuts} "
        f"cuts, {options.kills} kills, one node lost: {said:,} said, {crowd.heard_count:,} heard, "
        f"each once and in order; records undelivered: {told}; notes told to be lost: "
        f"{crowd.lost_count}; "
        f"{time.monotonic() - began:.0f} s\n"
    )


if __name__ == "__main__":
    main()
