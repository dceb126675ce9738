"""The client end of `connections.c`: many connections that do nothing, in another process."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Connections", "open_connections"]


class Connections:
    """Connections that a server has accepted, until `close`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def close(self) -> None:
        """Close them all, in good order."""
        self._process.communicate("close\n", timeout=60)


@contextmanager
def open_connections(
    program: Path, port: int, count: int, *, speak: bool = False
) -> Iterator[Connections]:
    """Open `count` connections with `program`, the compiled `connections.c`.

    With `speak` each of them has one packet echoed.
    """
    process = subprocess.Popen(
        [str(program), str(port), str(count), str(int(speak))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "connected\n":
            raise SystemExit(f"cannot open {count} connections to port {port}")
        yield Connections(process)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
