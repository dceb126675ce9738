"""Handlers whose annotations are strings, one of them with a name for type checkers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from cluster.worker import App, Session


class Line(msgspec.Struct):
    text: str


def register(app: App, got: list[Any]) -> None:
    """Have `app` put into `got` what its handlers get."""

    @app.on_packet(1)
    def typed(session: Session, line: Line) -> None:
        got.append(line)

    @app.on_packet(2)
    def raw(session: Session, payload: bytes) -> None:
        got.append(payload)

    @app.on_packet(3)
    def view(session: Session, payload: memoryview) -> None:
        got.append(f"a view of {bytes(payload)!r}")

    @app.on_packet(4)
    def lines(session: Session, lines: list[Line]) -> None:
        got.append(lines)
