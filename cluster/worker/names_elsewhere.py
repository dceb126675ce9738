"""Names that other frameworks have for what is called otherwise here, and what that is.

Whoever comes from Flask, FastAPI or Socket.IO types them first. They stand in the classes, as what
raises when it is looked up: a `__getattr__` would make each use of any name slower.
"""

from collections.abc import Mapping
from typing import Never

__all__ = ["OF_APP", "OF_SESSION", "tell_names_elsewhere"]

_RUN = "run it by `cluster up --app MODULE:NAME`"
_HANDLERS = (
    "packets come to @app.on_packet(id), and there are @app.on_connected, @app.on_disconnected, "
    "@app.on_start and @app.on_stop"
)
_SENDS = (
    "session.send is for one session, app.send_to for a user, app.publish for a group, and "
    "app.broadcast for all"
)
_TASKS = "use asyncio.create_task in a handler, app.call_later or @app.every"
_SEND = "use session.send(packet_id, message)"
_RECEIVE = "packets come to the handlers of @app.on_packet(id)"

OF_APP = {
    "run": _RUN,
    "serve": _RUN,
    "listen": _RUN,
    "on": _HANDLERS,
    "event": _HANDLERS,
    "on_event": _HANDLERS,
    "route": _HANDLERS,
    "websocket": _HANDLERS,
    "on_connect": "use @app.on_connected",
    "on_disconnect": "use @app.on_disconnected",
    "on_startup": "use @app.on_start",
    "on_shutdown": "use @app.on_stop",
    "emit": _SENDS,
    "send": _SENDS,
    "disconnect": "use session.disconnect(cause), or app.kick_user",
    "enter_room": "use session.join(name)",
    "leave_room": "use session.leave(name)",
    "create_task": _TASKS,
    "start_background_task": _TASKS,
}

OF_SESSION = {
    "emit": _SEND,
    "write": _SEND,
    "send_text": _SEND,
    "send_bytes": _SEND,
    "send_json": _SEND,
    "publish": "use app.publish(name, packet_id, message)",
    "broadcast": "use app.broadcast(packet_id, message)",
    "receive": _RECEIVE,
    "receive_text": _RECEIVE,
    "receive_bytes": _RECEIVE,
    "receive_json": _RECEIVE,
    "close": "use session.disconnect(cause), or session.kick(packet_id, message)",
    "enter_room": "use session.join(name)",
    "leave_room": "use session.leave(name)",
    "rooms": "use session.groups",
    "sid": "use session.id",
}


class _Elsewhere:
    """A name that raises AttributeError, with the remedy, in the class that it stands in."""

    __slots__ = ("_name", "_remedy")

    def __init__(self, name: str, remedy: str) -> None:
        self._name = name
        self._remedy = remedy

    def __get__(self, instance: object, owner: type) -> Never:
        raise AttributeError(f"{owner.__name__} has no {self._name!r}: {self._remedy}")


def tell_names_elsewhere(owner: type, remedies: Mapping[str, str]) -> None:
    """Have `owner` say what to use in place of names that it does not have, once it is made."""
    for name, remedy in remedies.items():
        assert not hasattr(owner, name), name
        setattr(owner, name, _Elsewhere(name, remedy))
