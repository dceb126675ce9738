"""Writes a note as a worker does, as fast as it can, until it is killed.

Run as a script: PATH. Session and position of a call say the same, so that a reader can tell
whether what it reads belongs together.
"""

import sys
from pathlib import Path

from cluster.shared.note import CALL, INDEX_BITS, open_note

PACKETS_EACH = 3
SESSION_BASE = 1 << 40


def main() -> None:
    note = open_note(Path(sys.argv[1]))
    words = note.words
    round_number = 0
    print("writing", flush=True)
    while True:
        round_number += 1
        for session in range(3):
            note.resuming(SESSION_BASE + 3 * round_number + session)
            note.clear()
        note.begin()
        for position in range(2 * round_number, 2 * round_number + 2):
            for index in range(PACKETS_EACH):
                words[CALL] = (position << INDEX_BITS) + index
        note.clear()


if __name__ == "__main__":
    main()
