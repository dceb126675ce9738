"""Whose pages may connect.

A browser lets every page open WebSockets to everywhere, also to addresses that only its own machine
reaches, and says in `Origin` whose page it is. Other programs send no `Origin`, or whichever they
like: nothing is gained by refusing those. No I/O.
"""

import re
from urllib.parse import urlsplit

__all__ = ["ANY", "Origins", "parse_origin"]

ANY = "*"

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")


class Origins:
    """Those that are admitted: a list, any, or without either those of the same host."""

    __slots__ = ("_listed",)

    def __init__(self, listed: tuple[str, ...] = ()) -> None:
        """Admit those `listed` as `parse_origin` returns them, all for `*`.

        With none, pages are admitted whose host is the one that they connect to, whatever the port.
        """
        self._listed = frozenset(listed)

    @property
    def are_listed(self) -> bool:
        """Whether somebody has said which, or that any may."""
        return bool(self._listed)

    def admit(self, origin: str | None, host: str | None) -> bool:
        """Return whether a page of `origin` may connect to `host`, the header of that name."""
        if origin is None or ANY in self._listed:
            return True
        if self._listed:
            return origin.lower() in self._listed
        name = _host_name(origin)
        return name is not None and host is not None and name == _host_name(f"//{host}")


def parse_origin(text: str) -> str:
    """Return an origin as browsers write it; raises ValueError with what is allowed."""
    origin = text.lower()
    if origin in (ANY, "null") or _ORIGIN.fullmatch(origin):
        return origin
    raise ValueError("SCHEME://HOST or SCHEME://HOST:PORT, for example https://example.com, or *")


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
