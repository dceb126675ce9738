"""The notes of a gateway's workers as files: made at the grant, removed when the life has ended.

A file that cannot be removed yet, because a fenced worker still has it mapped on Windows, is
tried again with the next one; one that a crash left, at the next gateway's start.
"""

import logging
from pathlib import Path

from cluster.shared.note import NoteReader, create_note

__all__ = ["NoteFiles"]

logger = logging.getLogger("cluster.gateway")

_PREFIX = "note-"


class NoteFiles:
    """The files in the run directory at `directory`, which this process has locked."""

    __slots__ = ("_directory", "_to_remove")

    def __init__(self, directory: Path) -> None:
        """Remove what an earlier gateway has left."""
        self._directory = directory
        self._to_remove = {path.name for path in directory.glob(f"{_PREFIX}*")}
        self._remove_all()

    def create(self, shard: int, incarnation: int) -> tuple[str, NoteReader] | None:
        """Make the note of an incarnation; None, with a log line, where that cannot be."""
        self._remove_all()
        name = f"{_PREFIX}{shard}-{incarnation}"
        try:
            return name, create_note(self._directory / name)
        except OSError as error:
            logger.error(
                "shard %d goes on without a note of what is in hand, so no packet can be found "
                "to be poison: %s cannot be made (%s); look at its file system",
                shard,
                self._directory / name,
                error.strerror or error,
            )
            return None

    def remove(self, name: str, reader: NoteReader) -> None:
        """The life has ended: let go of its note."""
        reader.close()
        self._to_remove.add(name)
        self._remove_all()

    def _remove_all(self) -> None:
        for name in list(self._to_remove):
            try:
                (self._directory / name).unlink(missing_ok=True)
            except OSError as error:
                logger.debug("%s stays for now: %s", name, error)
            else:
                self._to_remove.discard(name)
