"""What chat clients and the server say to each other. Both import this, so both are checked.

`web/chat.js` has the same for browsers.
"""

from msgspec import Struct

LOGIN, JOIN, LEAVE, SAY = 1, 2, 3, 4
"""Packet ids, client to server."""

NOTICE, LINE = 10, 11
"""Packet ids, server to client."""


class Login(Struct):
    """Who the client wants to be. It comes first."""

    name: str


class Room(Struct):
    """The room to join or to leave."""

    room: str


class Say(Struct):
    """Something for everybody in a room."""

    room: str
    text: str


class Notice(Struct):
    """What the server has to say to one client."""

    text: str


class Line(Struct):
    """What somebody has said in a room; nobody, if it is the server's."""

    room: str
    who: str
    text: str
