"""Reads the configuration file, lays the flags over it, and says precisely what is wrong.

What is allowed is read from the structs of `cluster.shared.config`, so a new section or key needs
nothing here. Every error is a `ConfigError` on one line, whatever bytes the file holds.

Only the process that reads the file pays for the parser and the messages: child processes get the
result (`decode_config`), and are to start fast.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from cluster.shared.addresses import parse_listen, parse_node, parse_store
from cluster.shared.config import MIB, Config
from cluster.shared.config_rules import check_across_keys, check_cpus
from cluster.shared.config_setting import Setting, config_error
from cluster.shared.cpus import parse_cpus
from cluster.shared.networks import check_network

FILE_BYTES_MAX = MIB
"""A configuration is a page of text; anything this long is some other file."""

_FLAGS: Mapping[str, str] = {
    "node.id": "--node-id",
    "node.run_dir": "--run-dir",
    "workers.count": "--workers",
    "lane.kind": "--lane",
}
"""Flags that are not simply the last part of their key."""


def load_config(
    path: Path | None, overrides: Mapping[str, object], *, starts_node: bool = True
) -> Config:
    """Put the configuration together: a flag beats the file, the file beats the default.

    `path` is the TOML file, if there is one. `overrides` holds the flags by the key that they
    set, for example `node.listen`; a value of None is a flag that was not given. Only what
    `starts_node` has to have the CPUs: a node's status may be asked from elsewhere.

    Raises `ConfigError` for a file that cannot be read or is not TOML, and for every key and
    value that is not allowed, also for a value of the file that a flag overrides.
    """
    schema = _Schema()
    settings: dict[str, Setting] = {}
    if path is not None:
        found = _settings_of_sections(str(path), _read_toml(path), schema)
        settings.update(_checked(schema, found))
    settings.update(_checked(schema, _settings_of_flags(overrides)))
    config = _converted(settings)
    if starts_node:
        check_cpus(config, settings)
    return config


def make_config(source: str, sections: Mapping[str, object]) -> Config:
    """Return the configuration of `sections`: each a mapping of its keys, as the file has them.

    Raises `ConfigError`, which names `source`, for every key and value that is not allowed.
    """
    schema = _Schema()
    settings = _checked(schema, _settings_of_sections(source, sections, schema))
    return _converted(dict(settings))


def _converted(settings: Mapping[str, Setting]) -> Config:
    sections: dict[str, dict[str, object]] = {}
    for setting in settings.values():
        section, _, field = setting.key.partition(".")
        sections.setdefault(section, {})[field] = setting.value
    config = msgspec.convert(sections, Config)
    if config.links.membership == "etcd" and "node.id" not in settings:
        node = msgspec.structs.replace(config.node, id=0)
        config = msgspec.structs.replace(config, node=node)
    check_across_keys(config, settings)
    return config


def _checked(schema: "_Schema", settings: Iterable[Setting]) -> Iterator[tuple[str, Setting]]:
    for setting in settings:
        schema.check(setting)
        yield setting.key, setting


def _settings_of_flags(overrides: Mapping[str, object]) -> Iterator[Setting]:
    for key, value in overrides.items():
        if value is not None:
            flag = _FLAGS.get(key, "--" + key.rpartition(".")[2].replace("_", "-"))
            # Command-line libraries make enums of choices.
            yield Setting(flag, key, value.value if isinstance(value, Enum) else value)


def _settings_of_sections(
    source: str, sections: Mapping[str, object], schema: "_Schema"
) -> Iterator[Setting]:
    for section, table in sections.items():
        whole_section = Setting(source, section, table)
        if section not in schema.sections:
            raise whole_section.error(schema.sections_allowed(section))
        if not isinstance(table, dict):
            raise whole_section.error(f"a section, written [{section}]")
        for field, value in table.items():
            yield Setting(source, f"{section}.{field}", value)


def _read_toml(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace(
            "(at end of document)", f"(at end of document, {_end_of(text)})"
        )
        raise config_error(f"{path}: not TOML: {reason}") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, arrays a thousand deep: the parser has no better name.
        raise config_error(f"{path}: not usable as TOML: {error}") from None


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
        raise config_error(f"{path}: cannot be read ({reason}): {expected}") from None
    if len(data) > FILE_BYTES_MAX:
        raise config_error(f"{path}: more than {FILE_BYTES_MAX} bytes: {expected}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise config_error(f"{path}: not UTF-8 ({found}): {expected}") from None


class _Schema:
    """The keys that exist and what each may be, read from the structs."""

    def __init__(self) -> None:
        self.sections = {
            section.name: {field.name: field.type for field in _fields(section.type)}
            for section in _fields(inspect.type_info(Config))
        }

    def sections_allowed(self, name: str) -> str:
        """Return which sections there are, and what `name`, which is none, may have meant."""
        for section, fields in self.sections.items():
            if name in fields:
                return f"{_one_of('sections', '', self.sections)}; {name} is a key of [{section}]"
        return _one_of("sections", name, self.sections)

    def check(self, setting: Setting) -> None:
        """Raise `ConfigError` unless the key exists and takes the value."""
        section, _, field = setting.key.partition(".")
        fields = self.sections.get(section)
        if fields is None:
            raise setting.error(self.sections_allowed(section))
        if field not in fields:
            raise setting.error(_one_of(f"keys of [{section}]:", field, fields))
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
    try:
        text.encode()  # as the child processes are told it
    except UnicodeEncodeError:
        raise ValueError("the path of a directory, in UTF-8") from None


def _check_file(text: str) -> None:
    if not text or "\0" in text:
        raise ValueError("the path of a file")


def _check_advertise(text: str) -> None:
    if parse_listen(text)[1] == 0:
        raise ValueError("HOST:PORT with a port from 1 to 65535, where other nodes reach this one")


def _check_name(text: str) -> None:
    if not 0 < len(text.encode("utf-8", "replace")) <= 64:
        raise ValueError("a name of 1 to 64 bytes")


_TEXT_CHECKS: Mapping[str, Callable[[str], object]] = {
    "node.listen": parse_listen,
    "node.app": _check_app,
    "node.run_dir": _check_run_dir,
    "gateway.cpus": parse_cpus,
    "gateway.proxies": check_network,
    "workers.cpus": parse_cpus,
    "links.cluster": _check_name,
    "links.listen": parse_listen,
    "links.advertise": _check_advertise,
    "links.secret_file": _check_file,
    "links.etcd": parse_store,
    "links.etcd_ca_file": _check_file,
    "links.etcd_certificate_file": _check_file,
    "links.etcd_key_file": _check_file,
    "links.etcd_user": _check_name,
    "links.etcd_password_file": _check_file,
    "remote.listen": parse_listen,
    "remote.keys_dir": _check_run_dir,
    "links.nodes": parse_node,
}
"""What a string, or each of a list, must look like, by key.

Each raises `ValueError` with what is allowed.
"""


def _one_of(what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    begun = [known_name for known_name in names if name and known_name.startswith(name)]
    nearest = difflib.get_close_matches(name, names, n=1) or begun
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"one of the {what} {', '.join(names)}{hint}"
