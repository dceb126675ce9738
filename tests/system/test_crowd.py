"""Groups over three nodes under cuts of links and kills of workers: everyone hears everything.

The long form is `python -m benchmarks.group_soak`.
"""

import random
from pathlib import Path

from tests.system.conftest import StartNode
from tests.system.crowd import Crowd
from tests.system.relayed_nodes import relayed_nodes


def test_all_members_hear_all_once_and_in_order_through_cuts_and_kills(
    cluster_up_unready: StartNode, tmp_path: Path
) -> None:
    with relayed_nodes(cluster_up_unready, tmp_path, 3) as nodes:
        crowd = Crowd(nodes.ports, speakers=30, rooms=5, pause_s=0.05)
        try:
            nodes.live_through(crowd, 5, 2, random.Random(1))
            crowd.fall_silent()
            assert crowd.heard_count > 30 * 6
            assert sum(relay.cuts for relay in nodes.relays.values()) == 5
            nodes.lose_and_restart(3, crowd)
            crowd.fall_silent()
        finally:
            crowd.close()
