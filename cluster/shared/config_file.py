"""Reads the configuration file, lays the flags over it, and says precisely what is wrong.

What is allowed is read from the structs of `cluster.shared.config`, so a new section or key needs
nothing here. Every error is a `ConfigError` on one line, whatever bytes the file holds.
"""

import difflib
import json
import socket
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from cluster.shared.config import (
    MIB,
    Config,
    ConfigError,
    parse_listen,
    parse_node,
    parse_store,
)

FILE_BYTES_MAX = MIB
"""A configuration is a page of text; anything this long is some other file."""

RECORD_OVERHEAD_BYTES = 64
"""What a lane record may need beside its packet: header, session, sequence, alignment."""

_RECORDS_PER_LANE = 8
"""The largest record of a lane is its capacity divided by this."""

_SHOWN_CHARACTERS_MAX = 80
_SHOWN_DEPTH_MAX = 3

_FLAGS: Mapping[str, str] = {
    "node.id": "--node-id",
    "node.run_dir": "--run-dir",
    "workers.count": "--workers",
    "lane.kind": "--lane",
}
"""Flags that are not simply the last part of their key."""


class _Setting(NamedTuple):
    """One value that somebody wrote, and where: a file or a flag."""

    source: str
    key: str
    value: object

    def error(self, expected: str) -> ConfigError:
        value = _shown(self.value)
        return _config_error(f"{self.source}: {self.key} = {value}: expected {expected}")


def merge_file_and_flags(path: Path | None, overrides: Mapping[str, object]) -> Config:
    """Do the work of `cluster.shared.config.load_config`, which says what it promises."""
    schema = _Schema()
    settings: dict[str, _Setting] = {}
    if path is not None:
        found = _settings_of_sections(str(path), _read_toml(path), schema)
        settings.update(_checked(schema, found))
    settings.update(_checked(schema, _settings_of_flags(overrides)))
    return _converted(settings)


def merge_sections(source: str, sections: Mapping[str, object]) -> Config:
    """Do the work of `cluster.shared.config.make_config`, which says what it promises."""
    schema = _Schema()
    settings = _checked(schema, _settings_of_sections(source, sections, schema))
    return _converted(dict(settings))


def _converted(settings: Mapping[str, _Setting]) -> Config:
    sections: dict[str, dict[str, object]] = {}
    for setting in settings.values():
        section, _, field = setting.key.partition(".")
        sections.setdefault(section, {})[field] = setting.value
    config = msgspec.convert(sections, Config)
    if config.links.membership == "etcd" and "node.id" not in settings:
        node = msgspec.structs.replace(config.node, id=0)
        config = msgspec.structs.replace(config, node=node)
    _check_across_keys(config, settings)
    return config


def _checked(schema: "_Schema", settings: Iterable[_Setting]) -> Iterator[tuple[str, _Setting]]:
    for setting in settings:
        schema.check(setting)
        yield setting.key, setting


def _settings_of_flags(overrides: Mapping[str, object]) -> Iterator[_Setting]:
    for key, value in overrides.items():
        if value is not None:
            flag = _FLAGS.get(key, "--" + key.rpartition(".")[2].replace("_", "-"))
            # Command-line libraries make enums of choices.
            yield _Setting(flag, key, value.value if isinstance(value, Enum) else value)


def _settings_of_sections(
    source: str, sections: Mapping[str, object], schema: "_Schema"
) -> Iterator[_Setting]:
    for section, table in sections.items():
        whole_section = _Setting(source, section, table)
        if section not in schema.sections:
            raise whole_section.error(_one_of("sections", section, schema.sections))
        if not isinstance(table, dict):
            raise whole_section.error(f"a section, written [{section}]")
        for field, value in table.items():
            yield _Setting(source, f"{section}.{field}", value)


