"""One value of a configuration, who wrote it, and how a mistake in it is told."""

import json
from typing import NamedTuple

from cluster.shared.config import ConfigError

__all__ = ["Setting", "config_error"]

_SHOWN_CHARACTERS_MAX = 80
_SHOWN_DEPTH_MAX = 3


class Setting(NamedTuple):
    """One value that somebody wrote, and where: a file or a flag."""

    source: str
    key: str
    value: object

    def error(self, expected: str) -> ConfigError:
        """Return the error that says what was `expected` instead."""
        value = _shown(self.value)
        return config_error(f"{self.source}: {self.key} = {value}: expected {expected}")


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


def config_error(message: str) -> ConfigError:
    """Make the error, with whatever would break its one line or the terminal made visible."""
    return ConfigError(
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    )
