"""`[limits]`: what is on by default, what may be off, and what two keys promise each other."""

from pathlib import Path

import msgspec
import pytest

from cluster.shared.config import Config, LimitsConfig, decode_config, encode_config
from tests.shared.test_config import error_of, load

KEYS = msgspec.structs.asdict(LimitsConfig())
TIMEOUTS = [key for key in KEYS if key.endswith("timeout_s")]
AMOUNTS = [key for key in KEYS if key not in TIMEOUTS]


def test_only_the_time_of_a_packet_is_limited_by_default() -> None:
    assert {key for key, value in KEYS.items() if value} == {"packet_timeout_s"}
    assert KEYS["packet_timeout_s"] == 30
    assert Config().limits == LimitsConfig()


@pytest.mark.parametrize("key", TIMEOUTS)
@pytest.mark.parametrize("value", ["0", "0.0", "0.3", "86400"])
def test_a_timeout_may_be_off(tmp_path: Path, key: str, value: str) -> None:
    config = load(tmp_path, f"[limits]\n{key} = {value}")
    assert getattr(config.limits, key) == float(value)
    assert decode_config(encode_config(config)) == config


@pytest.mark.parametrize("key", TIMEOUTS)
@pytest.mark.parametrize("value", ["-1", "86401", "nan", "inf", "true", '"5"'])
def test_a_timeout_that_cannot_be_is_told_with_the_range(
    tmp_path: Path, key: str, value: str
) -> None:
    message = error_of(tmp_path, f"[limits]\n{key} = {value}")
    assert f"limits.{key} = " in message
    assert message.endswith("expected a number of seconds from 0 to 86400")


@pytest.mark.parametrize("key", AMOUNTS)
@pytest.mark.parametrize("value", ["-1", "1000000001", "1.5", "true"])
def test_an_amount_that_cannot_be_is_told_with_the_range(
    tmp_path: Path, key: str, value: str
) -> None:
    message = error_of(tmp_path, f"[limits]\n{key} = {value}")
    assert message.endswith(f"limits.{key} = {value}: expected an integer from 0 to 1000000000")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("packets_burst = 5", "packets_burst = 5: expected limits.packets_per_s above 0 beside it"),
        ("bytes_burst = 99999", "expected limits.bytes_per_s above 0 beside it"),
        ("accepts_burst = 5", "expected limits.accepts_per_s above 0 beside it"),
        (
            "accepts_per_address_burst = 5",
            "expected limits.accepts_per_address_per_s above 0 beside it",
        ),
        (
            "bytes_per_s = 9\nbytes_burst = 65534",
            "bytes_burst = 65534: expected at least one packet of gateway.max_packet_bytes = 65535",
        ),
        (
            "send_blocked_bytes = 1048577",
            "expected at most gateway.send_queue_bytes_max = 1048576",
        ),
        ("send_ready_bytes = 524288", "expected less than limits.send_blocked_bytes = 524288"),
        (
            "send_blocked_bytes = 9\nsend_ready_bytes = 9",
            "send_ready_bytes = 9: expected less than limits.send_blocked_bytes = 9",
        ),
    ],
)
def test_two_keys_that_do_not_fit_are_told(tmp_path: Path, text: str, error: str) -> None:
    assert error in error_of(tmp_path, f"[limits]\n{text}")


def test_keys_that_fit_are_taken(tmp_path: Path) -> None:
    text = "bytes_per_s = 9\nbytes_burst = 65535\npackets_per_s = 1\npackets_burst = 1\n"
    text += "send_blocked_bytes = 1048576\nsend_ready_bytes = 1048575"
    assert load(tmp_path, f"[limits]\n{text}").limits.bytes_burst == 65_535
