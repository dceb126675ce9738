"""Configuration: flag beats file beats default, and every error says all that its reader needs."""

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.shared import config_rules
from cluster.shared.addresses import parse_listen, parse_node
from cluster.shared.config import (
    MIB,
    Config,
    ConfigError,
    GatewayConfig,
    LaneConfig,
    LinksConfig,
    NodeConfig,
    RemoteConfig,
    SupervisorConfig,
    WorkersConfig,
    decode_config,
    encode_config,
)
from cluster.shared.config_file import FILE_BYTES_MAX, load_config

KEYS = {
    section: tuple(msgspec.structs.asdict(struct))
    for section, struct in msgspec.structs.asdict(Config()).items()
}


def load(tmp_path: Path, text: str | bytes, flags: Mapping[str, object] | None = None) -> Config:
    path = tmp_path / "cluster.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path, flags or {})


def error_of(tmp_path: Path, text: str | bytes, flags: Mapping[str, object] | None = None) -> str:
    """Return the message of the error, after checking what holds for all of them."""
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text, flags)
    message = str(raised.value)
    assert message.isprintable(), "one line, harmless to a terminal"
    return message


# What is there by default


def test_without_file_and_flags_everything_has_its_documented_default() -> None:
    assert load_config(None, {}) == Config(
        node=NodeConfig(id=1, listen="127.0.0.1:7777", app=None, run_dir=None),
        gateway=GatewayConfig(
            driver="auto",
            max_sessions=16_000,
            accepts_outstanding_max=128,
            max_packet_bytes=65_535,
            send_queue_bytes_max=MIB,
            send_stall_timeout_s=30,
            close_timeout_s=5,
            routing="fewest_sessions",
        ),
        workers=WorkersConfig(count=2, spares=1, worker_timeout_s=10, max_redeliveries=3),
        lane=LaneConfig(kind="auto", bytes=4 * MIB, max_batch_bytes=16 * MIB),
        supervisor=SupervisorConfig(drain_timeout_s=10),
    )


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Config()


def test_the_file_beats_the_default(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [node]
        id = 7
        listen = "[::1]:9000"
        app = "shop.main:app"
        run_dir = "/run/shop"
        [gateway]
        driver = "readiness"
        close_timeout_s = 2
        [lane]
        kind = "zmq"
        """,
    )
    assert config.node == NodeConfig(
        id=7, listen="[::1]:9000", app="shop.main:app", run_dir="/run/shop"
    )
    assert config.gateway == GatewayConfig(driver="readiness", close_timeout_s=2.0)
    assert isinstance(config.gateway.close_timeout_s, float)
    assert config.lane.kind == "zmq"
    assert config.workers == WorkersConfig()


def test_a_flag_beats_the_file(tmp_path: Path) -> None:
    flags = {"node.listen": "0.0.0.0:1", "workers.count": 5, "node.app": None}
    config = load(tmp_path, '[node]\nlisten = "[::]:2"\napp = "a:b"\n[workers]\nspares = 0', flags)
    assert config.node == NodeConfig(listen="0.0.0.0:1", app="a:b")
    assert config.workers == WorkersConfig(count=5, spares=0)


def test_a_flag_may_be_an_enum_of_strings() -> None:
    class Lane(StrEnum):
        SHM = "shm"

    class Driver(Enum):
        READINESS = "readiness"

    config = load_config(None, {"lane.kind": Lane.SHM, "gateway.driver": Driver.READINESS})
    assert (config.lane.kind, config.gateway.driver) == ("shm", "readiness")


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbf[node]\nid = 3\n").node.id == 3


# Errors of the file itself


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read \(No such file") as error:
        load_config(path, {})
    assert "--config takes a readable TOML file" in str(error.value)


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path, {})
    assert str(error.value).startswith(f"{tmp_path}: cannot be read (")


def test_a_file_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    path = tmp_path / "cluster.toml"
    path.write_text("")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"cluster\.toml: cannot be read \(Permission denied\)"):
        load_config(path, {})


def test_a_path_that_no_file_can_have_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"a\\x00b: cannot be read"):
        load_config(Path("a\0b"), {})


def test_a_file_that_is_not_utf8_is_told_with_byte_and_offset(tmp_path: Path) -> None:
    message = error_of(tmp_path, b'[node]\napp = "\xff"\n')
    assert "cluster.toml: not UTF-8 (byte 0xff at offset 14)" in message


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    assert f"more than {FILE_BYTES_MAX} bytes" in error_of(tmp_path, b"#" * (FILE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[node]\nid = \n", "line 2, column 6"),
        ("[node]\n[node]\n", "line 2, column 6"),
        ("[node]\nid = 1\nid = 2\n", "line 3"),
        ('[node]\nlisten = """', "line 2, column 13"),
        (
            '[node]\nlisten = "a"b\nid = 1',
            "end of document after a statement (at line 2, column 13)",
        ),
    ],
)
def test_invalid_toml_is_told_with_line_and_column(tmp_path: Path, text: str, where: str) -> None:
    message = error_of(tmp_path, text)
    assert "cluster.toml: not TOML: " in message
    assert where in message