def _read_toml(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("end of document", f"end of document, {_end_of(text)}")
        raise _config_error(f"{path}: not TOML: {reason}") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, arrays a thousand deep: the parser has no better name.
        raise _config_error(f"{path}: not usable as TOML: {error}") from None


def _end_of(text: str) -> str:
    lines = text.split("\n")
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"


def _read_text(path: Path) -> str:
    expected = "--config takes a readable TOML file"
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise _config_error(f"{path}: cannot be read ({reason}): {expected}") from None
    if len(data) > FILE_BYTES_MAX:
        raise _config_error(f"{path}: more than {FILE_BYTES_MAX} bytes: {expected}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise _config_error(f"{path}: not UTF-8 ({found}): {expected}") from None


class _Schema:
    """The keys that exist and what each may be, read from the structs."""

    def __init__(self) -> None:
        self.sections = {
            section.name: {field.name: field.type for field in _fields(section.type)}
            for section in _fields(inspect.type_info(Config))
        }

    def check(self, setting: _Setting) -> None:
        """Raise `ConfigError` unless the key exists and takes the value."""
        section, _, field = setting.key.partition(".")
        fields = self.sections.get(section)
        if fields is None:
            raise setting.error(_one_of("sections", section, self.sections))
        if field not in fields:
            raise setting.error(_one_of(f"keys of [{section}]", field, fields))
        if not _fits(fields[field], setting.value):
            raise setting.error(_describe(fields[field]))
        text_check = _TEXT_CHECKS.get(setting.key)
        if text_check is not None and setting.value is not None:
            texts = setting.value if isinstance(setting.value, list) else [setting.value]
            for text in texts:
                try:
                    text_check(str(text))
                except ValueError as error:
                    raise setting._replace(value=text).error(str(error)) from None


def _fields(struct: inspect.Type) -> tuple[inspect.Field, ...]:
    assert isinstance(struct, inspect.StructType)
    return struct.fields


def _fits(kind: inspect.Type, value: object) -> bool:
    match kind:
        case inspect.IntType(ge=low, le=high):
            return type(value) is int and _number(low) <= value <= _number(high)
        case inspect.FloatType(ge=low, gt=above, le=high):
            # A boolean is an int to Python; NaN fails both comparisons.
            if isinstance(value, bool) or not isinstance(value, int | float):
                return False
            is_above = value > _number(above) if low is None else value >= low
            return is_above and value <= _number(high)
        case inspect.LiteralType(values=values):
            return isinstance(value, str) and value in values
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.StrType():
            return isinstance(value, str)
        case inspect.ListType(item_type=item):
            return isinstance(value, list) and all(_fits(item, each) for each in value)
        case inspect.UnionType(types=types):
            return any(_fits(each, value) for each in types)
        case inspect.NoneType():
            return value is None
    raise NotImplementedError(f"no rule for configuration fields of type {kind}")


def _describe(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType(ge=low, le=high):
            return f"an integer from {low} to {high}"
        case inspect.FloatType(ge=None, gt=above, le=high):
            return f"a number of seconds above {above} and at most {high}"
        case inspect.FloatType(ge=low, le=high):
            return f"a number of seconds from {low} to {high}"
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.UnionType(types=types):
            return " or ".join(_describe(t) for t in types if not isinstance(t, inspect.NoneType))
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "a string"
        case inspect.ListType(item_type=item):
            return f"a list, each of it {_describe(item)}"
    raise NotImplementedError(f"no words for configuration fields of type {kind}")


def _number(bound: float | None) -> float:
    assert bound is not None, "every number of the configuration has a limit on both sides"
    return bound


def _check_app(text: str) -> None:
    module, _, name = text.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError("MODULE:NAME of an application, for example shop.main:app")


def _check_run_dir(text: str) -> None:
    if not text or "\0" in text:
        raise ValueError("the path of a directory")


def _check_file(text: str) -> None:
    if not text or "\0" in text:
        raise ValueError("the path of a file")


def _check_advertise(text: str) -> None:
    if parse_listen(text)[1] == 0:
        raise ValueError("HOST:PORT with a port from 1 to 65535, where other nodes reach this one")


def _check_cluster(text: str) -> None:
    if not 0 < len(text.encode("utf-8", "replace")) <= 64:
        raise ValueError("a name of 1 to 64 bytes")


_TEXT_CHECKS: Mapping[str, Callable[[str], object]] = {
    "node.listen": parse_listen,
    "node.app": _check_app,
    "node.run_dir": _check_run_dir,
    "links.cluster": _check_cluster,
    "links.listen": parse_listen,
    "links.advertise": _check_advertise,
    "links.secret_file": _check_file,
    "links.etcd": parse_store,
    "remote.listen": parse_listen,
    "remote.keys_dir": _check_run_dir,
    "links.nodes": parse_node,
}
"""What a string, or each of a list, must look like, by key.

Each raises `ValueError` with what is allowed.
"""


def _check_across_keys(config: Config, settings: Mapping[str, _Setting]) -> None:
    """Check what two keys promise each other.

    The defaults keep these promises for every allowed value of the other key, so the key that
    breaks one was set by somebody and is in `settings`.
    """
    packet_bytes = config.gateway.max_packet_bytes
    lane_bytes_min = _RECORDS_PER_LANE * (packet_bytes + RECORD_OVERHEAD_BYTES)
    if config.lane.bytes < lane_bytes_min:
        raise settings["lane.bytes"].error(
            f"at least {lane_bytes_min}, {_RECORDS_PER_LANE} times a record with a packet of "
            f"gateway.max_packet_bytes = {packet_bytes}"
        )
    if config.gateway.send_queue_bytes_max < packet_bytes:
        raise settings["gateway.send_queue_bytes_max"].error(
            f"at least one packet of gateway.max_packet_bytes = {packet_bytes}"
        )
    if config.node.shared_port and not hasattr(socket, "SO_REUSEPORT"):
        raise settings["node.shared_port"].error(
            f"false: {sys.platform} has no SO_REUSEPORT, so nodes cannot share a port"
        )
    _check_limits(config, settings)
    _check_links(config, settings)
    _check_remote(config, settings)


def _check_limits(config: Config, settings: Mapping[str, _Setting]) -> None:
    limits = config.limits
    for burst, rate in _BURSTS.items():
        if getattr(limits, burst) and not getattr(limits, rate):
            raise settings[f"limits.{burst}"].error(f"limits.{rate} above 0 beside it")
    packet_bytes = config.gateway.max_packet_bytes
    if 0 < limits.bytes_burst < packet_bytes:
        raise settings["limits.bytes_burst"].error(
            f"at least one packet of gateway.max_packet_bytes = {packet_bytes}"
        )
    queue_bytes = config.gateway.send_queue_bytes_max
    if limits.send_blocked_bytes > queue_bytes:
        raise settings["limits.send_blocked_bytes"].error(
            f"at most gateway.send_queue_bytes_max = {queue_bytes}"
        )
    blocked_bytes = limits.send_blocked_bytes or queue_bytes // 2
    if limits.send_ready_bytes >= blocked_bytes:
        raise settings["limits.send_ready_bytes"].error(
            f"less than limits.send_blocked_bytes = {blocked_bytes}"
        )


_BURSTS: Mapping[str, str] = {
    "packets_burst": "packets_per_s",
    "bytes_burst": "bytes_per_s",
    "accepts_per_address_burst": "accepts_per_address_per_s",
    "accepts_burst": "accepts_per_s",
}
"""Keys of `[limits]` that mean something only beside another."""


def _check_links(config: Config, settings: Mapping[str, _Setting]) -> None:
    links = config.links
    numbers = [parse_node(node)[0] for node in links.nodes]
    if len(set(numbers)) < len(numbers):
        raise settings["links.nodes"].error("each node once")
    if config.node.id == 0 and links.membership != "etcd":
        raise settings["node.id"].error(
            'an integer from 1 to 65535; 0 only beside links.membership = "etcd"'
        )
    if links.listen is None:
        for key in _LINKS_KEYS_BESIDE_LISTEN:
            if key in settings:
                raise settings[key].error("links.listen beside it, this node's private address")
        if links.membership == "etcd":
            raise settings["links.membership"].error(
                "links.listen beside it, this node's private address"
            )
        return
    if links.secret_file is None:
        raise settings["links.listen"].error(
            "links.secret_file beside it, a file with the secret of the cluster"
        )
    if links.membership == "etcd":
        _check_etcd(config, settings)
        return
    for key in ("links.etcd", "links.lease_s", "links.advertise"):
        if key in settings:
            raise settings[key].error('links.membership = "etcd" beside it')
    if not set(numbers) - {config.node.id}:
        raise settings["links.listen"].error(
            "links.nodes beside it, the ID@HOST:PORT of at least one other node"
        )


def _check_etcd(config: Config, settings: Mapping[str, _Setting]) -> None:
    links = config.links
    assert links.listen is not None
    if not links.etcd:
        raise settings["links.membership"].error(
            "links.etcd beside it, the http://HOST:PORT of at least one server"
        )
    if links.nodes:
        raise settings["links.nodes"].error('no list of nodes beside links.membership = "etcd"')
    if links.advertise is None and parse_listen(links.listen)[0] in _ANY_HOSTS:
        raise settings["links.listen"].error(
            "links.advertise beside it, the HOST:PORT where other nodes reach this one"
        )


_LINKS_KEYS_BESIDE_LISTEN = (
    "links.secret_file",
    "links.nodes",
    "links.etcd",
    "links.lease_s",
    "links.advertise",
)
_ANY_HOSTS = frozenset({"0.0.0.0", "::"})
"""Addresses to listen at that nobody can be called at."""


def _check_remote(config: Config, settings: Mapping[str, _Setting]) -> None:
    remote = config.remote
    if remote.listen is None:
        for key in ("remote.keys_dir", "remote.shards"):
            if key in settings:
                raise settings[key].error("remote.listen beside it, where those workers connect")
        return
    if remote.keys_dir is None:
        raise settings["remote.listen"].error(
            "remote.keys_dir beside it: nobody connects without a key; make them by `cluster keys`"
        )
    if not remote.shards:
        raise settings["remote.listen"].error(
            "remote.shards beside it, the shards whose workers are on other machines"
        )
    if parse_listen(remote.listen)[1] == 65_535:
        raise settings["remote.listen"].error("a port up to 65534: the next one is for lanes")
    if len(set(remote.shards)) < len(remote.shards) or max(remote.shards) >= config.workers.count:
        raise settings["remote.shards"].error(
            f"each shard once, below workers.count = {config.workers.count}"
        )


def _one_of(what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"one of the {what} {', '.join(names)}{hint}"


def _shown(value: object) -> str:
    """Return `value` as TOML would have it, cut where it gets long."""
    text = _toml(value, depth=0)
    if len(text) <= _SHOWN_CHARACTERS_MAX:
        return text
    return text[: _SHOWN_CHARACTERS_MAX - 3] + "..."


def _toml(value: object, depth: int) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            # Python refuses to write thousands of decimal digits, but not hexadecimal ones.
            return str(value) if value.bit_length() <= 128 else hex(value)
        case str():
            return json.dumps(value[:_SHOWN_CHARACTERS_MAX], ensure_ascii=False)
        case list() | dict() if depth == _SHOWN_DEPTH_MAX:
            return "..."
        case list():
            return "[" + ", ".join(_toml(item, depth + 1) for item in value) + "]"
        case dict():
            items = (f"{key} = {_toml(item, depth + 1)}" for key, item in value.items())
            return "{" + ", ".join(items) + "}"
    return str(value)


def _config_error(message: str) -> ConfigError:
    """Make the error, with whatever would break its one line or the terminal made visible."""
    return ConfigError(
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    )
