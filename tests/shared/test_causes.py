"""The causes are part of the interface: their strings and their order stay as they are."""

import re
from pathlib import Path

from cluster.shared.causes import Cause

STRINGS = (
    "eof reset refused timeout cancelled os_error bad_size bad_consume send_overflow send_stalled "
    "handler_error decode_error poison local kicked replaced idle_timeout packet_timeout "
    "auth_timeout rate_limited drain node_lost"
)


def test_the_causes_are_those_of_the_interface_in_its_order() -> None:
    assert [str(cause) for cause in Cause] == STRINGS.split()


def test_a_cause_is_its_string_on_the_wire_and_in_logs() -> None:
    assert Cause.BAD_SIZE == "bad_size"
    assert f"{Cause.BAD_SIZE}" == "bad_size"
    assert isinstance(Cause.BAD_SIZE, str)


def test_something_in_the_cluster_gives_each_of_them() -> None:
    package = Path(__file__).parents[2] / "cluster"
    given = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(r"\bCause\.([A-Z_]+)\b", path.read_text("utf-8"))
    }
    assert given == set(Cause.__members__)


def test_a_name_is_its_string_in_capitals() -> None:
    assert all(cause.name.lower() == cause.value for cause in Cause)