@pytest.mark.parametrize("text", ["a = " + "[" * 50_000, "a = " + "9" * 5_000])
def test_toml_that_the_parser_cannot_stand_is_still_a_config_error(
    tmp_path: Path, text: str
) -> None:
    assert "cluster.toml: not usable as TOML" in error_of(tmp_path, text)


# Errors of sections and keys


def test_an_unknown_section_is_told_with_the_known_ones(tmp_path: Path) -> None:
    assert error_of(tmp_path, "[gatway]\nmax_sessions = 5").endswith(
        "cluster.toml: gatway = {max_sessions = 5}: expected one of the sections "
        "node, gateway, workers, lane, supervisor, links, remote, limits; did you mean gateway?"
    )


def test_an_unknown_key_is_told_with_the_known_ones(tmp_path: Path) -> None:
    assert error_of(tmp_path, "[workers]\ncuont = 3").endswith(
        "cluster.toml: workers.cuont = 3: expected one of the keys of [workers]: "
        "count, spares, worker_timeout_s, max_redeliveries, saved_bytes_max, cpus; "
        "did you mean count?"
    )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[limits]\nidle = 5", "; did you mean idle_timeout_s?"),
        ("count = 3", "limits; count is a key of [workers]"),
    ],
)
def test_a_key_that_is_begun_or_in_no_section_is_told_with_what_was_meant(
    tmp_path: Path, text: str, hint: str
) -> None:
    assert error_of(tmp_path, text).endswith(hint)


def test_a_name_like_no_other_gets_no_suggestion(tmp_path: Path) -> None:
    assert "did you mean" not in error_of(tmp_path, "[node]\nzzzzzz = 1")


@pytest.mark.parametrize("text", ["gateway = 5", "[[gateway]]\nmax_sessions = 5"])
def test_a_section_that_is_a_value_is_refused(tmp_path: Path, text: str) -> None:
    message = error_of(tmp_path, text)
    assert "cluster.toml: gateway = " in message
    assert message.endswith("expected a section, written [gateway]")


def test_an_unknown_flag_is_an_error_too() -> None:
    with pytest.raises(ConfigError, match=r"^--lissten: node\.lissten = 1: .* mean listen\?$"):
        load_config(None, {"node.lissten": 1})
    with pytest.raises(ConfigError, match=r"^--x: nodes\.x = 1: expected one of the sections"):
        load_config(None, {"nodes.x": 1})


# Errors of values

INTEGERS = {
    "node.id": (0, 65_535),
    "gateway.max_sessions": (1, 1_000_000),
    "gateway.accepts_outstanding_max": (1, 4_096),
    "gateway.max_packet_bytes": (4, 65_535),
    "gateway.send_queue_bytes_max": (4, 1 << 30),
    "workers.count": (1, 256),
    "workers.spares": (0, 64),
    "workers.max_redeliveries": (1, 1_000),
    "workers.saved_bytes_max": (0, 256 << 20),
    "lane.bytes": (4_096, 1 << 30),
    "lane.max_batch_bytes": (131_072, 1 << 30),
}
TIMEOUTS = (
    "gateway.send_stall_timeout_s",
    "gateway.close_timeout_s",
    "supervisor.drain_timeout_s",
)
NOT_INTEGERS = ("true", "1.0", '"1"', "[1]", "{}", "1979-05-27", "nan")
NOT_TIMEOUTS = ("0", "-1", "86400.5", "inf", "nan", "true", '"5"', "07:32:00", "9" * 400)


def assignment(key: str, value: str) -> str:
    section, _, field = key.partition(".")
    return f"[{section}]\n{field} = {value}\n"


