"""What becomes of the nodes of `cluster up --nodes N`; their processes have a system test."""

import signal

import msgspec
import pytest

from cluster.shared.config import Config
from cluster.shared.node_status import LinkState, LinkStatus
from cluster.supervisor.fleet import exit_code_of, has_all_links
from cluster.supervisor.node_record import make_node_record


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([0, 3, 2], 3),
        ([-signal.SIGTERM, 0], 0),  # asked to end before it could hear
        ([-signal.SIGTERM, 2], 2),
        ([0, -9], 137),
        ([None, 2], 2),
    ],
)
def test_the_first_failure_is_the_exit_code(codes: list[int | None], expected: int):
    assert exit_code_of(codes) == expected


def link(node: int, state: LinkState) -> LinkStatus:
    return LinkStatus(
        node=node,
        address="127.0.0.1:1",
        state=state,
        waiting_records=0,
        waiting_bytes=0,
        failures=0,
        reason="",
    )


def test_a_node_whose_gateway_does_not_answer_has_no_links_yet():
    known = make_node_record(Config(), None, None, [], [])
    assert not has_all_links(None, 1)
    assert not has_all_links(known, 1)
    assert has_all_links(known, 0)
    standing = msgspec.structs.replace(known, links=[link(2, "linked")])
    assert has_all_links(standing, 1)
    assert not has_all_links(standing, 2)
    called = msgspec.structs.replace(known, links=[link(2, "linked"), link(3, "awaited")])
    assert not has_all_links(called, 2)