@pytest.mark.parametrize("key", INTEGERS)
def test_an_integer_outside_its_range_is_told_with_the_range(tmp_path: Path, key: str) -> None:
    low, high = INTEGERS[key]
    for value in (low - 1, high + 1, -high, 2**63 - 1):
        assert error_of(tmp_path, assignment(key, str(value))).endswith(
            f"cluster.toml: {key} = {value}: expected an integer from {low} to {high}"
        )


@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize("value", NOT_INTEGERS)
def test_what_is_no_integer_is_refused(tmp_path: Path, key: str, value: str) -> None:
    low, high = INTEGERS[key]
    assert error_of(tmp_path, assignment(key, value)).endswith(
        f"cluster.toml: {key} = {value}: expected an integer from {low} to {high}"
    )


@pytest.mark.parametrize("key", INTEGERS)
def test_both_ends_of_the_range_are_allowed(tmp_path: Path, key: str) -> None:
    small_packets = {"gateway.max_packet_bytes": 4}
    for value in INTEGERS[key]:
        if (key, value) != ("node.id", 0):  # which needs links
            config = load_config(None, small_packets | {key: value})
            assert value_of(config, key) == value


@pytest.mark.parametrize("key", TIMEOUTS)
@pytest.mark.parametrize("value", NOT_TIMEOUTS)
def test_what_is_no_timeout_is_refused(tmp_path: Path, key: str, value: str) -> None:
    message = error_of(tmp_path, assignment(key, value))
    assert f"cluster.toml: {key} = " in message
    assert message.endswith("expected a number of seconds above 0 and at most 86400")


@pytest.mark.parametrize("key", TIMEOUTS)
@pytest.mark.parametrize("value", ["0.001", "5", "86400"])
def test_a_timeout_may_be_any_number_of_seconds_up_to_a_day(
    tmp_path: Path, key: str, value: str
) -> None:
    assert value_of(load(tmp_path, assignment(key, value)), key) == float(value)


@pytest.mark.parametrize("key", ["workers.worker_timeout_s", "links.timeout_s"])
@pytest.mark.parametrize("value", ["0.001", "0.09", *NOT_TIMEOUTS])
def test_a_time_in_which_nobody_can_show_a_sign_of_life_is_refused(
    tmp_path: Path, key: str, value: str
) -> None:
    message = error_of(tmp_path, assignment(key, value))
    assert f"cluster.toml: {key} = " in message
    assert message.endswith("expected a number of seconds from 0.1 to 86400")
    for allowed in ("0.1", "86400"):
        assert value_of(load(tmp_path, assignment(key, allowed)), key) == float(allowed)


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("gateway.driver", "auto, io_uring, iocp, readiness"),
        ("gateway.routing", "fewest_sessions, round_robin"),
        ("lane.kind", "auto, shm, zmq"),
    ],
)
@pytest.mark.parametrize("value", ['"epoll"', '""', "1", '["auto"]'])
def test_a_choice_is_told_with_the_choices(
    tmp_path: Path, key: str, allowed: str, value: str
) -> None:
    assert error_of(tmp_path, assignment(key, value)).endswith(
        f"cluster.toml: {key} = {value}: expected one of {allowed}"
    )


@pytest.mark.parametrize("key", ["node.listen", "node.app", "node.run_dir"])
def test_a_string_must_be_a_string(tmp_path: Path, key: str) -> None:
    assert error_of(tmp_path, assignment(key, "5")).endswith(
        f"cluster.toml: {key} = 5: expected a string"
    )


BAD_ADDRESSES = (
    "", ":", "7777", "localhost", "localhost:", ":7777", "localhost:65536", "localhost:-1",
    "localhost:+1", "localhost:1_0", "localhost: 1", "localhost:٣", "localhost:000001", "::1:7777",
    "[::1]", "[::1:7777", "::1]:7777", "[]:7777", "[localhost]:7777", "[127.0.0.1]:7777",
    "[::1%]x]:1", "[::1% ]:1", "300.0.0.1:1", "1.2.3:1", "1:1", "a b:1", "a\n:1", "-a:1", "ä:1",
    "http://a:1", "a" * 254 + ":1",
)  # fmt: skip


@pytest.mark.parametrize("text", BAD_ADDRESSES)
def test_a_bad_listen_address_is_told_with_the_right_form(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="PORT"):
        parse_listen(text)
    message = error_of(tmp_path, "", {"node.listen": text})
    assert message.startswith('--listen: node.listen = "')
    assert ": expected " in message
    assert "PORT" in message


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7777", "127.0.0.1", 7777),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("localhost:65535", "localhost", 65535),
        ("game_1.example.com.:1", "game_1.example.com.", 1),
        ("[::1]:7777", "::1", 7777),
        ("[::]:0", "::", 0),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("[::ffff:127.0.0.1]:80", "::ffff:127.0.0.1", 80),
    ],
)
def test_a_listen_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert parse_listen(text) == (host, port)
    assert load_config(None, {"node.listen": text}).node.listen == text


@pytest.mark.parametrize(
    "text", ["", "app", ":app", "app:", "a:b:c", "a b:c", "a..b:c", "a:1", "a/b.py:c"]
)
def test_a_bad_application_name_is_told_with_the_right_form(tmp_path: Path, text: str) -> None:
    assert error_of(tmp_path, "", {"node.app": text}) == (
        f'--app: node.app = "{text}": expected MODULE:NAME of an application, '
        "for example shop.main:app"
    )


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_a_run_directory_must_be_a_path(tmp_path: Path, text: str) -> None:
    message = error_of(tmp_path, "", {"node.run_dir": text})
    assert message.startswith('--run-dir: node.run_dir = "')
    assert message.endswith("expected the path of a directory")


def test_a_run_directory_must_be_one_that_child_processes_can_be_told(tmp_path: Path) -> None:
    message = error_of(tmp_path, "", {"node.run_dir": "/run/caf\udce9"})
    assert message.endswith("expected the path of a directory, in UTF-8")


def test_a_bad_value_of_the_file_is_an_error_even_under_a_flag(tmp_path: Path) -> None:
    message = error_of(tmp_path, "[workers]\ncount = 0", {"workers.count": 2})
    assert "cluster.toml: workers.count = 0" in message


@pytest.mark.parametrize(
    ("key", "flag"),
    [
        ("node.run_dir", "--run-dir"),
        ("gateway.driver", "--driver"),
        ("workers.count", "--workers"),
        ("lane.kind", "--lane"),
    ],
)
def test_a_flag_is_named_as_the_user_typed_it(key: str, flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{flag}: {key} = false: expected"):
        load_config(None, {key: False})


# Errors across keys


def test_a_lane_too_small_for_a_packet_names_both_keys(tmp_path: Path) -> None:
    message = error_of(tmp_path, "[lane]\nbytes = 524791")
    assert "cluster.toml: lane.bytes = 524791: expected at least 524792" in message
    assert "gateway.max_packet_bytes = 65535" in message
    assert load(tmp_path, "[lane]\nbytes = 524792").lane.bytes == 524_792
    small = load(tmp_path, "[lane]\nbytes = 4096\n[gateway]\nmax_packet_bytes = 448")
    assert small.lane.bytes == 4_096


def test_a_send_queue_too_small_for_a_packet_names_both_keys(tmp_path: Path) -> None:
    message = error_of(
        tmp_path, "[gateway]\nmax_packet_bytes = 1000", {"gateway.send_queue_bytes_max": 999}
    )
    assert message == (
        "--send-queue-bytes-max: gateway.send_queue_bytes_max = 999: "
        "expected at least one packet of gateway.max_packet_bytes = 1000"
    )


def test_no_default_can_break_a_promise_between_keys() -> None:
    largest = INTEGERS["gateway.max_packet_bytes"][1]
    load_config(None, {"gateway.max_packet_bytes": largest})


# How values are shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ('"a\\nb\\u001b[31m"', r'"a\nb\u001b[31m"'),
        ('"\\u202e"', r'"\u202e"'),
        ("0x" + "f" * 8_000, "0x" + "f" * 75 + "..."),
        ('"' + "x" * 100 + '"', '"' + "x" * 76 + "..."),
        ("[[[[[1]]]]]", "[[[...]]]"),
        ("{a = {b = true}}", "{a = {b = true}}"),
        ("[" + "1," * 500 + "]", "[" + "1, " * 25 + "1..."),
    ],
)
def test_a_value_is_shown_on_one_line_and_not_at_length(
    tmp_path: Path, value: str, shown: str
) -> None:
    assert f"node.id = {shown}: expected" in error_of(tmp_path, f"[node]\nid = {value}")


# Handing it over


@pytest.mark.parametrize("flags", [{}, {"node.listen": "[::1]:0", "gateway.close_timeout_s": 1}])
def test_a_configuration_survives_being_handed_to_a_child(flags: dict[str, object]) -> None:
    config = load_config(None, flags)
    assert decode_config(encode_config(config)) == config


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"node":{"id":-1}}', b'{"x":1}', b'{"node":{"app":"\xff"}}']
)
def test_a_damaged_hand_over_is_a_config_error(data: bytes) -> None:
    with pytest.raises(ConfigError, match="resolved configuration is damaged"):
        decode_config(data)


def test_child_processes_do_not_pay_for_the_parser() -> None:
    code = (
        "import sys, cluster.gateway.process, cluster.worker.process\n"
        "print('cluster.shared.config_file' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert output.stdout.strip() == b"False"


# Whatever is in the file


def value_of(config: Config, key: str) -> object:
    section, _, field = key.partition(".")
    return getattr(getattr(config, section), field)


def toml_of(value: object) -> str:
    """Write `value` as inline TOML, well enough for what the strategies below make."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value).replace("\x7f", "\\u007f")
        case list():
            return "[" + ", ".join(map(toml_of, value)) + "]"
        case dict():
            items = (f"{toml_of(key)} = {toml_of(item)}" for key, item in value.items())
            return "{" + ", ".join(items) + "}"
    return str(value)


INTERESTING_TEXT = st.sampled_from(["auto", "zmq", "shm", "iocp", "a:b", "[::1]:0", "localhost:1"])
SCALARS = (
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 70_000)
    | st.floats()
    | st.text(max_size=20)
    | INTERESTING_TEXT
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
)
NAMES = st.text(max_size=10) | st.sampled_from(["", "id", "Listen", "max-sessions"])
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        section: st.dictionaries(st.sampled_from(keys) | NAMES, VALUES, max_size=3) | VALUES
        for section, keys in KEYS.items()
    },
)
TABLES = SECTIONS | st.dictionaries(NAMES | st.sampled_from(list(KEYS)), VALUES, max_size=3)


def check_gives_config_or_config_error(path: Path, flags: Mapping[str, Any]) -> None:
    try:
        config = load_config(path, flags)
    except ConfigError as raised:
        message = str(raised)
    else:
        message = ""
        assert decode_config(encode_config(config)) == config
    assert message.isprintable()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(table=TABLES)
def test_any_table_gives_a_configuration_or_a_config_error(tmp_path: Path, table: Any) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("\n".join(f"{toml_of(k)} = {toml_of(v)}" for k, v in table.items()))
    check_gives_config_or_config_error(path, {})


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(section=st.sampled_from(list(KEYS)), data=st.data())
def test_any_value_of_any_key_gives_a_configuration_or_a_config_error(
    tmp_path: Path, section: str, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(KEYS[section]))
    value = data.draw(VALUES)
    path = tmp_path / "cluster.toml"
    path.write_text(f"[{section}]\n{key} = {toml_of(value)}\n")
    check_gives_config_or_config_error(path, {})
    path.write_text("")
    check_gives_config_or_config_error(path, {f"{section}.{key}": value})


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_any_bytes_give_a_configuration_or_a_config_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cluster.toml"
    path.write_bytes(content)
    check_gives_config_or_config_error(path, {})


# Links between nodes

LINKS = """
[node]
id = 1
[links]
listen = "127.0.0.1:7800"
secret_file = "/etc/secret"
nodes = ["1@127.0.0.1:7800", "2@[::1]:7801", "3@games.example:7802"]
"""


LISTEN = 'listen = "a:1"\nsecret_file = "/x"\n'
ETCDS = LISTEN + 'membership = "etcd"\netcd = ["https://h:2379"]\n'
ETCD = LISTEN + 'membership = "etcd"\netcd = ["http://h:2379"]\n'


def test_links_are_off_by_default_and_read_from_the_file(tmp_path: Path) -> None:
    assert Config().links == LinksConfig()
    assert Config().links.listen is None
    links = load(tmp_path, LINKS).links
    assert [parse_node(node) for node in links.nodes] == [
        (1, "127.0.0.1", 7800),
        (2, "::1", 7801),
        (3, "games.example", 7802),
    ]
    assert links.cluster == "cluster"
    assert decode_config(encode_config(load(tmp_path, LINKS))).links == links


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ('nodes = ["127.0.0.1:7800"]', "expected ID@HOST:PORT with an id from 1 to 65535"),
        ('nodes = ["0@127.0.0.1:7800"]', "expected ID@HOST:PORT with an id from 1 to 65535"),
        ('nodes = ["2@127.0.0.1:0"]', "expected ID@HOST:PORT with a port from 1 to 65535"),
        ('nodes = ["2@::1:5"]', "expected HOST:PORT with an IPv6 address in brackets"),
        ("nodes = [2]", "expected a list, each of it a string"),
        ('nodes = "2@127.0.0.1:7800"', "expected a list, each of it a string"),
        ('nodes = ["2@a:1", "2@b:1"]', "expected each node once"),
        ('nodes = ["2@a:1"]', "expected links.listen beside it"),
        ('secret_file = "/x"', "expected links.listen beside it"),
        ('listen = "a:1"', "expected links.secret_file beside it"),
        ('listen = "a:1"\nsecret_file = "/x"', "expected links.nodes beside it"),
        ('listen = "a:1"\nsecret_file = "/x"\nnodes = ["1@a:1"]', "expected links.nodes beside"),
        ('cluster = ""', "expected a name of 1 to 64 bytes"),
        ('secret_file = ""', "expected the path of a file"),
        ('membership = "raft"', "expected one of etcd, static"),
        ('membership = "etcd"', "expected links.listen beside it, this node's private address"),
        (f"{LISTEN}membership = 'etcd'", "expected links.etcd beside it, the http://HOST:PORT of"),
        (f"{LISTEN}etcd = []", 'expected links.membership = "etcd" beside it'),
        (f"{LISTEN}lease_s = 5", 'expected links.membership = "etcd" beside it'),
        (f"{LISTEN}advertise = 'a:1'", 'expected links.membership = "etcd" beside it'),
        (f"{LISTEN}etcd_user = 'a'", 'expected links.membership = "etcd" beside it'),
        ("etcd_ca_file = '/x'", "expected links.listen beside it"),
        (f"{ETCD}etcd_ca_file = '/x'", "expected an https:// server in links.etcd"),
        (f"{ETCD}etcd_certificate_file = '/x'", "expected an https:// server in links.etcd"),
        (f"{ETCDS}etcd_key_file = '/x'", "expected links.etcd_certificate_file beside it"),
        (f"{ETCD}etcd_user = 'a'", "expected links.etcd_password_file beside it, a file with the"),
        (f"{ETCD}etcd_password_file = '/x'", "expected links.etcd_user beside it, the user whose"),
        ("etcd_user = ''", "expected a name of 1 to 64 bytes"),
        ("etcd_password_file = ''", "expected the path of a file"),
        ("lease_s = 0", "expected an integer from 1 to 3600"),
        ('etcd = ["10.0.0.9:2379"]', "expected http://HOST:PORT or https://HOST:PORT, for example"),
        ('etcd = ["http://10.0.0.9"]', "expected http://HOST:PORT or https://HOST:PORT, for"),
        ('etcd = ["http://10.0.0.9:0"]', "expected http://HOST:PORT or https://HOST:PORT, for"),
        ('advertise = "a:0"', "expected HOST:PORT with a port from 1 to 65535, where other nodes"),
        (f"{ETCD}nodes = ['2@a:1']", "expected no list of nodes beside links.membership"),
        (
            ETCD.replace("a:1", "0.0.0.0:1"),
            "expected links.advertise beside it, the HOST:PORT where other nodes reach this one",
        ),
    ],
)
def test_links_that_cannot_be_are_told(tmp_path: Path, text: str, end: str) -> None:
    assert end in error_of(tmp_path, f"[links]\n{text}\n")


# A port that nodes share


def test_a_switch_is_true_or_false(tmp_path: Path) -> None:
    assert load(tmp_path, "[node]\nshared_port = false").node.shared_port is False
    assert "expected true or false" in error_of(tmp_path, "[node]\nshared_port = 1")


def test_a_port_is_shared_where_the_system_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "SO_REUSEPORT", 15, raising=False)
    assert load_config(None, {"node.shared_port": True}).node.shared_port
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    message = error_of(tmp_path, "", {"node.shared_port": True})
    assert message.startswith("--shared-port: node.shared_port = true: expected false: ")
    assert "SO_REUSEPORT" in message


def test_with_etcd_an_id_is_taken_unless_one_is_given(tmp_path: Path) -> None:
    config = load(tmp_path, f"[links]\n{ETCD}")
    assert (config.node.id, config.links.etcd) == (0, ["http://h:2379"])
    assert load(tmp_path, f"[node]\nid = 7\n[links]\n{ETCD}").node.id == 7
    anywhere = ETCD.replace("a:1", "[::]:1") + 'advertise = "10.0.0.1:7800"\n'
    assert load(tmp_path, f"[links]\n{anywhere}").links.advertise == "10.0.0.1:7800"


def test_the_id_0_is_for_etcd_only(tmp_path: Path) -> None:
    assert error_of(tmp_path, "[node]\nid = 0\n").endswith(
        'node.id = 0: expected an integer from 1 to 65535; 0 only beside links.membership = "etcd"'
    )


# Workers on other machines

REMOTE = '[remote]\nlisten = "10.0.0.1:7900"\nkeys_dir = "/keys"\nshards = [1, 0]'


def test_workers_on_other_machines_have_an_address_keys_and_shards(tmp_path: Path) -> None:
    config = load(tmp_path, REMOTE)
    assert config.remote == RemoteConfig(listen="10.0.0.1:7900", keys_dir="/keys", shards=[1, 0])
    assert Config().remote.listen is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('listen = "10.0.0.1:1"\nshards = [1]', ["remote.listen", "remote.keys_dir", "key"]),
        ('listen = "10.0.0.1:1"\nkeys_dir = "/k"', ["remote.listen", "remote.shards"]),
        ('keys_dir = "/k"', ["remote.keys_dir", "remote.listen"]),
        ("shards = [1]", ["remote.shards", "remote.listen"]),
        (REMOTE[9:].replace("7900", "65535"), ["remote.listen", "65534"]),
        (REMOTE[9:].replace("[1, 0]", "[1, 1]"), ["remote.shards", "once"]),
        (REMOTE[9:].replace("[1, 0]", "[2]"), ["remote.shards", "workers.count = 2"]),
        (REMOTE[9:].replace("[1, 0]", "[-1]"), ["remote.shards", "0 to 255"]),
        (REMOTE[9:].replace('"/keys"', '""'), ["remote.keys_dir"]),
        (REMOTE[9:].replace("10.0.0.1:", ""), ["remote.listen", "HOST:PORT"]),
    ],
)
def test_what_is_missing_for_workers_on_other_machines_is_told(
    tmp_path: Path, text: str, told: list[str]
) -> None:
    message = error_of(tmp_path, f"[remote]\n{text}")
    for word in told:
        assert word in message


# CPUs


def test_cpus_are_those_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_rules, "usable_cpus", lambda: frozenset({0, 1, 2, 3, 6}))
    config = load(tmp_path, '[gateway]\ncpus = "6"\n[workers]\ncpus = "0-3"')
    assert (config.gateway.cpus, config.workers.cpus) == ("6", "0-3")
    message = error_of(tmp_path, '[workers]\ncpus = "0-4"')
    assert message.endswith("expected CPUs that this process may use, which are 0-3,6")
    assert "expected a string" in error_of(tmp_path, "[workers]\ncpus = 0")
    message = error_of(tmp_path, '[gateway]\ncpus = "3-0"')
    assert message.endswith(
        'gateway.cpus = "3-0": expected numbers and ranges of CPUs up to 8191, for example 0 or '
        "0-3,8"
    )
    monkeypatch.setattr(config_rules, "usable_cpus", lambda: frozenset())
    assert "expected none: " in error_of(tmp_path, '[gateway]\ncpus = "0"')


@pytest.mark.parametrize("latency_us", [0, 20, 1_000_000])
def test_a_latency_of_cpus_is_asked_for_only_where_it_is_set(
    tmp_path: Path, latency_us: int
) -> None:
    assert load(tmp_path, "").gateway.cpu_latency_us is None
    config = load(tmp_path, f"[gateway]\ncpu_latency_us = {latency_us}")
    assert config.gateway.cpu_latency_us == latency_us


@pytest.mark.parametrize("value", ["-1", "1000001", "0.5", "true", '"0"'])
def test_a_latency_of_cpus_that_nobody_can_ask_for(tmp_path: Path, value: str) -> None:
    message = error_of(tmp_path, f"[gateway]\ncpu_latency_us = {value}")
    assert message.endswith("expected an integer from 0 to 1000000")
